// Quantising, sealing and finishing, in loops that compilers turn into the vectors of the file that
// includes this one. Each instruction set compiles its own copy: hence the unnamed namespace.
#pragma once

#include <cstring>

#include "kernel.hpp"

namespace {

using namespace weightguard::ternary;

// Bytes that the stream of weights is fetched ahead, into the first cache and into the second: the
// first alone has too few lines under way to read memory at its full speed.
constexpr uintptr_t kNear = 2 << 10, kFar = 16 << 10;

template <int kGroups>
inline void fetch(const uint8_t* at) {
    // hints: addresses beyond the end do nothing
    for (int g = 0; g < kGroups; ++g) {
        const uintptr_t line = reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(g * kTileBytes);
        __builtin_prefetch(reinterpret_cast<const void*>(line + kFar), 0, 2);
        __builtin_prefetch(reinterpret_cast<const void*>(line + kNear), 0, 3);
    }
}

// The pass over one group of a panel.
inline Pass one_group(const Pass& p, int group) {
    Pass one = p;
    one.groups = 1;
    one.packed += group * kTileBytes;
    one.sums = reinterpret_cast<int32_t(*)[kPanelRows]>(p.sums[0] + group * kGroupRows);
    return one;
}

constexpr float kLeastMaximum = 1e-5f;  // activations below it are quantised as if it were there

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// binary16 to binary32, exact: the exponent is moved by a product, which also makes subnormals.
inline float from_half(uint16_t half) {
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    const float scaled = from_bits(magnitude) * 0x1p112f;
    const uint32_t wild = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return from_bits(bits_of(scaled) | wild | (half & 0x8000u) << 16);
}

// binary32 to binary16, to nearest, ties to even.
inline uint16_t to_half(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // adding 0.5 leaves the rounded subnormal in the low bits
    const uint32_t subnormal = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return static_cast<uint16_t>(half | sign);
}

inline uint16_t to_bfloat(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

constexpr int kStrip = 512;  // columns converted at a time

inline void load_strip(const Quantise& task, int64_t at, int n, float* strip) {
    if (task.number == Number::f32) {
        std::memcpy(strip, static_cast<const float*>(task.x) + at, sizeof(float) * n);
        return;
    }
    const uint16_t* x = static_cast<const uint16_t*>(task.x) + at;
    if (task.number == Number::f16)
        for (int i = 0; i < n; ++i) strip[i] = from_half(x[i]);
    else
        for (int i = 0; i < n; ++i) strip[i] = from_bits(static_cast<uint32_t>(x[i]) << 16);
}

inline int strip_at(const Quantise& task, int64_t at) {
    return static_cast<int>(task.columns - at < kStrip ? task.columns - at : kStrip);
}

// The bits of the greatest magnitude; NaN and infinities are above every number.
inline uint32_t greatest_bits(const Quantise& task) {
    float strip[kStrip];
    int32_t greatest = 0;
    for (int64_t at = 0; at < task.columns; at += kStrip) {
        const int n = strip_at(task, at);
        load_strip(task, at, n, strip);
        for (int i = 0; i < n; ++i) {
            const int32_t bits = static_cast<int32_t>(bits_of(strip[i]) & 0x7fffffffu);
            greatest = bits > greatest ? bits : greatest;
        }
    }
    return static_cast<uint32_t>(greatest);
}

inline void place_strip(const Quantise& task, int64_t at, int n, const int8_t* codes) {
    if (task.tokens == 1) {
        std::memcpy(task.out + at, codes, static_cast<size_t>(n));
        return;
    }
    int8_t* out = task.out + at * task.tokens;
    for (int i = 0; i < n; i += 4)
        std::memcpy(out + static_cast<int64_t>(i) * task.tokens, codes + i, 4);
}

void quantise(const Quantise& task) {
    const uint32_t greatest = greatest_bits(task);
    const bool wild = greatest >= 0x7f800000u;
    const float bound = from_bits(greatest) > kLeastMaximum ? from_bits(greatest) : kLeastMaximum;
    const float inverse = 127.0f / bound;
    constexpr float rounder = 0x1.8p23f;  // the integer is left in the low bits, ties to even
    float strip[kStrip];
    int8_t codes[kStrip];
    int32_t sum = 0;
    for (int64_t at = 0; at < task.padded_columns; at += kStrip) {
        const int64_t left = task.columns - at;
        const int n = static_cast<int>(left < 0 ? 0 : left < kStrip ? left : kStrip);
        const int64_t room = task.padded_columns - at;
        if (n) load_strip(task, at, n, strip);
        for (int i = 0; i < n; ++i) {
            const int32_t code = static_cast<int32_t>(bits_of(strip[i] * inverse + rounder)) -
                                 static_cast<int32_t>(0x4b400000);
            codes[i] = static_cast<int8_t>(wild ? 0 : code);
            sum += wild ? 0 : code;
        }
        const int padded = static_cast<int>(room < kStrip ? room : kStrip);
        std::memset(codes + n, 0, static_cast<size_t>(padded - n));
        place_strip(task, at, padded, codes);
    }
    // NaN times any sum is NaN: what holds NaN or an infinity gives NaN
    const float scale = wild ? from_bits(0x7fc00000u) : bound / 127.0f;
    *task.state = {scale, bits_of(scale), sum};
}

// A hash of the quantised activations: every step is a bijection of a lane, so that one changed
// word always shows. `bytes` is a multiple of 16.
typedef uint32_t Words __attribute__((vector_size(64)));

inline Words mixed(Words hash, const int8_t* at) {
    Words words;
    std::memcpy(&words, at, sizeof words);
    words = (hash ^ words) * kRowMix;
    return words << 15 | words >> 17;
}

void seal(const int8_t* x, size_t bytes, Seal& out) {
    Words hash[4] = {};
    size_t at = 0;
    for (; at + sizeof hash <= bytes; at += sizeof hash)
        for (int h = 0; h < 4; ++h) hash[h] = mixed(hash[h], x + at + h * sizeof(Words));
    int8_t rest[sizeof hash] = {};
    if (at < bytes) {
        std::memcpy(rest, x + at, bytes - at);
        for (int h = 0; h < 4; ++h) hash[h] = mixed(hash[h], rest + h * sizeof(Words));
    }
    static_assert(sizeof out == sizeof hash, "a seal is all lanes");
    std::memcpy(&out, hash, sizeof hash);
}

struct Lanes {
    int32_t weight[kPanelRows];
    float scale[kPanelRows];
};

inline void store(const Finish& task, int token, const float* values) {
    const int64_t left = task.rows - task.first_row;
    const int n = static_cast<int>(left < task.lanes ? left : task.lanes);
    const int64_t at = token * task.rows + task.first_row;
    if (task.number == Number::f32) {
        std::memcpy(static_cast<float*>(task.out) + at, values, sizeof(float) * n);
        return;
    }
    uint16_t* out = static_cast<uint16_t*>(task.out) + at;
    if (task.number == Number::f16)
        for (int l = 0; l < n; ++l) out[l] = to_half(values[l]);
    else
        for (int l = 0; l < n; ++l) out[l] = to_bfloat(values[l]);
}

// Adds weight * y of kPanelRows lanes to kWeighedLanes sums, in any order: they are added up later.
// Compilers find the widening product on some machines; the others bring their own.
struct PlainWeigh {
    static void add(const int32_t* weight, const int32_t* y, uint64_t* sums, int lanes) {
        for (int l = 0; l < lanes; l += kWeighedLanes)
            for (int i = 0; i < kWeighedLanes; ++i)
                sums[i] += static_cast<uint64_t>(static_cast<int64_t>(weight[l + i]) * y[l + i]);
    }
};

// kLanes is known to the compiler, so that the loops below have no remainders.
template <class Weigh, int kLanes>
void finish_lanes(const Finish& task) {
    Lanes lanes;
    for (int l = 0; l < kLanes; ++l)
        lanes.weight[l] = row_weight(static_cast<uint32_t>(task.first_row) + l);
    for (int l = 0; l < kLanes; ++l) {
        const int64_t row = task.first_row + l;
        lanes.scale[l] = !task.scale_each_row ? task.scales[0]
                         : row < task.rows    ? task.scales[row]
                                              : 0.0f;
    }
    if (task.scale_check) {
        uint64_t sum = 0;
        for (int l = 0; l < kLanes; ++l)
            sum += static_cast<uint64_t>(static_cast<int64_t>(lanes.weight[l])) *
                   bits_of(lanes.scale[l]);
        *task.scale_check += sum;
    }
    for (int token = 0; token < task.tokens; ++token) {
        const TokenState& state = task.states[token];
        const int32_t shift =
            static_cast<int32_t>(static_cast<uint32_t>(task.offset) * static_cast<uint32_t>(state.sum));
        int32_t y[kLanes];
        float values[kLanes];
        for (int l = 0; l < kLanes; ++l)
            y[l] = static_cast<int32_t>(static_cast<uint32_t>(task.sums[token][l]) -
                                        static_cast<uint32_t>(shift));
        if (task.weighted)
            Weigh::add(lanes.weight, y, task.weighted + token * kWeighedLanes, kLanes);
        for (int l = 0; l < kLanes; ++l)
            values[l] = static_cast<float>(y[l]) * (state.scale * lanes.scale[l]);
        store(task, token, values);
    }
}

template <class Weigh>
void finish(const Finish& task) {
    if (task.lanes == kPanelRows) finish_lanes<Weigh, kPanelRows>(task);
    else finish_lanes<Weigh, kGroupRows>(task);
}

}  // namespace
