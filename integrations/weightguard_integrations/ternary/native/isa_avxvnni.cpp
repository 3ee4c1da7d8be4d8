// AVX2 with VNNI: eight rows to a register. Compiled with -mavxvnni; the tests compile it once more
// for the 256-bit form of AVX-512 VNNI, which is the same arithmetic.
#include <immintrin.h>

#include "dot.hpp"
#include "weigh_avx2.hpp"

namespace {

struct Half {
    using Register = __m256i;
    static constexpr int kRows = 8, kFewTokens = 4, kGroupsAtOnce = 1, kStreamTokens = 1;
    static Register zero() { return _mm256_setzero_si256(); }
    static Register load(const uint8_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }
    static Register broadcast(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return _mm256_set1_epi32(four);
    }
    template <int kField>
    static Register masked(Register codes) {
        return _mm256_and_si256(codes, _mm256_set1_epi8(static_cast<char>(3 << 2 * kField)));
    }
    template <int kField>
    static Register field(Register codes) {
        return masked<0>(kField ? _mm256_srli_epi32(codes, 2 * kField) : codes);
    }
    static Register byte_codes(Register codes) { return codes; }
    static Register dot(Register sum, Register codes, Register x) {
#ifdef __AVX512VNNI__
        return _mm256_dpbusd_epi32(sum, codes, x);
#else
        return _mm256_dpbusd_avx_epi32(sum, codes, x);
#endif
    }
    template <int kBits>
    static Register add_shifted(Register sum, Register part) {
        return _mm256_add_epi32(sum, _mm256_srai_epi32(part, kBits));
    }
    static void store(int32_t* at, Register sum) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), sum);
    }
};

}  // namespace

namespace weightguard::ternary {
const Kernel avxvnni_kernel{"avxvnni", 128, ternary_pass<Half>, byte_pass<Half>, quantise, seal, finish<Weigh>};
}
