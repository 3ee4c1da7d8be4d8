// The statistics of one chunk of a hot format, in vector registers.
//
// A chunk with NaN, infinities or a range outside that of binary32 lanes is left to the careful
// path; zeros and subnormals cost a second look. Bits compare like numbers: as signed integers
// the greatest is the greatest non-negative, as unsigned ones the most negative.
#pragma once

#include "careful.hpp"
#include "widen.hpp"

namespace {

// x * x + sum; `Exact` products may be fused, for then the one rounding is the sum's.
template <bool Exact, class V>
WG_INLINE V add_square(V sum, V x) {
#if defined(__AVX512F__)
    if constexpr (Exact)
        return reinterpret_cast<V>(_mm512_fmadd_ps(reinterpret_cast<__m512>(x),
                                                   reinterpret_cast<__m512>(x),
                                                   reinterpret_cast<__m512>(sum)));
#elif defined(__FMA__)
    if constexpr (Exact)
        return reinterpret_cast<V>(_mm256_fmadd_ps(reinterpret_cast<__m256>(x),
                                                   reinterpret_cast<__m256>(x),
                                                   reinterpret_cast<__m256>(sum)));
#endif
    return sum + x * x;
}

// Magnitudes below this deserve a second look: subnormals, and where squares are fused for being
// exact, whatever has a square that may underflow.
template <class F>
constexpr typename F::Storage small_limit() {
    return Widen<F>::exact_square && F::power(-60) > F::least_normal ? F::power(-60)
                                                                     : F::least_normal;
}

struct Below {
    unsigned zero, limit;
};

// How many magnitudes are zero, and how many are below `limit`.
template <class F>
Below count_below(const uint8_t* values, unsigned n, typename F::Storage limit) {
    using T = typename F::Storage;
    constexpr unsigned step = kLanes<T>;
    Below below{0, 0};
    unsigned i = 0;
    while (n - i >= step) {
        Vec<T> zero = {}, under = {};
        // a byte lane can count to 255
        const unsigned stop = n - i > 128 * step ? i + 128 * step : n;
        for (; i + step <= stop; i += step) {
            const Vec<T> m = load<T>(values + i * sizeof(T)) & F::magnitude_mask;
            zero -= reinterpret_cast<Vec<T>>(m == T{0});
            under -= reinterpret_cast<Vec<T>>(m < limit);
        }
        below.zero += static_cast<unsigned>(counted(zero));
        below.limit += static_cast<unsigned>(counted(under));
    }
    for (; i < n; ++i) {
        const T m = F::magnitude(load_one<T>(values + i * sizeof(T)));
        below.zero += m == 0;
        below.limit += m < limit;
    }
    return below;
}

// The extremes of a run of scalars, lane by lane.
template <class F>
struct Extremes {
    using T = typename F::Storage;
    using SignedVec = Vec<Signed<T>>;
    Vec<T> highest = splat<T>(F::sign);             // greatest as signed integers
    Vec<T> lowest = splat<T>(0);                    // greatest as unsigned integers
    Vec<T> smallest = splat<T>(F::magnitude_mask);  // least magnitude

    WG_INLINE void look_at(Vec<T> bits) {
        raise(bits, bits);
        smallest = lesser(bits & F::magnitude_mask, smallest);
    }
    WG_INLINE void merge(const Extremes& other) {
        raise(other.highest, other.lowest);
        smallest = lesser(other.smallest, smallest);
    }
    WG_INLINE T absmax() const {
        return greatest<T>(greater(highest & F::magnitude_mask, lowest & F::magnitude_mask));
    }
    WG_INLINE bool any_below(T limit) const { return any(smallest < limit); }
    // Requires that at least one scalar was looked at.
    void into(Totals& totals) const {
        const T least_magnitude = least<T>(smallest);
        T top = static_cast<T>(greatest<Signed<T>>(reinterpret_cast<SignedVec>(highest)));
        T bottom = greatest<T>(lowest);
        if (top & F::sign) top = static_cast<T>(least_magnitude | F::sign);
        if (!(bottom & F::sign)) bottom = least_magnitude;
        if (F::key(top) > totals.greatest) totals.greatest = F::key(top);
        if (F::key(bottom) < totals.least) totals.least = F::key(bottom);
    }

  private:
    WG_INLINE void raise(Vec<T> high, Vec<T> low) {
        highest = reinterpret_cast<Vec<T>>(
            greater(reinterpret_cast<SignedVec>(high), reinterpret_cast<SignedVec>(highest)));
        lowest = greater(low, lowest);
    }
};

// Extremes do not mind a scalar taken twice, so that a tail is the last whole vector of the
// chunk; a chunk shorter than a vector is filled up with copies of its first scalar.
template <class F>
WG_INLINE void look_at_tail(Extremes<F>& extremes, const uint8_t* values, unsigned n) {
    using T = typename F::Storage;
    constexpr unsigned step = kLanes<T>;
    if (n >= step) {
        extremes.look_at(load<T>(values + (n - step) * sizeof(T)));
        return;
    }
    T filled[step];
    for (unsigned i = 0; i < step; ++i)
        filled[i] = load_one<T>(values + (i < n ? i : 0) * sizeof(T));
    extremes.look_at(load<T>(filled));
}

// The 32 lanes of sum and sum of squares; column maxima on the way.
template <class F, bool Exact, bool Columns>
struct Lanes {
    using T = typename F::Storage;
    using W = Widen<F>;
    using Lane = typename W::Lane;
    static constexpr unsigned lane_vectors = kSumLanes * sizeof(Lane) / WG_VECTOR_BYTES;
    static constexpr unsigned widened = sizeof(Lane) / sizeof(T);
    static constexpr unsigned vectors = kLanes<T> >= kSumLanes ? 1 : kSumLanes / kLanes<T>;
    static constexpr unsigned step = vectors * kLanes<T>;

    Vec<Lane> sum[lane_vectors] = {}, sumsq[lane_vectors] = {};

    WG_INLINE void take(const uint8_t* values, T* columns) {
        for (unsigned v = 0; v < vectors; ++v) {
            const uint8_t* from = values + v * WG_VECTOR_BYTES;
            const Vec<T> bits = in_register(load<T>(from));
            if constexpr (Columns) {
                T* held = columns + v * kLanes<T>;
                store<T>(held, greater(bits & F::magnitude_mask, load<T>(held)));
            }
            Vec<Lane> x[widened];
            W::to(x, from, bits);
            for (unsigned w = 0; w < widened; ++w) {
                const unsigned at = (v * widened + w) % lane_vectors;
                sum[at] += x[w];
                sumsq[at] = add_square<Exact>(sumsq[at], x[w]);
            }
        }
    }

    // Zeros that fill up the last step add nothing.
    WG_INLINE void tail(const uint8_t* values, unsigned n, T* columns) {
        T padded[step] = {}, held[step] = {};
        __builtin_memcpy(padded, values, n * sizeof(T));
        if constexpr (Columns) __builtin_memcpy(held, columns, n * sizeof(T));
        take(reinterpret_cast<const uint8_t*>(padded), held);
        if constexpr (Columns) __builtin_memcpy(columns, held, n * sizeof(T));
    }

    static WG_INLINE double folded(const Vec<Lane>* of) {
        // interleaved lanes go to memory even ones first: lane l and lane l + h are as far apart
        // among the even ones, or the odd, but for h = 1
        constexpr unsigned apart = W::interleaved ? 2 : 1;
        constexpr unsigned part = kSumLanes / apart;
        Lane lanes[kSumLanes];
        for (unsigned v = 0; v < lane_vectors; ++v)
            store<Lane>(lanes + v % apart * part + v / apart * kLanes<Lane>, in_register(of[v]));
        if constexpr (!W::interleaved) return fold(lanes);
        return fold<Lane, part>(lanes) + fold<Lane, part>(lanes + part);
    }

    static WG_INLINE void add(const uint8_t* values, unsigned n, T* columns, Totals& totals) {
        Lanes lanes;
        unsigned i = 0;
        for (; i + step <= n; i += step)
            lanes.take(values + i * sizeof(T), columns + (Columns ? i : 0));
        if (i < n) lanes.tail(values + i * sizeof(T), n - i, columns + (Columns ? i : 0));
        totals.sum += folded(lanes.sum) * W::unit;
        totals.sumsq += folded(lanes.sumsq) * (W::unit * W::unit);
    }
};

// What the fast chunks of a call have in common; merged into its totals once, at the end.
template <class F>
struct FastState {
    Extremes<F> extremes;
    bool any = false;
};

template <class F, bool Exact>
WG_INLINE void add_lanes(const uint8_t* values, unsigned n, typename F::Storage* columns,
                         Totals& totals) {
    if (columns) Lanes<F, Exact, true>::add(values, n, columns, totals);
    else Lanes<F, Exact, false>::add(values, n, columns, totals);
}

// Counts zeros and subnormals; returns whether every square is exact in binary32.
template <class F>
__attribute__((noinline)) bool count_small(const uint8_t* values, unsigned n, Totals& totals) {
    using T = typename F::Storage;
    const Below below = count_below<F>(values, n, small_limit<F>());
    totals.zero += below.zero;
    if (below.limit == below.zero) return true;
    if (small_limit<F>() == F::least_normal) {
        totals.subnormal += below.limit - below.zero;
        return true;
    }
    totals.subnormal += count_below<F>(values, n, T{F::least_normal}).limit - below.zero;
    return false;
}

// Like careful_chunk, but that extremes go to `state`; `extremes` are those of the chunk.
template <class F>
WG_INLINE typename F::Storage fast_float_chunk(const uint8_t* values, unsigned n,
                                               typename F::Storage* columns, Totals& totals,
                                               FastState<F>& state, const Extremes<F>& extremes) {
    using T = typename F::Storage;
    constexpr bool exact_square = Widen<F>::exact_square;
    const T absmax = extremes.absmax();
    const bool in_range = F::bits > 32 || absmax == 0 ||
                          (absmax >= F::power(-40) && absmax <= F::power(60));
    if (absmax >= F::first_not_finite || !in_range)
        return careful_chunk<F>(values, n, columns, totals);
    bool exact = true;
    if (extremes.any_below(small_limit<F>())) exact = count_small<F>(values, n, totals);
    if (exact) add_lanes<F, exact_square>(values, n, columns, totals);
    else add_lanes<F, false>(values, n, columns, totals);
    totals.finite += n;
    state.extremes.merge(extremes);
    state.any = true;
    return absmax;
}

}  // namespace
