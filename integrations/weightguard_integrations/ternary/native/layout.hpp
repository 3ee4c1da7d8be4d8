// The packed layout (docs/spec/ternary-layout-v1.md): where a weight's bits lie, and how many check
// rows follow the weights. The same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weightguard::ternary {

constexpr int kGroupRows = 16;   // rows of a tile, one to a lane
constexpr int kTileBytes = 64;
constexpr int kPanelRows = 2 * kGroupRows;  // two groups share every broadcast of an activation
constexpr int kTokens = 8;       // tokens that one pass over a panel serves at most
constexpr int kColumnMultiple = 16;  // columns of x are padded to it with zeros

enum class Coding { ternary, bytes };

// How a coding stores weights: code = weight + offset, `tile_columns` columns to a tile.
struct CodingTraits {
    int offset;
    int tile_columns;
    int radix;           // base of the digits in the check rows
    int most_columns;    // sums of any codes and activations up to here fit 32 bits
    int64_t most_rows;
};
constexpr CodingTraits traits(Coding coding) {
    return coding == Coding::ternary ? CodingTraits{1, 16, 3, 1 << 18, 1 << 24}
                                     : CodingTraits{128, 4, 256, 1 << 16, 1 << 24};
}

// The sizes of one packed matrix. Groups 0 to groups-1 hold weights, the others check rows: the
// all-ones row first, then the digits, least significant first.
struct Layout {
    Coding coding;
    int64_t rows, columns;
    int digits;

    int64_t groups() const { return (rows + kGroupRows - 1) / kGroupRows; }
    int64_t check_groups() const { return (1 + digits + kGroupRows - 1) / kGroupRows; }
    int64_t all_groups() const { return groups() + check_groups(); }
    int64_t padded_columns() const {
        return (columns + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple;
    }
    int64_t tiles() const { return padded_columns() / traits(coding).tile_columns; }
    int64_t group_bytes() const { return tiles() * kTileBytes; }
    int64_t bytes() const { return all_groups() * group_bytes(); }
    int64_t panels() const { return (all_groups() + 1) / 2; }
    // Tiles of the two groups of a panel alternate; a last group without a partner is alone.
    bool paired(int64_t panel) const { return 2 * panel + 1 < all_groups(); }

    // Where the tiles of `group` start, and how far apart they are.
    int64_t group_start(int64_t group) const {
        const int64_t panel = group / 2;
        return panel * 2 * group_bytes() + (paired(panel) ? group % 2 * kTileBytes : 0);
    }
    int64_t tile_stride(int64_t group) const {
        return paired(group / 2) ? 2 * kTileBytes : kTileBytes;
    }
};

// The odd weight of a row in the check, below 2^16 in magnitude: mixed bits of its index, so that
// changes in two rows do not cancel by any simple relation of the rows.
constexpr uint32_t kRowStep = 0x9E3779B1u, kRowMix = 0x85EBCA77u;
inline int32_t row_weight(uint32_t row) {
    uint32_t v = (row + 1) * kRowStep;
    v = (v ^ v >> 15) * kRowMix;
    return static_cast<int32_t>(v) >> 15 | 1;
}

}  // namespace weightguard::ternary
