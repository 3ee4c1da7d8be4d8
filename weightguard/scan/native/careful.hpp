// The statistics of one chunk, scalar by scalar: this is what every faster path must equal.
#pragma once

#include "formats.hpp"

namespace {

using weightguard::kChunkScalars;
using weightguard::kSumLanes;

// What a run of scalars adds up to. Extremes are order keys; they count once finite > 0.
struct Totals {
    uint64_t finite = 0, nan = 0, inf = 0, zero = 0, subnormal = 0;
    int64_t least = INT64_MAX, greatest = INT64_MIN;
    double sum = 0, sumsq = 0;
};

WG_INLINE Vec<double> to_doubles(const double* lanes) { return load<double>(lanes); }
WG_INLINE Vec<double> to_doubles(const float* lanes) {
    using Floats = VectorOf<float, WG_VECTOR_BYTES / 2>::type;
    return __builtin_convertvector(load_one<Floats>(lanes), Vec<double>);
}

// lane[l] += lane[l + h] for h = N/2, ..., 2, 1.
template <class Lane, unsigned N = kSumLanes>
WG_INLINE double fold(const Lane* lanes) {
    constexpr unsigned width = kLanes<double>;
    Vec<double> folded[N / width];
    for (unsigned v = 0; v < N / width; ++v) folded[v] = to_doubles(lanes + v * width);
    for (unsigned h = N / width / 2; h; h /= 2)
        for (unsigned v = 0; v < h; ++v) folded[v] += folded[v + h];
    return halved_sum<double>(folded[0]);
}

template <class F, class Lane>
void careful_sums(const uint8_t* values, unsigned n, Totals& totals) {
    using T = typename F::Storage;
    Lane sum[kSumLanes] = {}, sumsq[kSumLanes] = {};
    for (unsigned i = 0; i < n; ++i) {
        const T bits = load_one<T>(values + i * sizeof(T));
        if (F::is_nan(bits) || F::is_inf(bits)) continue;
        const Lane x = static_cast<Lane>(F::value(bits));
        sum[i % kSumLanes] += x;
        sumsq[i % kSumLanes] += x * x;
    }
    totals.sum += fold(sum);
    totals.sumsq += fold(sumsq);
}

// Adds `n` scalars to `totals` and `columns` (or null); returns the greatest finite magnitude.
template <class F>
typename F::Storage careful_chunk(const uint8_t* values, unsigned n,
                                  typename F::Storage* columns, Totals& totals) {
    using T = typename F::Storage;
    T absmax = 0;
    double size = 0;
    for (unsigned i = 0; i < n; ++i) {
        const T bits = load_one<T>(values + i * sizeof(T));
        if (F::is_nan(bits) || F::is_inf(bits)) {
            ++(F::is_nan(bits) ? totals.nan : totals.inf);
            continue;
        }
        const T magnitude = F::magnitude(bits);
        const int64_t key = F::key(bits);
        ++totals.finite;
        totals.zero += F::has_zero && magnitude == 0;
        totals.subnormal += magnitude != 0 && magnitude < F::least_normal;
        if (key < totals.least) totals.least = key;
        if (key > totals.greatest) totals.greatest = key;
        if (magnitude > absmax) absmax = magnitude;
        if (columns && magnitude > columns[i]) columns[i] = magnitude;
        if constexpr (F::is_float && F::bits <= 32) {
            const double x = F::value(bits);
            if (x > size) size = x;
            if (-x > size) size = -x;
        }
    }
    const bool in_range = size == 0 || (size >= 0x1p-40 && size <= 0x1p60);
    if (F::is_float && F::bits <= 32 && in_range) careful_sums<F, float>(values, n, totals);
    else careful_sums<F, double>(values, n, totals);
    return absmax;
}

}  // namespace
