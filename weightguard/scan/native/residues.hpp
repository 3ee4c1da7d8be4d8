// Weighted integer checksums of a run of words (fingerprint-v1, section 4).
//
// Per vector step k the words are split into fields that leave room to add: A += field and
// B += A. After n steps sum(k * field) = n*A - B lane by lane, so S costs an addition and no
// multiplication. A field has 16 bits at most and a run kRunSteps steps, so that B < 2^32.
//
// The bytes are in a register then, so that every run also shows its vectors to `look`.
#pragma once

#include "vector.hpp"

namespace {

constexpr unsigned kRunSteps = 256;

struct Pair {
    uint64_t r, s;

    WG_INLINE void add(const Pair& other) {
        r += other.r;
        s += other.s;
    }
};

// Residues of the words that whole vectors hold, and how many those are.
struct Run {
    Pair pair;
    uint64_t words;
};

struct LookAway {
    template <class V>
    WG_INLINE void operator()(V) const {}
};

template <class T>
WG_INLINE Pair words_one_by_one(const uint8_t* data, uint64_t words, uint64_t first) {
    Pair pair{0, 0};
    for (uint64_t i = 0; i < words; ++i) {
        const uint64_t u = load_one<T>(data + i * sizeof(T));
        pair.r += u;
        pair.s += (first + i) * u;
    }
    return pair;
}

#if defined(__AVX512VNNI__)

// 16-bit words are read as signed after flipping the top bit, 8-bit words as they are; one dot
// product with ones gives A, a second with the position inside a group of vectors the rest.
template <class T>
struct Dot;

template <>
struct Dot<uint16_t> {
    static constexpr unsigned group = 4;
    static constexpr uint64_t bias = 0x8000;
    static WG_INLINE __m512i position(int vector) {
        Vec<int16_t> p;
        for (int e = 0; e < 32; ++e) p[e] = static_cast<int16_t>(32 * vector + e);
        return reinterpret_cast<__m512i>(p);
    }
    static WG_INLINE __m512i read(__m512i words) {
        return _mm512_xor_si512(words, _mm512_set1_epi16(-0x8000));
    }
    static WG_INLINE __m512i ones() { return _mm512_set1_epi16(1); }
    static WG_INLINE __m512i dot(__m512i sum, __m512i words, __m512i weights) {
        return _mm512_dpwssd_epi32(sum, words, weights);
    }
};

template <>
struct Dot<uint8_t> {
    static constexpr unsigned group = 2;
    static constexpr uint64_t bias = 0;
    static WG_INLINE __m512i position(int vector) {
        Vec<int8_t> p;
        for (int e = 0; e < 64; ++e) p[e] = static_cast<int8_t>(64 * vector + e);
        return reinterpret_cast<__m512i>(p);
    }
    static WG_INLINE __m512i read(__m512i words) { return words; }
    static WG_INLINE __m512i ones() { return _mm512_set1_epi8(1); }
    static WG_INLINE __m512i dot(__m512i sum, __m512i words, __m512i weights) {
        return _mm512_dpbusd_epi32(sum, words, weights);
    }
};

WG_INLINE Vec<int64_t> wide(__m512i sums) {
    return widened_sum(reinterpret_cast<Vec<int32_t>>(sums));
}

template <class T, class Look>
WG_INLINE Run dot_run(const uint8_t* data, uint64_t words, Look look) {
    using D = Dot<T>;
    constexpr unsigned step = kLanes<T> * D::group;
    constexpr uint64_t longest = 64;
    __m512i position[D::group];
    for (unsigned v = 0; v < D::group; ++v) position[v] = D::position(v);
    Run run{{0, 0}, 0};
    while (words - run.words >= step) {
        const uint64_t left = (words - run.words) / step;
        const uint64_t steps = left < longest ? left : longest;
        __m512i a = _mm512_setzero_si512(), b = a, inside[2] = {a, a};
        const uint8_t* p = data + run.words * sizeof(T);
        for (uint64_t k = 0; k < steps; ++k, p += step * sizeof(T)) {
            for (unsigned v = 0; v < D::group; ++v) {
                const Vec<T> bits = load<T>(p + v * 64);
                const __m512i x = D::read(reinterpret_cast<__m512i>(bits));
                look(bits);
                a = D::dot(a, x, D::ones());
                inside[v % 2] = D::dot(inside[v % 2], x, position[v]);
            }
            b = _mm512_add_epi32(b, a);
        }
        const uint64_t n = steps * step;
        const auto sum = static_cast<uint64_t>(halved_sum<int64_t>(wide(a)));
        const auto late = static_cast<uint64_t>(halved_sum<int64_t>(
            wide(inside[0]) + wide(inside[1]) - static_cast<int64_t>(step) * wide(b)));
        const uint64_t r = sum + D::bias * n;
        const uint64_t s = step * steps * sum + late + D::bias * (n * (n - 1) / 2);
        run.pair.add({r, s + run.words * r});
        run.words += n;
    }
    return run;
}

#endif

// Words split into fields of 16 bits (8 for bytes), each in its own 32-bit lane.
template <class T, class Look>
WG_INLINE Run field_run(const uint8_t* data, uint64_t words, Look look) {
    constexpr unsigned bits = sizeof(T) == 1 ? 8 : 16;
    constexpr unsigned fields = 32 / bits;
    constexpr unsigned step = kLanes<T>;
    constexpr unsigned lanes = kLanes<uint32_t>;
    Run run{{0, 0}, 0};
    while (words - run.words >= step) {
        const uint64_t left = (words - run.words) / step;
        const uint64_t steps = left < kRunSteps ? left : kRunSteps;
        Vec<uint32_t> a[fields] = {}, b[fields] = {};
        const uint8_t* p = data + run.words * sizeof(T);
        for (uint64_t k = 0; k < steps; ++k, p += WG_VECTOR_BYTES) {
            const Vec<uint32_t> x = load<uint32_t>(p);
            look(reinterpret_cast<Vec<T>>(x));
            for (unsigned f = 0; f < fields; ++f) {
                a[f] += (x >> (f * bits)) & ((1u << bits) - 1);
                b[f] += a[f];
            }
        }
        Vec<uint64_t> sum = {}, late = {};
        for (unsigned f = 0; f < fields; ++f) {
            // words of 32 bits have a field in each half, shorter ones a word in each field
            const unsigned shift = sizeof(T) == 4 ? f * bits : 0;
            Vec<uint32_t> position;
            for (unsigned e = 0; e < lanes; ++e) position[e] = sizeof(T) == 4 ? e : fields * e + f;
            sum += widened_sum(a[f]) << shift;
            late += (widened_sum(a[f] * position) - step * widened_sum(b[f])) << shift;
        }
        const uint64_t r = halved_sum<uint64_t>(sum);
        const uint64_t s = step * steps * r + halved_sum<uint64_t>(late);
        run.pair.add({r, s + run.words * r});
        run.words += steps * step;
    }
    return run;
}

// R and S of `n` words, the first of them counted as word `first` of its row. `look` sees the
// words of all whole vectors; returns how many those are beside the residues.
template <class T, class Look>
WG_INLINE Run run_residues(const uint8_t* data, uint64_t n, uint64_t first, Look look) {
    Run run{{0, 0}, 0};
#if defined(__AVX512VNNI__)
    if constexpr (sizeof(T) < 4) run = dot_run<T>(data, n, look);
#endif
    Run more = field_run<T>(data + run.words * sizeof(T), n - run.words, look);
    run.pair.add({more.pair.r, more.pair.s + run.words * more.pair.r});
    run.words += more.words;
    run.pair.add(words_one_by_one<T>(data + run.words * sizeof(T), n - run.words, run.words));
    run.pair.s += first * run.pair.r;
    return run;
}

}  // namespace
