// A whole product: quantise, multiply, check, scale.
#pragma once

#include <vector>

#include "kernel.hpp"

namespace weightguard::ternary {

// A packed matrix as it lies in memory, and what its scales added up to when it was packed.
struct Matrix {
    Layout layout;
    const uint8_t* packed;
    const float* scales;
    bool scale_each_row;
    uint64_t scale_check;
};

// For drills: `mask` is xored into a 32-bit word after it was made and before it is used.
enum class Site { activation, accumulator, token_scale };
struct Drill {
    Site site;
    int64_t token, index;  // index: column, or packed row; unused for a token's scale
    uint32_t mask;
};

struct Call {
    const Matrix* matrix;
    const void* x;
    Number x_number;
    int64_t tokens;
    void* out;
    Number out_number;
    bool verify;
    int threads;
    std::vector<Drill> drills;
};

// What disagreed, for one token. A product is right when nothing did.
enum Alarm : uint8_t {
    kWeightsAlarm = 1,      // the weighted sum of the outputs is not what the check rows say
    kActivationsAlarm = 2,  // the all-ones row is not the quantiser's sum
    kSealAlarm = 4,         // the quantised activations changed after they were made
    kScalesAlarm = 8,       // the weights' scales changed
    kTokenScaleAlarm = 16,  // the token's scale or sum changed
};

// Alarms of each token; empty when there are none, always so without `verify`.
std::vector<uint8_t> multiply(const Call& call, const Kernel& kernel);

}  // namespace weightguard::ternary
