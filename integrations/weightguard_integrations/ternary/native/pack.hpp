// From weights to the packed layout with its check rows, and back.
#pragma once

#include <vector>

#include "layout.hpp"

namespace weightguard::ternary {

// The first element outside the alphabet as a flat index, or -1.
int64_t first_invalid(Coding coding, const int8_t* weights, int64_t elements);

// The check vector c[k] = sum over rows of row_weight(row) * weights[row][k].
std::vector<int64_t> check_vector(const int8_t* weights, int64_t rows, int64_t columns);

// How many balanced digits to base `radix` hold every element of `values`; at least one.
int digits_needed(const std::vector<int64_t>& values, int radix);

// Fills layout.bytes() bytes at `packed`; `check` is check_vector's result.
void pack(const Layout& layout, const int8_t* weights, const std::vector<int64_t>& check,
          uint8_t* packed);

// Weights as stored, rows * columns of them; a damaged ternary code reads as 2.
void unpack(const Layout& layout, const uint8_t* packed, int8_t* weights);

// The check vector that the check rows spell, mod 2^64.
std::vector<int64_t> stored_check_vector(const Layout& layout, const uint8_t* packed);

// sum of row_weight(i) * bits[i]: any one changed scale changes it.
uint64_t scale_check(const float* scales, int64_t count);

}  // namespace weightguard::ternary
