// The weighted sum of outputs with AVX2's widening product.
#pragma once

#include <immintrin.h>

#include "common.hpp"

namespace {

struct Weigh {
    static __m256i load(const void* at) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(at));
    }
    static void add(const int32_t* weight, const int32_t* y, uint64_t* sums, int lanes) {
        __m256i even = load(sums), odd = load(sums + 4);
        for (int l = 0; l < lanes; l += 8) {
            const __m256i w = load(weight + l), v = load(y + l);
            even = _mm256_add_epi64(even, _mm256_mul_epi32(w, v));
            odd = _mm256_add_epi64(
                odd, _mm256_mul_epi32(_mm256_srli_epi64(w, 32), _mm256_srli_epi64(v, 32)));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), even);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 4), odd);
    }
};

}  // namespace
