// The statistics of one chunk of integers, in loops that compilers vectorise.
#pragma once

#include "careful.hpp"

namespace {

// Sums of integers of 16 bits or less are exact in integers, and equal those of any lanes.
template <class F>
WG_INLINE void exact_integer_sums(const uint8_t* values, unsigned n, Totals& totals) {
    using T = typename F::Storage;
    int64_t sum = 0;
    uint64_t sumsq = 0;
    // 2^16 times the greatest square of a byte, or one square of 16 bits, fits 32 bits
    for (unsigned i = 0; i < n;) {
        const unsigned stop = n - i > 2048 ? i + 2048 : n;
        int32_t part = 0;
        uint32_t squares = 0;
        for (; i < stop; ++i) {
            const int32_t x = static_cast<int32_t>(F::extended(load_one<T>(values + i * sizeof(T))));
            part += x;
            if constexpr (sizeof(T) == 1) squares += static_cast<uint32_t>(x * x);
            else sumsq += static_cast<uint32_t>(x) * static_cast<uint32_t>(x);
        }
        sum += part;
        sumsq += squares;
    }
    totals.sum += static_cast<double>(sum);
    totals.sumsq += static_cast<double>(sumsq);
}

template <class F>
WG_INLINE void lane_integer_sums(const uint8_t* values, unsigned n, Totals& totals) {
    using T = typename F::Storage;
    double sum[kSumLanes] = {}, sumsq[kSumLanes] = {};
    unsigned i = 0;
    for (; i + kSumLanes <= n; i += kSumLanes)
        for (unsigned l = 0; l < kSumLanes; ++l) {
            const double x = F::value(load_one<T>(values + (i + l) * sizeof(T)));
            sum[l] += x;
            sumsq[l] += x * x;
        }
    for (unsigned l = 0; i < n; ++i, ++l) {
        const double x = F::value(load_one<T>(values + i * sizeof(T)));
        sum[l] += x;
        sumsq[l] += x * x;
    }
    totals.sum += fold(sum);
    totals.sumsq += fold(sumsq);
}

// Like careful_chunk.
template <class F>
typename F::Storage integer_chunk(const uint8_t* values, unsigned n,
                                  typename F::Storage* columns, Totals& totals) {
    using T = typename F::Storage;
    // flipping the sign's bit makes signed order unsigned order
    T low = static_cast<T>(~T{0}), high = 0, absmax = 0;
    unsigned zeros = 0;
    for (unsigned i = 0; i < n; ++i) {
        const T bits = load_one<T>(values + i * sizeof(T));
        const T ordered = static_cast<T>(bits ^ F::sign);
        const T magnitude = F::magnitude(bits);
        low = ordered < low ? ordered : low;
        high = ordered > high ? ordered : high;
        absmax = magnitude > absmax ? magnitude : absmax;
    }
    for (unsigned i = 0; i < n; ++i)
        zeros += load_one<T>(values + i * sizeof(T)) == T{0};
    if (columns)
        for (unsigned i = 0; i < n; ++i) {
            const T magnitude = F::magnitude(load_one<T>(values + i * sizeof(T)));
            columns[i] = magnitude > columns[i] ? magnitude : columns[i];
        }
    const int64_t least = F::key(static_cast<T>(low ^ F::sign));
    const int64_t greatest = F::key(static_cast<T>(high ^ F::sign));
    totals.least = least < totals.least ? least : totals.least;
    totals.greatest = greatest > totals.greatest ? greatest : totals.greatest;
    totals.finite += n;
    totals.zero += zeros;
    if constexpr (sizeof(T) <= 2) exact_integer_sums<F>(values, n, totals);
    else lane_integer_sums<F>(values, n, totals);
    return absmax;
}

}  // namespace
