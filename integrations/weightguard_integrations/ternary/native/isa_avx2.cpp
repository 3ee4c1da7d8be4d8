// AVX2: bytes are multiplied in pairs into 16 bits, which are added up only as long as any code and
// any activation fit, then widened.
#include <immintrin.h>

#include "vector.hpp"
#include "weigh_avx2.hpp"

namespace {

using Register = __m256i;

constexpr int kParts = 2;  // registers of eight rows to a group

inline Register load(const uint8_t* at) { return (Register)Vector<32>::load(at); }
inline Register four(const int8_t* x) { return (Register)Vector<32>::broadcast(x); }
inline void store(int32_t* at, Register sum) { Vector<32>::store(at, (Vector<32>::Register)sum); }
inline Register widened(Register pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// One token. Fields 0 and 2 are read as they are, 1 and 3 four times as large, so that one shift
// serves all; a run of five tiles adds at most 10 * 2 * 12 * 128 = 30720.
template <int kGroups>
__attribute__((noinline)) void stream(const Pass& p) {
    constexpr int parts = kGroups * kParts;
    constexpr size_t run = 5;
    const Register low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    Register sums[parts], fours[parts];
    for (int part = 0; part < parts; ++part) sums[part] = fours[part] = _mm256_setzero_si256();
    const uint8_t* w = p.packed;
    const int8_t* x = p.x;
    for (size_t tile = 0; tile < p.tiles; tile += run) {
        const size_t stop = tile + run < p.tiles ? run : p.tiles - tile;
        Register one[parts], quad[parts];
        for (int part = 0; part < parts; ++part) one[part] = quad[part] = _mm256_setzero_si256();
        for (size_t t = 0; t < stop; ++t, w += p.stride, x += 16) {
            fetch<kGroups>(w);
            const Register x0 = four(x), x1 = four(x + 4), x2 = four(x + 8), x3 = four(x + 12);
            for (int part = 0; part < parts; ++part) {
                const Register codes = load(w + part * 32), upper = _mm256_srli_epi16(codes, 4);
                const auto add = [](Register sum, Register c, Register xs) {
                    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(c, xs));
                };
                one[part] = add(one[part], _mm256_and_si256(codes, low), x0);
                quad[part] = add(quad[part], _mm256_and_si256(codes, high), x1);
                one[part] = add(one[part], _mm256_and_si256(upper, low), x2);
                quad[part] = add(quad[part], _mm256_and_si256(upper, high), x3);
            }
        }
        for (int part = 0; part < parts; ++part) {
            sums[part] = _mm256_add_epi32(sums[part], widened(one[part]));
            fours[part] = _mm256_add_epi32(fours[part], widened(quad[part]));
        }
    }
    for (int part = 0; part < parts; ++part)
        store(p.sums[0] + part * 8,
              _mm256_add_epi32(sums[part], _mm256_srai_epi32(fours[part], 2)));
}

// `kTokensNow` tokens from `first` on, one group; a run of ten tiles adds at most
// 40 * 2 * 3 * 128 = 30720 to 16 bits.
template <int kTokensNow>
__attribute__((noinline)) void ternary_block(const Pass& p, int first) {
    constexpr size_t run = 10;
    const Register low = _mm256_set1_epi8(3);
    Register sums[kTokensNow][kParts] = {};
    const uint8_t* w = p.packed;
    const int8_t* x = p.x + 4 * first;
    const size_t next = static_cast<size_t>(4) * p.tokens;
    for (size_t tile = 0; tile < p.tiles; tile += run) {
        const size_t stop = tile + run < p.tiles ? run : p.tiles - tile;
        Register pairs[kTokensNow][kParts];
        for (auto& token : pairs)
            for (auto& pair : token) pair = _mm256_setzero_si256();
        for (size_t t = 0; t < stop; ++t, w += p.stride) {
            fetch<1>(w);
            Register codes[kParts] = {load(w), load(w + 32)};
            for (int field = 0; field < 4; ++field, x += next) {
                Register weights[kParts];
                for (int part = 0; part < kParts; ++part) {
                    weights[part] = _mm256_and_si256(codes[part], low);
                    codes[part] = _mm256_srli_epi16(codes[part], 2);
                }
                for (int token = 0; token < kTokensNow; ++token) {
                    const Register xs = four(x + 4 * token);
                    for (int part = 0; part < kParts; ++part)
                        pairs[token][part] = _mm256_add_epi16(
                            pairs[token][part], _mm256_maddubs_epi16(weights[part], xs));
                }
            }
        }
        for (int token = 0; token < kTokensNow; ++token)
            for (int part = 0; part < kParts; ++part)
                sums[token][part] =
                    _mm256_add_epi32(sums[token][part], widened(pairs[token][part]));
    }
    for (int token = 0; token < kTokensNow; ++token)
        for (int part = 0; part < kParts; ++part)
            store(p.sums[first + token] + part * 8, sums[token][part]);
}

// Byte codes exceed what pairs of products may add to: even and odd bytes are widened first.
template <int kTokensNow>
__attribute__((noinline)) void byte_block(const Pass& p, int first) {
    const Register even = _mm256_set1_epi16(0xff);
    Register sums[kTokensNow][kParts];
    for (auto& token : sums)
        for (auto& sum : token) sum = _mm256_setzero_si256();
    const uint8_t* w = p.packed;
    const int8_t* x = p.x + 4 * first;
    const size_t next = static_cast<size_t>(4) * p.tokens;
    for (size_t tile = 0; tile < p.tiles; ++tile, w += p.stride, x += next) {
        fetch<1>(w);
        Register evens[kParts], odds[kParts];
        for (int part = 0; part < kParts; ++part) {
            const Register codes = load(w + part * 32);
            evens[part] = _mm256_and_si256(codes, even);
            odds[part] = _mm256_srli_epi16(codes, 8);
        }
        for (int token = 0; token < kTokensNow; ++token) {
            const Register xs = four(x + 4 * token);
            const Register x_even = _mm256_srai_epi16(_mm256_slli_epi16(xs, 8), 8);
            const Register x_odd = _mm256_srai_epi16(xs, 8);
            for (int part = 0; part < kParts; ++part)
                sums[token][part] = _mm256_add_epi32(
                    sums[token][part],
                    _mm256_add_epi32(_mm256_madd_epi16(evens[part], x_even),
                                     _mm256_madd_epi16(odds[part], x_odd)));
        }
    }
    for (int token = 0; token < kTokensNow; ++token)
        for (int part = 0; part < kParts; ++part)
            store(p.sums[first + token] + part * 8, sums[token][part]);
}

template <int kTokensNow>
void block(const Pass& p, Coding coding, int first) {
    if (coding == Coding::ternary) ternary_block<kTokensNow>(p, first);
    else byte_block<kTokensNow>(p, first);
}

void all_tokens(const Pass& p, Coding coding) {
    const int turns = (p.tokens + 3) / 4;
    for (int turn = 0, first = 0; turn < turns; ++turn) {
        const int tokens = (p.tokens - first + turns - turn - 1) / (turns - turn);
        if (tokens == 4) block<4>(p, coding, first);
        else if (tokens == 3) block<3>(p, coding, first);
        else if (tokens == 2) block<2>(p, coding, first);
        else block<1>(p, coding, first);
        first += tokens;
    }
}

void by_groups(const Pass& p, Coding coding) {
    for (int group = 0; group < p.groups; ++group) all_tokens(one_group(p, group), coding);
}

void ternary_pass(const Pass& p) {
    if (p.tokens > 1) by_groups(p, Coding::ternary);
    else if (p.groups == 2) stream<2>(p);
    else stream<1>(p);
}

void byte_pass(const Pass& p) { by_groups(p, Coding::bytes); }

}  // namespace

namespace weightguard::ternary {
const Kernel avx2_kernel{"avx2", 128, ternary_pass, byte_pass, quantise, seal, finish<Weigh>};
}
