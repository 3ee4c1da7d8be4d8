// AVX-512 with VNNI: sixteen rows to a register. Compiled with those flags, called where they exist.
#include <immintrin.h>

#include "dot.hpp"

namespace {

struct Wide : Vector<64> {
    static constexpr int kFewTokens = 8, kGroupsAtOnce = 2, kStreamTokens = 2, kFieldSums = 4;
    static Register byte_codes(Register codes) { return codes; }
    static Register dot(Register sum, Register codes, Register x) {
        return (Register)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
    }
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
const Kernel avx512_kernel = kernel_of<Wide>("avx512", 128, finish<Weigh>);
}
