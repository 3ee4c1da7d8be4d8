// AVX-512 with VNNI: sixteen rows to a register. Compiled with those flags, called where they exist.
#include <immintrin.h>

#include "dot.hpp"

namespace {

struct Wide {
    using Register = __m512i;
    static constexpr int kRows = 16, kFewTokens = 8, kGroupsAtOnce = 2, kStreamTokens = 2;
    static Register zero() { return _mm512_setzero_si512(); }
    static Register load(const uint8_t* at) { return _mm512_loadu_si512(at); }
    static Register broadcast(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return _mm512_set1_epi32(four);
    }
    template <int kField>
    static Register masked(Register codes) {
        return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(3 << 2 * kField)));
    }
    template <int kField>
    static Register field(Register codes) {
        return masked<0>(kField ? _mm512_srli_epi32(codes, 2 * kField) : codes);
    }
    static Register byte_codes(Register codes) { return codes; }
    static Register dot(Register sum, Register codes, Register x) {
        return _mm512_dpbusd_epi32(sum, codes, x);
    }
    template <int kBits>
    static Register add_shifted(Register sum, Register part) {
        return _mm512_add_epi32(sum, _mm512_srai_epi32(part, kBits));
    }
    static void store(int32_t* at, Register sum) { _mm512_storeu_si512(at, sum); }
};

struct Weigh {
    static void add(const int32_t* weight, const int32_t* y, uint64_t* sums, int lanes) {
        __m512i sum = _mm512_loadu_si512(sums);
        for (int l = 0; l < lanes; l += 16) {
            const __m512i w = _mm512_loadu_si512(weight + l), v = _mm512_loadu_si512(y + l);
            sum = _mm512_add_epi64(sum, _mm512_mul_epi32(w, v));
            sum = _mm512_add_epi64(
                sum, _mm512_mul_epi32(_mm512_srli_epi64(w, 32), _mm512_srli_epi64(v, 32)));
        }
        _mm512_storeu_si512(sums, sum);
    }
};

}  // namespace

namespace weightguard::ternary {
const Kernel avx512_kernel{"avx512", 128, ternary_pass<Wide>, byte_pass<Wide>, quantise, seal, finish<Weigh>};
}
