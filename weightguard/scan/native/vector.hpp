// Vectors of WG_VECTOR_BYTES bytes (GCC and Clang vector extensions), loads, maxima, reductions.
//
// Everything is in an unnamed namespace and free of std templates: each instruction set compiles
// its own copy, and the linker must not merge them.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#define WG_INLINE inline __attribute__((always_inline))
#define WG_LAMBDA_INLINE __attribute__((always_inline))

template <class T, unsigned Bytes>
struct VectorOf {
    typedef T type __attribute__((vector_size(Bytes)));
};
template <class T>
using Vec = typename VectorOf<T, WG_VECTOR_BYTES>::type;

template <class T>
constexpr unsigned kLanes = WG_VECTOR_BYTES / sizeof(T);

template <class T>
struct SignedOf;
template <>
struct SignedOf<uint8_t> {
    using type = int8_t;
};
template <>
struct SignedOf<uint16_t> {
    using type = int16_t;
};
template <>
struct SignedOf<uint32_t> {
    using type = int32_t;
};
template <>
struct SignedOf<uint64_t> {
    using type = int64_t;
};
template <class T>
using Signed = typename SignedOf<T>::type;

// Canonical bytes may lie at any address, so values are always copied, never cast.
template <class T>
WG_INLINE T load_one(const void* from) {
    T value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
WG_INLINE Vec<T> load(const void* from) {
    return load_one<Vec<T>>(from);
}

template <class T>
WG_INLINE void store(void* to, Vec<T> value) {
    __builtin_memcpy(to, &value, sizeof value);
}

template <class T>
WG_INLINE Vec<T> splat(T value) {
    return Vec<T>{} + value;
}

template <class V>
WG_INLINE V greater(V a, V b) {
    return a > b ? a : b;
}

template <class V>
WG_INLINE V lesser(V a, V b) {
    return a < b ? a : b;
}

// The same value, but opaque: compilers that see a vector taken apart later would keep it in
// memory all through the loop that makes it.
template <class V>
WG_INLINE V in_register(V v) {
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}

// Halves of a vector, to go on with shorter ones.
template <class T, unsigned Bytes>
struct Halves {
    typename VectorOf<T, Bytes / 2>::type low, high;

    explicit WG_INLINE Halves(typename VectorOf<T, Bytes>::type v) {
        v = in_register(v);
        __builtin_memcpy(&low, &v, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    }
};

template <class T, unsigned Bytes = WG_VECTOR_BYTES>
WG_INLINE T greatest(typename VectorOf<T, Bytes>::type v) {
    if constexpr (Bytes > 16) {
        const Halves<T, Bytes> half(v);
        return greatest<T, Bytes / 2>(greater(half.low, half.high));
#if defined(__SSE4_1__)
    } else if constexpr (sizeof(T) == 2) {
        // one instruction finds the least of eight
        const T flip = T(-1) > T(0) ? static_cast<T>(0xffff) : static_cast<T>(0x7fff);
        const __m128i least = _mm_minpos_epu16(reinterpret_cast<__m128i>(v ^ flip));
        return static_cast<T>(static_cast<T>(_mm_cvtsi128_si32(least)) ^ flip);
#endif
    } else {
        T best = v[0];
        for (unsigned i = 1; i < Bytes / sizeof(T); ++i) best = v[i] > best ? v[i] : best;
        return best;
    }
}

template <class T>
WG_INLINE T least(Vec<T> v) {
    return static_cast<T>(~greatest<T>(~v));
}

// Whether any element of a comparison's result is true.
template <class V>
WG_INLINE bool any(V truths) {
    const auto words = reinterpret_cast<Vec<uint64_t>>(truths);
    uint64_t found = 0;
    for (unsigned i = 0; i < kLanes<uint64_t>; ++i) found |= words[i];
    return found != 0;
}

// The sum of all elements, two and two by halving: element i and element i + half.
template <class T, unsigned Bytes = WG_VECTOR_BYTES>
WG_INLINE T halved_sum(typename VectorOf<T, Bytes>::type v) {
    if constexpr (Bytes > 16) {
        const Halves<T, Bytes> half(v);
        return halved_sum<T, Bytes / 2>(half.low + half.high);
    } else {
        static_assert(Bytes / sizeof(T) == 2);
        return v[0] + v[1];
    }
}

// 32-bit elements, added in pairs of neighbours to 64 bits.
WG_INLINE Vec<uint64_t> widened_sum(Vec<uint32_t> v) {
    const auto pairs = reinterpret_cast<Vec<uint64_t>>(v);
    return (pairs & 0xffffffffu) + (pairs >> 32);
}
WG_INLINE Vec<int64_t> widened_sum(Vec<int32_t> v) {
    const auto pairs = reinterpret_cast<Vec<int64_t>>(v);
    return (pairs << 32 >> 32) + (pairs >> 32);
}

// The sum of all elements of a vector of counts.
WG_INLINE uint64_t counted(Vec<uint64_t> v) { return halved_sum<uint64_t>(v); }
WG_INLINE uint64_t counted(Vec<uint32_t> v) { return counted(widened_sum(v)); }
WG_INLINE uint64_t counted(Vec<uint16_t> v) {
    const auto pairs = reinterpret_cast<Vec<uint32_t>>(v);
    return counted((pairs & 0xffffu) + (pairs >> 16));
}
WG_INLINE uint64_t counted(Vec<uint8_t> v) {
    const auto pairs = reinterpret_cast<Vec<uint16_t>>(v);
    return counted((pairs & uint16_t{0xff}) + (pairs >> 8));
}

}  // namespace
