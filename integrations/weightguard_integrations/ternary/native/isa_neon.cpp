// NEON with the dot product instructions: four rows to a register, signed by signed.
#include <arm_neon.h>

#include "dot.hpp"

namespace {

struct Quarter : Vector<16> {
    static constexpr int kFewTokens = 4, kGroupsAtOnce = 1, kStreamTokens = 0, kFieldSums = 4;
    // code - 128 as a signed byte: the weight itself
    static Register byte_codes(Register codes) {
        return codes ^ static_cast<int32_t>(0x80808080u);
    }
    static Register dot(Register sum, Register codes, Register x) {
        return (Register)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
    }
};

}  // namespace

namespace weightguard::ternary {
const Kernel neon_kernel = kernel_of<Quarter>("neon", 0, finish<PlainWeigh>);
}
