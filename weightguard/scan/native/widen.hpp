// From the bits of a hot format to the numbers in its lanes.
#pragma once

#include "formats.hpp"

namespace {

// How the bits of a vector, there and at `p`, become the lanes' numbers: in order, or first the
// even and then the odd ones.
template <class F>
struct Widen;

template <>
struct Widen<F32> {
    using Lane = float;
    static constexpr bool interleaved = false;
    static constexpr bool exact_square = false;
    static constexpr double unit = 1;
    static WG_INLINE void to(Vec<float>* out, const uint8_t*, Vec<uint32_t> bits) {
        out[0] = reinterpret_cast<Vec<float>>(bits);
    }
};

template <>
struct Widen<F64> {
    using Lane = double;
    static constexpr bool interleaved = false;
    static constexpr bool exact_square = false;
    static constexpr double unit = 1;
    static WG_INLINE void to(Vec<double>* out, const uint8_t*, Vec<uint64_t> bits) {
        out[0] = reinterpret_cast<Vec<double>>(bits);
    }
};

template <>
struct Widen<BF16> {
    using Lane = float;
    static constexpr bool interleaved = true;
    static constexpr bool exact_square = true;  // 8 significant bits, when nothing underflows
    static constexpr double unit = 1;
    static WG_INLINE void to(Vec<float>* out, const uint8_t*, Vec<uint16_t> bits) {
        const Vec<uint32_t> pair = reinterpret_cast<Vec<uint32_t>>(bits);
        out[0] = reinterpret_cast<Vec<float>>(pair << 16);
        out[1] = reinterpret_cast<Vec<float>>(pair & 0xffff0000u);
    }
};

// One vector of halves, in order, to two of floats. Halves have 11 significant bits and no
// square of one underflows binary32, so squares are exact.
#if defined(__AVX512F__)
WG_INLINE void halves_to_floats(Vec<float>* out, Vec<uint16_t> halves) {
    const __m512i h = reinterpret_cast<__m512i>(halves);
    out[0] = reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(_mm512_castsi512_si256(h)));
    out[1] = reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)));
}
#elif defined(__F16C__)
WG_INLINE void halves_to_floats(Vec<float>* out, Vec<uint16_t> halves) {
    const __m256i h = reinterpret_cast<__m256i>(halves);
    out[0] = reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(_mm256_castsi256_si128(h)));
    out[1] = reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)));
}
#elif defined(__aarch64__)
WG_INLINE void halves_to_floats(Vec<float>* out, Vec<uint16_t> halves) {
    const float16x8_t h = vreinterpretq_f16_u16(reinterpret_cast<uint16x8_t>(halves));
    out[0] = reinterpret_cast<Vec<float>>(vcvt_f32_f16(vget_low_f16(h)));
    out[1] = reinterpret_cast<Vec<float>>(vcvt_high_f32_f16(h));
}
#else
// As the exponent field of a float is 112 too low for a half's; the product is exact.
WG_INLINE void halves_to_floats(Vec<float>* out, Vec<uint16_t> halves) {
    for (unsigned part = 0; part < 2; ++part) {
        typename VectorOf<uint16_t, WG_VECTOR_BYTES / 2>::type narrow;
        __builtin_memcpy(&narrow, reinterpret_cast<const char*>(&halves) + part * sizeof narrow,
                         sizeof narrow);
        const Vec<uint32_t> h = __builtin_convertvector(narrow, Vec<uint32_t>);
        const Vec<uint32_t> sign = (h & 0x8000u) << 16;
        const Vec<float> size = reinterpret_cast<Vec<float>>((h & 0x7fffu) << 13) * 0x1p112f;
        out[part] = reinterpret_cast<Vec<float>>(reinterpret_cast<Vec<uint32_t>>(size) | sign);
    }
}
#endif

template <>
struct Widen<F16> {
    using Lane = float;
    static constexpr bool interleaved = false;
    static constexpr bool exact_square = true;
    static constexpr double unit = 1;
    static WG_INLINE void to(Vec<float>* out, const uint8_t* p, Vec<uint16_t> bits) {
        (void)bits;
#if defined(__AVX512F__)
        for (unsigned i = 0; i < 2; ++i)
            out[i] = reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(load_one<__m256i>(p + 32 * i)));
#elif defined(__F16C__)
        for (unsigned i = 0; i < 2; ++i)
            out[i] = reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(load_one<__m128i>(p + 16 * i)));
#else
        (void)p;
        halves_to_floats(out, bits);
#endif
    }
};

// Bytes to the halves whose top bits they are; `Shift` aligns the exponent fields, and the value
// is then 2^(bias of the format - 15) of what it should be: `unit` puts sums right, exactly.
template <int Shift>
WG_INLINE void bytes_to_floats(Vec<float>* out, const uint8_t* p) {
    for (unsigned part = 0; part < 2; ++part) {
        using HalfBytes = typename VectorOf<int8_t, WG_VECTOR_BYTES / 2>::type;
        const HalfBytes bytes = load_one<HalfBytes>(p + part * WG_VECTOR_BYTES / 2);
        const Vec<int16_t> wide = __builtin_convertvector(bytes, Vec<int16_t>);
        // the sign was extended to the left: shifting leaves a copy above the exponent
        const Vec<uint16_t> halves = reinterpret_cast<Vec<uint16_t>>(wide << Shift) &
                                     static_cast<uint16_t>(0x8000 | (0x7f << Shift));
        halves_to_floats(out + 2 * part, halves);
    }
}

template <>
struct Widen<E4M3> {
    using Lane = float;
    static constexpr bool interleaved = false;
    static constexpr bool exact_square = true;
    static constexpr double unit = 0x1p8;
    static WG_INLINE void to(Vec<float>* out, const uint8_t* p, Vec<uint8_t>) {
        bytes_to_floats<7>(out, p);
    }
};

template <>
struct Widen<E5M2> {
    using Lane = float;
    static constexpr bool interleaved = false;
    static constexpr bool exact_square = true;
    static constexpr double unit = 1;
    static WG_INLINE void to(Vec<float>* out, const uint8_t* p, Vec<uint8_t>) {
        bytes_to_floats<8>(out, p);
    }
};

}  // namespace
