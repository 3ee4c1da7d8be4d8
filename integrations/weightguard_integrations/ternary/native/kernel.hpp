// What one instruction set provides. Everything else is shared, and the integers are the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.hpp"

namespace weightguard::ternary {

// A pass over one panel, or over one group of it: tiles `stride` bytes apart, `tiles` of them, with
// `groups` adjacent groups in each step. x is interleaved: four columns of each of `tokens` tokens
// in turn. Overwrites sums[token][lane of panel] with sum of code * x for the lanes of the groups.
struct Pass {
    const uint8_t* packed;
    size_t stride, tiles;
    int groups;
    const int8_t* x;
    int tokens;
    int32_t (*sums)[kPanelRows];
};

constexpr int kWeighedLanes = 8;

enum class Number { f32, f16, bf16 };

// One token's activations as the products take them; `scale` twice, so that a change shows.
struct TokenState {
    float scale;
    uint32_t scale_copy;
    int32_t sum;
};

// A hash of quantised activations; the same for one kernel in one process only.
struct Seal {
    uint32_t lanes[64];
};

struct Quantise {
    const void* x;
    Number number;
    int64_t columns, padded_columns;
    int8_t* out;  // at the token's place of the interleaved block
    int tokens;   // of that block
    TokenState* state;
};

// From one pass's sums to outputs: y = sum - offset * token sum, out = y * (token scale * scale).
struct Finish {
    const int32_t (*sums)[kPanelRows];
    int tokens;
    const TokenState* states;
    int offset;
    int lanes;           // of the panel that hold weights: 16 or 32
    int64_t first_row, rows;
    const float* scales;  // one, or one a row
    bool scale_each_row;
    void* out;           // of the first token, row 0
    Number number;
    uint64_t* weighted;  // kWeighedLanes a token: += parts of the sum of row_weight * y, mod 2^64;
                         // null when unchecked
    uint64_t* scale_check;  // += sum of row_weight * bits of the rows' scales; may be null
};

struct Kernel {
    const char* name;
    int byte_offset;  // what a pass over byte codes adds to every weight
    void (*ternary)(const Pass&);
    void (*bytes)(const Pass&);
    void (*quantise)(const Quantise&);
    void (*seal)(const int8_t* x, size_t bytes, Seal& out);
    void (*finish)(const Finish&);
};

extern const Kernel scalar_kernel, avx2_kernel, avxvnni_kernel, avx512_kernel, neon_kernel;

}  // namespace weightguard::ternary
