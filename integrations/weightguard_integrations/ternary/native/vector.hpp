// A register of 32-bit lanes, in the compiler's own vectors: what instruction sets have in common.
#pragma once

#include "common.hpp"

namespace {

template <int kBytes>
struct Vector {
    typedef int32_t Register __attribute__((vector_size(kBytes)));
    static constexpr int kRows = kBytes / 4;
    static Register load(const void* at) {
        Register lanes;
        std::memcpy(&lanes, at, sizeof lanes);
        return lanes;
    }
    static void store(int32_t* at, Register sum) { std::memcpy(at, &sum, sizeof sum); }
    static Register broadcast(const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return Register{} + four;
    }
    // Field `kField` of each byte where it lies: the code times 4^kField.
    template <int kField>
    static Register masked(Register codes) {
        return codes & static_cast<int32_t>(0x03030303u << 2 * kField);
    }
};

}  // namespace
