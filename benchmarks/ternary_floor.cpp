// What this machine can do at best, for benchmarks/ternary.py: compiled there for this processor.
#include <cstddef>
#include <cstdint>
#include <cstring>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

extern "C" {

// Reads `bytes` (a multiple of 128) as one stream, fetched 4 KiB ahead.
uint64_t read_all(const uint8_t* data, size_t bytes) {
    typedef uint64_t Line __attribute__((vector_size(64)));
    Line a = {}, b = {};
    for (size_t at = 0; at < bytes; at += 128) {
        __builtin_prefetch(data + at + 4096);
        __builtin_prefetch(data + at + 4160);
        Line x, y;
        std::memcpy(&x, data + at, 64);
        std::memcpy(&y, data + at + 64, 64);
        a |= x;
        b |= y;
    }
    uint64_t all = 0;
    for (int i = 0; i < 8; ++i) all |= a[i] | b[i];
    return all;
}

// Multiply-adds of bytes that `rounds` rounds do; 0 where this processor has no such instruction.
uint64_t multiply_add(uint64_t rounds, int32_t* out) {
#ifdef __AVX512VNNI__
    __m512i sums[16];
    for (auto& s : sums) s = _mm512_setzero_si512();
    __m512i x = _mm512_set1_epi8(1);
    for (uint64_t r = 0; r < rounds; ++r) {
        __asm__ volatile("" : "+v"(x));
        for (auto& s : sums) s = _mm512_dpbusd_epi32(s, x, x);
    }
    __m512i all = sums[0];
    for (auto& s : sums) all = _mm512_add_epi32(all, s);
    *out = _mm512_reduce_add_epi32(all);
    return rounds * 16 * 64;
#else
    (void)rounds;
    *out = 0;
    return 0;
#endif
}

// One product with GGML's TQ2_0 rows, as ggml's own loop does it: a dot product for each row.
typedef void (*Dot)(int n, float* out, size_t, const void* weights, size_t, const void* x, size_t,
                    int one);
typedef void (*Quantise)(const float* x, void* out, int64_t n);
void ggml_product(Dot dot, Quantise quantise, const uint8_t* weights, size_t row_bytes, int rows,
                  int columns, const float* x, int tokens, void* scratch, float* out) {
    for (int t = 0; t < tokens; ++t) {
        quantise(x + static_cast<size_t>(t) * columns, scratch, columns);
        for (int r = 0; r < rows; ++r)
            dot(columns, out + static_cast<size_t>(t) * rows + r, 0, weights + r * row_bytes, 0,
                scratch, 0, 1);
    }
}
}
