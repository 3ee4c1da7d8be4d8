// What one block's scan needs and gives, and the table of instruction sets that can do it.
#pragma once

#include <cstdint>

namespace weightguard {

enum class Format : int {
    u2, u4, u8, u16, u32, u64, i2, i4, i8, i16, i32, i64,
    f64, f32, f16, bf16, e4m3, e5m2, e4m3fnuz, e5m2fnuz, e8m0, e2m3, e3m2, f4,
};

// Residues of the rows that `nbytes` bytes from byte `start` of the tensor touch; both are
// multiples of `word_bytes`. `out` has two words for each such row and is overwritten.
struct Residues {
    const uint8_t* data;
    uint64_t start, nbytes, row_bytes;
    unsigned word_bytes;
    uint64_t* out;
};

enum Count { finite, nan, inf, zero, subnormal, min_bits, max_bits, counts };

// Statistics of `scalars` scalars from scalar `first` of the tensor on, added to what the outputs
// hold: `magnitudes` has one element for each row touched, `columns` (or null) one for each
// scalar of a row, `count` the numbers above (the extremes mean something once finite > 0).
struct Statistics {
    Format format;
    const uint8_t* values;
    uint64_t first, scalars, row_scalars;
    void* magnitudes;
    void* columns;
    uint64_t* count;
    double* sums;  // sum, sum of squares
};

struct Kernel {
    const char* name;
    void (*residues)(const Residues&);
    void (*statistics)(const Statistics&);
    // Both in one pass over the bytes, for formats whose scalars are the residues' words.
    void (*fused)(const Residues&, const Statistics&);
};

constexpr unsigned kChunkScalars = 4096;
constexpr unsigned kSumLanes = 32;

extern const Kernel portable_kernel;
extern const Kernel avx2_kernel;
extern const Kernel avx512_kernel;
extern const Kernel neon_kernel;

}  // namespace weightguard
