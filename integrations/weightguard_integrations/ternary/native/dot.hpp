// Passes for instruction sets that multiply four bytes at a time into 32-bit lanes. The including
// file defines V, what one register does: a Vector of vector.hpp with
//   dot, byte_codes, kFewTokens (tokens that fit the registers at once), kGroupsAtOnce,
//   kStreamTokens (tokens that are streamed; none where codes above 127 would be read as signed),
//   kFieldSums (accumulators of a register of rows in a stream: 2, or one for each field).
#pragma once

#include "vector.hpp"

namespace {

// Field f is read where it lies; those beyond kFieldSums are shifted to the place of an earlier one.
template <class V, int kField, int kParts, int kTokensNow>
inline __attribute__((always_inline)) void stream_step(
    const typename V::Register (&codes)[kParts], const int8_t* x,
    typename V::Register (&sums)[kTokensNow][kParts][V::kFieldSums]) {
    constexpr int place = kField % V::kFieldSums, shift = 2 * (kField - place);
    typename V::Register xs[kTokensNow];
    for (int token = 0; token < kTokensNow; ++token) xs[token] = V::broadcast(x + 4 * token);
    for (int part = 0; part < kParts; ++part) {
        const typename V::Register weights = V::template masked<place>(codes[part] >> shift);
        for (int token = 0; token < kTokensNow; ++token)
            sums[token][part][place] = V::dot(sums[token][part][place], weights, xs[token]);
    }
}

// Few tokens, streaming: the accumulators of fields hold 1, 4, 16 or 64 times their sums until the
// end.
template <class V, int kGroups, int kTokensNow>
__attribute__((noinline)) void stream(const Pass& p) {
    constexpr int parts = kGroups * kGroupRows / V::kRows;
    typename V::Register sums[kTokensNow][parts][V::kFieldSums] = {};
    const uint8_t* w = p.packed;
    const int8_t* x = p.x;
    for (size_t tile = 0; tile < p.tiles; ++tile, w += p.stride, x += 16 * kTokensNow) {
        fetch<kGroups>(w);
        typename V::Register codes[parts];
        for (int part = 0; part < parts; ++part) codes[part] = V::load(w + part * V::kRows * 4);
        stream_step<V, 0>(codes, x, sums);
        stream_step<V, 1>(codes, x + 4 * kTokensNow, sums);
        stream_step<V, 2>(codes, x + 8 * kTokensNow, sums);
        stream_step<V, 3>(codes, x + 12 * kTokensNow, sums);
    }
    for (int token = 0; token < kTokensNow; ++token)
        for (int part = 0; part < parts; ++part) {
            typename V::Register sum = sums[token][part][0];
            for (int field = 1; field < V::kFieldSums; ++field)
                sum += sums[token][part][field] >> 2 * field;
            V::store(p.sums[token] + part * V::kRows, sum);
        }
}

constexpr int kWhole = -1;  // in place of a field: the byte is one code

template <class V, int kField>
inline __attribute__((always_inline)) typename V::Register decoded(typename V::Register codes) {
    if constexpr (kField == kWhole) return V::byte_codes(codes);
    else return V::template masked<0>(codes >> 2 * kField);
}

template <class V, int kField, int kParts, int kTokensNow>
inline __attribute__((always_inline)) void field_step(
    const typename V::Register (&codes)[kParts], const int8_t* x,
    typename V::Register (&sums)[kTokensNow][kParts]) {
    typename V::Register weights[kParts];
    for (int part = 0; part < kParts; ++part) weights[part] = decoded<V, kField>(codes[part]);
    for (int token = 0; token < kTokensNow; ++token) {
        const typename V::Register xs = V::broadcast(x + 4 * token);
        for (int part = 0; part < kParts; ++part)
            sums[token][part] = V::dot(sums[token][part], weights[part], xs);
    }
}

// `kTokensNow` tokens from token `first` on, in one accumulator each.
template <class V, Coding kCoding, int kGroups, int kTokensNow>
__attribute__((noinline)) void block(const Pass& p, int first) {
    constexpr int parts = kGroups * kGroupRows / V::kRows;
    constexpr size_t words = traits(kCoding).tile_columns / 4;
    typename V::Register sums[kTokensNow][parts] = {};
    const uint8_t* w = p.packed;
    const int8_t* x = p.x + 4 * first;
    const size_t next = static_cast<size_t>(4) * p.tokens;
    for (size_t tile = 0; tile < p.tiles; ++tile, w += p.stride, x += words * next) {
        fetch<kGroups>(w);
        typename V::Register codes[parts];
        for (int part = 0; part < parts; ++part) codes[part] = V::load(w + part * V::kRows * 4);
        if constexpr (kCoding == Coding::bytes) {
            field_step<V, kWhole>(codes, x, sums);
        } else {
            field_step<V, 0>(codes, x, sums);
            field_step<V, 1>(codes, x + next, sums);
            field_step<V, 2>(codes, x + 2 * next, sums);
            field_step<V, 3>(codes, x + 3 * next, sums);
        }
    }
    for (int token = 0; token < kTokensNow; ++token)
        for (int part = 0; part < parts; ++part)
            V::store(p.sums[first + token] + part * V::kRows, sums[token][part]);
}

template <class V, Coding kCoding, int kGroups>
void few_tokens(const Pass& p, int first, int tokens) {
    if constexpr (V::kFewTokens == 8) {
        switch (tokens) {
            case 8: return block<V, kCoding, kGroups, 8>(p, first);
            case 7: return block<V, kCoding, kGroups, 7>(p, first);
            case 6: return block<V, kCoding, kGroups, 6>(p, first);
            case 5: return block<V, kCoding, kGroups, 5>(p, first);
            default: break;
        }
    }
    switch (tokens) {
        case 4: return block<V, kCoding, kGroups, 4>(p, first);
        case 3: return block<V, kCoding, kGroups, 3>(p, first);
        case 2: return block<V, kCoding, kGroups, 2>(p, first);
        default: return block<V, kCoding, kGroups, 1>(p, first);
    }
}

template <class V, Coding kCoding, int kGroups>
void all_tokens(const Pass& p) {
    // halves of equal size: a last token alone would cost as much as several
    const int turns = (p.tokens + V::kFewTokens - 1) / V::kFewTokens;
    for (int turn = 0, first = 0; turn < turns; ++turn) {
        const int tokens = (p.tokens - first + turns - turn - 1) / (turns - turn);
        few_tokens<V, kCoding, kGroups>(p, first, tokens);
        first += tokens;
    }
}

template <class V, int kTokensNow>
void stream_groups(const Pass& p) {
    if (p.groups == 2) stream<V, 2, kTokensNow>(p);
    else stream<V, 1, kTokensNow>(p);
}

// One group at a time where a panel of several tokens does not fit the registers.
template <class V, Coding kCoding>
void pass(const Pass& p) {
    if constexpr (kCoding == Coding::ternary && V::kStreamTokens >= 1)
        if (p.tokens == 1) return stream_groups<V, 1>(p);
    if constexpr (kCoding == Coding::ternary && V::kStreamTokens >= 2)
        if (p.tokens == 2) return stream_groups<V, 2>(p);
    if (p.groups == 1) return all_tokens<V, kCoding, 1>(p);
    if constexpr (V::kGroupsAtOnce == 2) {
        all_tokens<V, kCoding, 2>(p);
    } else {
        for (int group = 0; group < 2; ++group) all_tokens<V, kCoding, 1>(one_group(p, group));
    }
}

template <class V>
constexpr Kernel kernel_of(const char* name, int byte_offset, void (*finish)(const Finish&)) {
    return {name,     byte_offset, pass<V, Coding::ternary>, pass<V, Coding::bytes>,
            quantise, seal,        finish};
}

}  // namespace
