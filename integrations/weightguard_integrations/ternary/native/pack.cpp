#include "pack.hpp"

#include <algorithm>
#include <cstring>

namespace weightguard::ternary {

namespace {

// Byte and shift of the code in (group lane, column), from the group's start.
struct Place {
    int64_t byte;
    int shift;
};

Place place(Coding coding, int64_t stride, int lane, int64_t column) {
    if (coding == Coding::bytes) return {column / 4 * stride + lane * 4 + column % 4, 0};
    return {column / 16 * stride + lane * 4 + column % 4, static_cast<int>(column / 4 % 4 * 2)};
}

// One packed row, written weight by weight into zeroed bytes.
class RowWriter {
  public:
    RowWriter(const Layout& layout, int64_t row, uint8_t* packed)
        : layout_(layout), stride_(layout.tile_stride(row / kGroupRows)),
          lane_(static_cast<int>(row % kGroupRows)),
          start_(packed + layout.group_start(row / kGroupRows)) {}

    template <class Weight>
    void fill(Weight weight) {
        const int offset = traits(layout_.coding).offset;
        for (int64_t k = 0; k < layout_.padded_columns(); ++k) {
            const int value = k < layout_.columns ? weight(k) : 0;
            const Place at = place(layout_.coding, stride_, lane_, k);
            start_[at.byte] |= static_cast<uint8_t>((value + offset) << at.shift);
        }
    }

  private:
    const Layout& layout_;
    int64_t stride_;
    int lane_;
    uint8_t* start_;
};

int read(const Layout& layout, const uint8_t* packed, int64_t row, int64_t column) {
    const int64_t group = row / kGroupRows;
    const Place at = place(layout.coding, layout.tile_stride(group),
                           static_cast<int>(row % kGroupRows), column);
    const int byte = packed[layout.group_start(group) + at.byte];
    const int code = layout.coding == Coding::bytes ? byte : byte >> at.shift & 3;
    return code - traits(layout.coding).offset;
}

// The lowest balanced digit, in [-(radix-1)/2, radix/2] shifted for even bases; `value` loses it.
int take_digit(int64_t& value, int radix) {
    int64_t digit = value % radix;
    if (digit > (radix - 1) / 2) digit -= radix;
    if (digit < -(radix / 2)) digit += radix;
    value = (value - digit) / radix;
    return static_cast<int>(digit);
}

}  // namespace

int64_t first_invalid(Coding coding, const int8_t* weights, int64_t elements) {
    if (coding == Coding::bytes) return -1;
    const auto* bad = std::find_if(weights, weights + elements,
                                   [](int8_t w) { return w < -1 || w > 1; });
    return bad == weights + elements ? -1 : bad - weights;
}

std::vector<int64_t> check_vector(const int8_t* weights, int64_t rows, int64_t columns) {
    std::vector<int64_t> sums(static_cast<size_t>(columns));
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t weight = row_weight(static_cast<uint32_t>(row));
        const int8_t* w = weights + row * columns;
        for (int64_t k = 0; k < columns; ++k) sums[static_cast<size_t>(k)] += weight * w[k];
    }
    return sums;
}

int digits_needed(const std::vector<int64_t>& values, int radix) {
    int most = 1;
    for (int64_t value : values) {
        int digits = 0;
        while (value) {
            take_digit(value, radix);
            ++digits;
        }
        most = std::max(most, digits);
    }
    return most;
}

void pack(const Layout& layout, const int8_t* weights, const std::vector<int64_t>& check,
          uint8_t* packed) {
    std::memset(packed, 0, static_cast<size_t>(layout.bytes()));
    const int64_t first_check = layout.groups() * kGroupRows;
    for (int64_t row = 0; row < first_check; ++row) {
        const int8_t* w = weights + row * layout.columns;
        const bool real = row < layout.rows;
        RowWriter(layout, row, packed).fill([=](int64_t k) { return real ? w[k] : 0; });
    }
    RowWriter(layout, first_check, packed).fill([](int64_t) { return 1; });
    std::vector<int64_t> rest = check;
    const int radix = traits(layout.coding).radix;
    for (int64_t row = first_check + 1; row < layout.all_groups() * kGroupRows; ++row)
        RowWriter(layout, row, packed).fill([&](int64_t k) {
            return take_digit(rest[static_cast<size_t>(k)], radix);
        });
}

void unpack(const Layout& layout, const uint8_t* packed, int8_t* weights) {
    for (int64_t row = 0; row < layout.rows; ++row)
        for (int64_t k = 0; k < layout.columns; ++k)
            weights[row * layout.columns + k] =
                static_cast<int8_t>(read(layout, packed, row, k));
}

std::vector<int64_t> stored_check_vector(const Layout& layout, const uint8_t* packed) {
    const int64_t first = layout.groups() * kGroupRows + 1;
    std::vector<int64_t> values(static_cast<size_t>(layout.columns));
    uint64_t place_value = 1;
    for (int digit = 0; digit < layout.digits; ++digit) {
        for (int64_t k = 0; k < layout.columns; ++k) {
            const auto term = place_value * static_cast<uint64_t>(
                static_cast<int64_t>(read(layout, packed, first + digit, k)));
            auto& value = values[static_cast<size_t>(k)];
            value = static_cast<int64_t>(static_cast<uint64_t>(value) + term);
        }
        place_value *= static_cast<uint64_t>(traits(layout.coding).radix);
    }
    return values;
}

uint64_t scale_check(const float* scales, int64_t count) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, scales + i, sizeof bits);
        sum += static_cast<uint64_t>(static_cast<int64_t>(row_weight(static_cast<uint32_t>(i)))) *
               bits;
    }
    return sum;
}

}  // namespace weightguard::ternary
