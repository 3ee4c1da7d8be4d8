// Passes for instruction sets that multiply four bytes at a time into 32-bit lanes. The including
// file defines `Vector`, what one register does:
//   Register, kRows (rows in a register), kFewTokens (tokens that fit the registers at once),
//   kGroupsAtOnce, kStreamTokens (tokens that fit with an accumulator for each field; none where
//   codes above 127 would be read as signed), zero, load, broadcast, masked<field>, field<field>,
//   byte_codes, dot, add_shifted<bits>, store.
#pragma once

#include "common.hpp"

namespace {

constexpr size_t kAhead = 4096;  // bytes that the stream of weights is fetched ahead

template <int kGroups>
inline void fetch(const uint8_t* at) {
    // hints: addresses beyond the end do nothing
    for (int g = 0; g < kGroups; ++g)
        __builtin_prefetch(reinterpret_cast<const void*>(
            reinterpret_cast<uintptr_t>(at) + kAhead + static_cast<size_t>(g) * kTileBytes));
}

template <class V, int kField, int kParts, int kTokensNow>
inline __attribute__((always_inline)) void stream_step(
    const typename V::Register (&codes)[kParts], const int8_t* x,
    typename V::Register (&sums)[kTokensNow][kParts][4]) {
    typename V::Register xs[kTokensNow];
    for (int token = 0; token < kTokensNow; ++token) xs[token] = V::broadcast(x + 4 * token);
    for (int part = 0; part < kParts; ++part) {
        const typename V::Register weights = V::template masked<kField>(codes[part]);
        for (int token = 0; token < kTokensNow; ++token)
            sums[token][part][kField] = V::dot(sums[token][part][kField], weights, xs[token]);
    }
}

// Few tokens, streaming: codes are masked where they lie, and each of the four fields has its own
// accumulator, scaled by 1, 4, 16 or 64 until the end.
template <class V, int kGroups, int kTokensNow>
__attribute__((noinline)) void stream(const Pass& p) {
    constexpr int parts = kGroups * kGroupRows / V::kRows;
    typename V::Register sums[kTokensNow][parts][4];
    for (auto& token : sums)
        for (auto& part : token)
            for (auto& sum : part) sum = V::zero();
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
            const auto& four = sums[token][part];
            typename V::Register sum = V::template add_shifted<2>(four[0], four[1]);
            sum = V::template add_shifted<4>(sum, four[2]);
            sum = V::template add_shifted<6>(sum, four[3]);
            V::store(p.sums[token] + part * V::kRows, sum);
        }
}

template <class V, int kField, int kParts, int kTokensNow>
inline __attribute__((always_inline)) void field_step(
    const typename V::Register (&codes)[kParts], const int8_t* x,
    typename V::Register (&sums)[kTokensNow][kParts]) {
    typename V::Register weights[kParts];
    for (int part = 0; part < kParts; ++part) weights[part] = V::template field<kField>(codes[part]);
    for (int token = 0; token < kTokensNow; ++token) {
        const typename V::Register xs = V::broadcast(x + 4 * token);
        for (int part = 0; part < kParts; ++part)
            sums[token][part] = V::dot(sums[token][part], weights[part], xs);
    }
}

// `kTokensNow` tokens from token `first` on, in one accumulator each.
template <class V, int kGroups, int kTokensNow>
__attribute__((noinline)) void ternary_block(const Pass& p, int first) {
    constexpr int parts = kGroups * kGroupRows / V::kRows;
    typename V::Register sums[kTokensNow][parts];
    for (auto& token : sums)
        for (auto& sum : token) sum = V::zero();
    const uint8_t* w = p.packed;
    const int8_t* x = p.x + 4 * first;
    const size_t next = static_cast<size_t>(4) * p.tokens;
    for (size_t tile = 0; tile < p.tiles; ++tile, w += p.stride, x += 4 * next) {
        fetch<kGroups>(w);
        typename V::Register codes[parts];
        for (int part = 0; part < parts; ++part) codes[part] = V::load(w + part * V::kRows * 4);
        field_step<V, 0>(codes, x, sums);
        field_step<V, 1>(codes, x + next, sums);
        field_step<V, 2>(codes, x + 2 * next, sums);
        field_step<V, 3>(codes, x + 3 * next, sums);
    }
    for (int token = 0; token < kTokensNow; ++token)
        for (int part = 0; part < parts; ++part)
            V::store(p.sums[first + token] + part * V::kRows, sums[token][part]);
}

template <class V, int kGroups, int kTokensNow>
__attribute__((noinline)) void byte_block(const Pass& p, int first) {
    constexpr int parts = kGroups * kGroupRows / V::kRows;
    typename V::Register sums[kTokensNow][parts];
    for (auto& token : sums)
        for (auto& sum : token) sum = V::zero();
    const uint8_t* w = p.packed;
    const int8_t* x = p.x + 4 * first;
    const size_t next = static_cast<size_t>(4) * p.tokens;
    for (size_t tile = 0; tile < p.tiles; ++tile, w += p.stride, x += next) {
        fetch<kGroups>(w);
        typename V::Register weights[parts];
        for (int part = 0; part < parts; ++part)
            weights[part] = V::byte_codes(V::load(w + part * V::kRows * 4));
        for (int token = 0; token < kTokensNow; ++token) {
            const typename V::Register xs = V::broadcast(x + 4 * token);
            for (int part = 0; part < parts; ++part)
                sums[token][part] = V::dot(sums[token][part], weights[part], xs);
        }
    }
    for (int token = 0; token < kTokensNow; ++token)
        for (int part = 0; part < parts; ++part)
            V::store(p.sums[first + token] + part * V::kRows, sums[token][part]);
}

template <class V, int kGroups, int kTokensNow>
void block(const Pass& p, Coding coding, int first) {
    if (coding == Coding::ternary) ternary_block<V, kGroups, kTokensNow>(p, first);
    else byte_block<V, kGroups, kTokensNow>(p, first);
}

template <class V, int kGroups>
void few_tokens(const Pass& p, Coding coding, int first, int tokens) {
    if constexpr (V::kFewTokens == 8) {
        switch (tokens) {
            case 8: return block<V, kGroups, 8>(p, coding, first);
            case 7: return block<V, kGroups, 7>(p, coding, first);
            case 6: return block<V, kGroups, 6>(p, coding, first);
            case 5: return block<V, kGroups, 5>(p, coding, first);
            default: break;
        }
    }
    switch (tokens) {
        case 4: return block<V, kGroups, 4>(p, coding, first);
        case 3: return block<V, kGroups, 3>(p, coding, first);
        case 2: return block<V, kGroups, 2>(p, coding, first);
        default: return block<V, kGroups, 1>(p, coding, first);
    }
}

template <class V, int kGroups>
void all_tokens(const Pass& p, Coding coding) {
    if (coding == Coding::ternary && p.tokens <= V::kStreamTokens) {
        if constexpr (V::kStreamTokens >= 1)
            if (p.tokens == 1) return stream<V, kGroups, 1>(p);
        if constexpr (V::kStreamTokens >= 2)
            if (p.tokens == 2) return stream<V, kGroups, 2>(p);
    }
    // halves of equal size: a last token alone would cost as much as several
    const int turns = (p.tokens + V::kFewTokens - 1) / V::kFewTokens;
    for (int turn = 0, first = 0; turn < turns; ++turn) {
        const int tokens = (p.tokens - first + turns - turn - 1) / (turns - turn);
        few_tokens<V, kGroups>(p, coding, first, tokens);
        first += tokens;
    }
}

// One group at a time where a panel does not fit the registers.
template <class V>
void pass(const Pass& p, Coding coding) {
    if (p.groups == 1) return all_tokens<V, 1>(p, coding);
    if constexpr (V::kGroupsAtOnce == 2) {
        all_tokens<V, 2>(p, coding);
    } else {
        for (int group = 0; group < 2; ++group) {
            Pass half = p;
            half.groups = 1;
            half.packed += group * kTileBytes;
            half.sums = reinterpret_cast<int32_t(*)[kPanelRows]>(p.sums[0] + group * kGroupRows);
            all_tokens<V, 1>(half, coding);
        }
    }
}

template <class V>
void ternary_pass(const Pass& p) { pass<V>(p, Coding::ternary); }
template <class V>
void byte_pass(const Pass& p) { pass<V>(p, Coding::bytes); }

}  // namespace
