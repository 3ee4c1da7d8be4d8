// Scalar formats at compile time (fingerprint-v1, section 5).
#pragma once

#include "kernel.hpp"
#include "vector.hpp"

namespace {

using weightguard::Format;

enum class Special { none, ieee, top, negative_zero, all_ones };

// A float of `Bits` bits in storage T; `Exponent` + `Mantissa` + sign, value bias `Bias`.
template <class T, int Bits, int Exponent, int Mantissa, int Bias, Special S>
struct Float {
    using Storage = T;
    static constexpr bool is_float = true;
    static constexpr bool is_signed = S != Special::all_ones;
    static constexpr int bits = Bits;
    static constexpr T sign = is_signed ? static_cast<T>(T{1} << (Bits - 1)) : T{0};
    static constexpr int unused = 8 * static_cast<int>(sizeof(T)) - Bits;
    static constexpr T mask = static_cast<T>(static_cast<T>(~T{0}) >> unused);
    static constexpr T magnitude_mask = static_cast<T>(mask ^ sign);
    static constexpr T infinity = static_cast<T>(((T{1} << Exponent) - 1) << Mantissa);
    static constexpr bool may_not_be_finite = S != Special::none;
    static constexpr T first_not_finite = S == Special::ieee ? infinity : magnitude_mask;
    static constexpr T least_normal = is_signed ? static_cast<T>(T{1} << Mantissa) : T{1};
    static constexpr bool has_zero = is_signed;

    // Whether a magnitude in [2^-40, 2^60] has these bits or more, by exponent field.
    static constexpr T power(int exponent) {
        return exponent + Bias <= 0                       ? T{1}
               : exponent + Bias >= (1 << Exponent) ? magnitude_mask
                                                    : static_cast<T>(static_cast<T>(exponent + Bias)
                                                                     << Mantissa);
    }

    static WG_INLINE bool is_nan(T x) {
        const T magnitude = static_cast<T>(x & magnitude_mask);
        if constexpr (S == Special::none) return false;
        if constexpr (S == Special::negative_zero) return x == sign;
        if constexpr (S == Special::ieee) return magnitude > infinity;
        return magnitude >= first_not_finite;
    }
    static WG_INLINE bool is_inf(T x) {
        return S == Special::ieee && static_cast<T>(x & magnitude_mask) == infinity;
    }
    static WG_INLINE T magnitude(T x) { return static_cast<T>(x & magnitude_mask); }

    // Orders finite scalars: -0 comes just below +0.
    static WG_INLINE int64_t key(T x) {
        const int64_t m = static_cast<int64_t>(magnitude(x));
        return x & sign ? ~m : m;
    }

    static WG_INLINE double value(T x) {
        if constexpr (Bits == 64) {
            return load_one<double>(&x);
        } else {
            const uint64_t m = magnitude(x);
            uint64_t exponent = m >> Mantissa;
            uint64_t fraction = m & ((uint64_t{1} << Mantissa) - 1);
            if (exponent == 0 && is_signed) exponent = 1;
            else fraction |= uint64_t{1} << Mantissa;
            const uint64_t scale = (exponent + (1023 - Bias - Mantissa)) << 52;
            const double result = static_cast<double>(fraction) * load_one<double>(&scale);
            return x & sign ? -result : result;
        }
    }
};

// An integer of `Bits` bits in storage T, two's complement when signed.
template <class T, int Bits, bool IsSigned>
struct Integer {
    using Storage = T;
    static constexpr bool is_float = false;
    static constexpr bool is_signed = IsSigned;
    static constexpr int bits = Bits;
    static constexpr T sign = IsSigned ? static_cast<T>(T{1} << (Bits - 1)) : T{0};
    static constexpr int unused = 8 * static_cast<int>(sizeof(T)) - Bits;
    static constexpr T mask = static_cast<T>(static_cast<T>(~T{0}) >> unused);
    static constexpr T least_normal = 1;
    static constexpr bool has_zero = true;
    static constexpr T power(int) { return 0; }

    static WG_INLINE bool is_nan(T) { return false; }
    static WG_INLINE bool is_inf(T) { return false; }
    static WG_INLINE T magnitude(T x) {
        if constexpr (!IsSigned) return x;
        return x & sign ? static_cast<T>((T{0} - x) & mask) : x;
    }
    // The value, but for U64.
    static WG_INLINE int64_t extended(T x) {
        if constexpr (!IsSigned) return static_cast<int64_t>(x);
        return static_cast<Signed<T>>(static_cast<T>(x << unused)) >> unused;
    }
    // Orders scalars; U64 keeps its order with the top bit flipped.
    static WG_INLINE int64_t key(T x) {
        if constexpr (Bits == 64 && !IsSigned)
            return static_cast<int64_t>(x ^ (uint64_t{1} << 63));
        else
            return extended(x);
    }
    static WG_INLINE double value(T x) {
        if constexpr (Bits == 64 && !IsSigned) return static_cast<double>(x);
        else return static_cast<double>(extended(x));
    }
};

using F64 = Float<uint64_t, 64, 11, 52, 1023, Special::ieee>;
using F32 = Float<uint32_t, 32, 8, 23, 127, Special::ieee>;
using F16 = Float<uint16_t, 16, 5, 10, 15, Special::ieee>;
using BF16 = Float<uint16_t, 16, 8, 7, 127, Special::ieee>;
using E4M3 = Float<uint8_t, 8, 4, 3, 7, Special::top>;
using E5M2 = Float<uint8_t, 8, 5, 2, 15, Special::ieee>;
using E4M3FNUZ = Float<uint8_t, 8, 4, 3, 8, Special::negative_zero>;
using E5M2FNUZ = Float<uint8_t, 8, 5, 2, 16, Special::negative_zero>;
using E8M0 = Float<uint8_t, 8, 8, 0, 127, Special::all_ones>;
using E2M3 = Float<uint8_t, 6, 2, 3, 1, Special::none>;
using E3M2 = Float<uint8_t, 6, 3, 2, 3, Special::none>;
using F4 = Float<uint8_t, 4, 2, 1, 1, Special::none>;

}  // namespace
