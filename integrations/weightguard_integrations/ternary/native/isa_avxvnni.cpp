// AVX2 with VNNI: eight rows to a register. Compiled with -mavxvnni; the tests compile it once more
// for the 256-bit form of AVX-512 VNNI, which is the same arithmetic.
#include <immintrin.h>

#include "dot.hpp"
#include "weigh_avx2.hpp"

namespace {

struct Half : Vector<32> {
    static constexpr int kFewTokens = 4, kGroupsAtOnce = 1, kStreamTokens = 1, kFieldSums = 2;
    static Register byte_codes(Register codes) { return codes; }
    static Register dot(Register sum, Register codes, Register x) {
#ifdef __AVX512VNNI__
        return (Register)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
#else
        return (Register)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
#endif
    }
};

}  // namespace

namespace weightguard::ternary {
const Kernel avxvnni_kernel = kernel_of<Half>("avxvnni", 128, finish<Weigh>);
}
