// Walks a block row by row and chunk by chunk. Each instruction set's file includes this once,
// with its own WG_VECTOR_BYTES and compiler flags, and names the result WG_KERNEL.
#pragma once

#include "careful.hpp"
#include "fast.hpp"
#include "integers.hpp"
#include "residues.hpp"

namespace {

using weightguard::Kernel;
using weightguard::Residues;
using weightguard::Statistics;

WG_INLINE uint64_t lesser_of(uint64_t a, uint64_t b) { return a < b ? a : b; }

// Calls visit(row touched, place in the row, first item, items) for each row that `n` items from
// item `start` of the tensor touch.
template <class Visit>
WG_INLINE void each_row(uint64_t start, uint64_t n, uint64_t row_items, Visit visit) {
    uint64_t place = start % row_items;
    for (uint64_t row = 0, done = 0; done < n; ++row) {
        const uint64_t take = lesser_of(n - done, row_items - place);
        visit(row, place, done, take);
        done += take;
        place = 0;
    }
}

template <class T>
void residues_of(const Residues& task) {
    const uint64_t size = sizeof(T);
    each_row(task.start / size, task.nbytes / size, task.row_bytes / size,
             [&](uint64_t row, uint64_t place, uint64_t done, uint64_t take) {
                 const Pair pair =
                     run_residues<T>(task.data + done * size, take, place, LookAway{}).pair;
                 task.out[2 * row] = pair.r;
                 task.out[2 * row + 1] = pair.s;
             });
}

void residues(const Residues& task) {
    switch (task.word_bytes) {
        case 1: return residues_of<uint8_t>(task);
        case 2: return residues_of<uint16_t>(task);
        case 4: return residues_of<uint32_t>(task);
    }
}

template <class F>
constexpr bool kIsFast = false;
template <>
constexpr bool kIsFast<F64> = true;
template <>
constexpr bool kIsFast<F32> = true;
template <>
constexpr bool kIsFast<F16> = true;
template <>
constexpr bool kIsFast<BF16> = true;
template <>
constexpr bool kIsFast<E4M3> = true;
template <>
constexpr bool kIsFast<E5M2> = true;

// Unpacks `n` scalars from scalar `first` of `packed` on, to one a byte.
template <class F>
void unpack(uint8_t* out, const uint8_t* packed, uint64_t first, unsigned n) {
    for (unsigned i = 0; i < n; ++i) {
        const uint64_t bit = (first + i) * F::bits;
        const unsigned shift = bit % 8;
        unsigned bits = packed[bit / 8] >> shift;
        if (shift + F::bits > 8) bits |= static_cast<unsigned>(packed[bit / 8 + 1]) << (8 - shift);
        out[i] = static_cast<uint8_t>(bits & F::mask);
    }
}

// Accumulates the chunks of one call, then adds them to the caller's numbers.
template <class F>
class Accumulator {
  public:
    using T = typename F::Storage;

    explicit Accumulator(const Statistics& task) : task_(task) {
        totals_.sum = task.sums[0];
        totals_.sumsq = task.sums[1];
        if (task.count[weightguard::finite]) {
            totals_.least = F::key(static_cast<T>(task.count[weightguard::min_bits]));
            totals_.greatest = F::key(static_cast<T>(task.count[weightguard::max_bits]));
        }
    }

    // One chunk, `done` scalars into the call's values and at `place` in its row; returns its
    // greatest magnitude. With `words`, the chunk's scalars are words, and added there.
    WG_INLINE T chunk(uint64_t done, uint64_t place, unsigned n, Pair* words) {
        T* columns = task_.columns ? static_cast<T*>(task_.columns) + place : nullptr;
        const uint8_t* values = task_.values + done * sizeof(T);
        if constexpr (F::bits % 8) {
            unpack<F>(unpacked_, task_.values, done, n);
            return careful_chunk<F>(unpacked_, n, columns, totals_);
        } else if constexpr (kIsFast<F>) {
            Extremes<F> extremes;
            unsigned seen = 0;
            if (words) {
                if constexpr (sizeof(T) <= 4) {
                    const Run run = run_residues<T>(
                        values, n, place, [&](Vec<T> bits) { extremes.look_at(bits); });
                    words->add(run.pair);
                    seen = static_cast<unsigned>(run.words);
                }
            } else {
                for (; seen + kLanes<T> <= n; seen += kLanes<T>)
                    extremes.look_at(load<T>(values + seen * sizeof(T)));
            }
            if (seen < n) look_at_tail<F>(extremes, values, n);
            return fast_float_chunk<F>(values, n, columns, totals_, state_, extremes);
        } else {
            if constexpr (sizeof(T) <= 4)
                if (words) words->add(run_residues<T>(values, n, place, LookAway{}).pair);
            if constexpr (F::is_float) return careful_chunk<F>(values, n, columns, totals_);
            else return integer_chunk<F>(values, n, columns, totals_);
        }
    }

    WG_INLINE void row(uint64_t row, T absmax) {
        T& held = static_cast<T*>(task_.magnitudes)[row];
        if (absmax > held) held = absmax;
    }

    void finish() {
        if constexpr (kIsFast<F>)
            if (state_.any) state_.extremes.into(totals_);
        uint64_t* count = task_.count;
        count[weightguard::finite] += totals_.finite;
        count[weightguard::nan] += totals_.nan;
        count[weightguard::inf] += totals_.inf;
        count[weightguard::zero] += totals_.zero;
        count[weightguard::subnormal] += totals_.subnormal;
        count[weightguard::min_bits] = bits(totals_.least);
        count[weightguard::max_bits] = bits(totals_.greatest);
        task_.sums[0] = totals_.sum;
        task_.sums[1] = totals_.sumsq;
    }

  private:
    struct None {};
    template <bool Fast, class G>
    struct StateOf {
        using type = None;
    };
    template <class G>
    struct StateOf<true, G> {
        using type = FastState<G>;
    };

    // The bits whose order key this is.
    static uint64_t bits(int64_t key) {
        if constexpr (F::is_float) {
            return key < 0 ? static_cast<uint64_t>(~key) | F::sign : static_cast<uint64_t>(key);
        } else if constexpr (F::bits == 64 && !F::is_signed) {
            return static_cast<uint64_t>(key) ^ (uint64_t{1} << 63);
        } else {
            return static_cast<uint64_t>(key) & F::mask;
        }
    }

    const Statistics& task_;
    Totals totals_;
    typename StateOf<kIsFast<F>, F>::type state_;
    uint8_t unpacked_[F::bits % 8 ? kChunkScalars : 1];
};

template <class F>
void statistics_of(const Statistics& task) {
    using T = typename F::Storage;
    Accumulator<F> accumulator(task);
    each_row(task.first, task.scalars, task.row_scalars,
             [&](uint64_t row, uint64_t place, uint64_t done, uint64_t take) {
                 T absmax = 0;
                 for (uint64_t i = 0; i < take; i += kChunkScalars) {
                     const unsigned n =
                         static_cast<unsigned>(lesser_of(take - i, kChunkScalars));
                     const T chunk = accumulator.chunk(done + i, place + i, n, nullptr);
                     if (chunk > absmax) absmax = chunk;
                 }
                 accumulator.row(row, absmax);
             });
    accumulator.finish();
}

// Scalars are words here, so that rows and chunks of both coincide.
template <class F>
void fused_of(const Residues& words, const Statistics& task) {
    using T = typename F::Storage;
    if constexpr (F::bits % 8 == 0 && sizeof(T) <= 4) {
        Accumulator<F> accumulator(task);
        each_row(task.first, task.scalars, task.row_scalars,
                 [&](uint64_t row, uint64_t place, uint64_t done, uint64_t take) {
                     T absmax = 0;
                     Pair sum{0, 0};
                     for (uint64_t i = 0; i < take; i += kChunkScalars) {
                         const unsigned n =
                             static_cast<unsigned>(lesser_of(take - i, kChunkScalars));
                         const T chunk = accumulator.chunk(done + i, place + i, n, &sum);
                         if (chunk > absmax) absmax = chunk;
                     }
                     words.out[2 * row] = sum.r;
                     words.out[2 * row + 1] = sum.s;
                     accumulator.row(row, absmax);
                 });
        accumulator.finish();
    }
}

template <class Visit>
void with_format(Format format, Visit visit) {
    switch (format) {
        case Format::u2: return visit(Integer<uint8_t, 2, false>{});
        case Format::u4: return visit(Integer<uint8_t, 4, false>{});
        case Format::u8: return visit(Integer<uint8_t, 8, false>{});
        case Format::u16: return visit(Integer<uint16_t, 16, false>{});
        case Format::u32: return visit(Integer<uint32_t, 32, false>{});
        case Format::u64: return visit(Integer<uint64_t, 64, false>{});
        case Format::i2: return visit(Integer<uint8_t, 2, true>{});
        case Format::i4: return visit(Integer<uint8_t, 4, true>{});
        case Format::i8: return visit(Integer<uint8_t, 8, true>{});
        case Format::i16: return visit(Integer<uint16_t, 16, true>{});
        case Format::i32: return visit(Integer<uint32_t, 32, true>{});
        case Format::i64: return visit(Integer<uint64_t, 64, true>{});
        case Format::f64: return visit(F64{});
        case Format::f32: return visit(F32{});
        case Format::f16: return visit(F16{});
        case Format::bf16: return visit(BF16{});
        case Format::e4m3: return visit(E4M3{});
        case Format::e5m2: return visit(E5M2{});
        case Format::e4m3fnuz: return visit(E4M3FNUZ{});
        case Format::e5m2fnuz: return visit(E5M2FNUZ{});
        case Format::e8m0: return visit(E8M0{});
        case Format::e2m3: return visit(E2M3{});
        case Format::e3m2: return visit(E3M2{});
        case Format::f4: return visit(F4{});
    }
}

void statistics(const Statistics& task) {
    with_format(task.format, [&](auto format) { statistics_of<decltype(format)>(task); });
}

void fused(const Residues& words, const Statistics& task) {
    with_format(task.format, [&](auto format) { fused_of<decltype(format)>(words, task); });
}

}  // namespace

namespace weightguard {
extern const Kernel WG_KERNEL;
const Kernel WG_KERNEL = {WG_KERNEL_NAME, residues, statistics, fused};
}  // namespace weightguard
