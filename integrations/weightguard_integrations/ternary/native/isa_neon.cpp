// NEON with the dot product instructions: four rows to a register, signed by signed.
#include <arm_neon.h>

#include "dot.hpp"

namespace {

struct Quarter {
    using Register = int32x4_t;
    static constexpr int kRows = 4, kFewTokens = 4, kGroupsAtOnce = 1, kStreamTokens = 0;
    static Register zero() { return vdupq_n_s32(0); }
    static Register load(const uint8_t* at) { return vreinterpretq_s32_u8(vld1q_u8(at)); }
    static Register broadcast(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return vdupq_n_s32(four);
    }
    template <int kField>
    static Register field(Register codes) {
        uint8x16_t bytes = vreinterpretq_u8_s32(codes);
        if constexpr (kField > 0) bytes = vshrq_n_u8(bytes, 2 * kField);
        return vreinterpretq_s32_u8(vandq_u8(bytes, vdupq_n_u8(3)));
    }
    // code - 128 as a signed byte: the weight itself
    static Register byte_codes(Register codes) {
        return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(128)));
    }
    static Register dot(Register sum, Register codes, Register x) {
        return vdotq_s32(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
    }
    static void store(int32_t* at, Register sum) { vst1q_s32(at, sum); }
};

}  // namespace

namespace weightguard::ternary {
const Kernel neon_kernel{"neon", 0, ternary_pass<Quarter>, byte_pass<Quarter>, quantise, seal, finish<PlainWeigh>};
}
