// Plain C++: what every other instruction set must equal.
#include "common.hpp"

namespace {

template <class Codes>
void pass(const Pass& p, int columns, Codes codes) {
    for (int token = 0; token < p.tokens; ++token)
        std::memset(p.sums[token], 0, sizeof(int32_t) * kGroupRows * p.groups);
    for (size_t tile = 0; tile < p.tiles; ++tile)
        for (int group = 0; group < p.groups; ++group) {
            int8_t x[16 * kTokens];
            const size_t size = static_cast<size_t>(columns) * p.tokens;
            std::memcpy(x, p.x + tile * size, size);
            const uint8_t* bytes = p.packed + tile * p.stride + group * kTileBytes;
            for (int field = 0; field < columns / 4; ++field)
                for (int token = 0; token < p.tokens; ++token)
                    codes(bytes, field, x + 4 * (field * p.tokens + token),
                          p.sums[token] + group * kGroupRows);
        }
}

void ternary_pass(const Pass& p) {
    pass(p, 16, [](const uint8_t* bytes, int field, const int8_t* x, int32_t* sums) {
        for (int row = 0; row < kGroupRows; ++row)
            for (int q = 0; q < 4; ++q) sums[row] += (bytes[4 * row + q] >> 2 * field & 3) * x[q];
    });
}

void byte_pass(const Pass& p) {
    pass(p, 4, [](const uint8_t* bytes, int, const int8_t* x, int32_t* sums) {
        for (int row = 0; row < kGroupRows; ++row)
            for (int q = 0; q < 4; ++q) sums[row] += bytes[4 * row + q] * x[q];
    });
}

}  // namespace

namespace weightguard::ternary {
const Kernel scalar_kernel{"scalar", 128, ternary_pass, byte_pass, quantise, seal, finish<PlainWeigh>};
}
