// From GGML blocks to the binary32 numbers that they stand for. Layouts: ggml's quantised types.
// Sixteen elements at a time are unpacked to one code a byte and scaled, in vectors of 16 bytes,
// which every processor has; wider ones gain little. The order of roundings is part of the
// result: products and differences as written, none fused.
#pragma once

#include <cstdint>
#include <cstring>

namespace weightguard {
namespace ggml {

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The binary16 number at `bytes`.
inline float half(const uint8_t* bytes) {
    const uint32_t bits = bytes[0] | static_cast<uint32_t>(bytes[1]) << 8;
    const uint32_t sign = (bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest < 0x0400) return from_bits(sign | 0x3f800000) * (static_cast<float>(rest) * 0x1p-24f);
    if (rest < 0x7c00) return from_bits(sign | ((rest << 13) + (112u << 23)));
    return from_bits(sign | 0x7f800000 | rest << 13);
}

// Whether the binary16 number at `bytes` is an infinity or NaN: only those can give NaN.
inline bool wild(const uint8_t* bytes) { return (bytes[1] & 0x7c) == 0x7c; }

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint64_t Words2 __attribute__((vector_size(16)));
typedef int16_t Shorts8 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef float Floats4 __attribute__((vector_size(16)));

inline Bytes16 load(const uint8_t* bytes) {
    Bytes16 value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

// 16 in byte i of the result where bit i of the 16 bits at `bytes` is set, else 0.
inline Bytes16 sixteens(const uint8_t* bytes) {
    constexpr uint64_t copies = 0x0101010101010101u, bits = 0x8040201008040201u;
    const Words2 chosen = Words2{bytes[0] * copies, bytes[1] * copies} & Words2{bits, bits};
    return reinterpret_cast<Bytes16>(reinterpret_cast<Bytes16>(chosen) != 0) & 16;
}

// Bits `shift` and up of 16 bytes, `mask` wide; shifted as words, as there is no byte shift.
inline Bytes16 field(Bytes16 bytes, int shift, uint8_t mask) {
    return reinterpret_cast<Bytes16>(reinterpret_cast<Words2>(bytes) >> shift) & mask;
}

// The four signed numbers of 16 bits at `half` of `values`, as binary32. A number beside its own
// copy, shifted down, is sign-extended on any machine.
inline Floats4 floats(Shorts8 values, int half) {
    const Shorts8 doubled = half ? __builtin_shufflevector(values, values, 4, 4, 5, 5, 6, 6, 7, 7)
                                 : __builtin_shufflevector(values, values, 0, 0, 1, 1, 2, 2, 3, 3);
    return __builtin_convertvector(reinterpret_cast<Ints4>(doubled) >> 16, Floats4);
}

// Calls put(i, four codes from code i on, as binary32).
template <class Put>
inline void each_four(Bytes16 codes, Put put) {
    const Bytes16 low = __builtin_shufflevector(
        codes, codes, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const Bytes16 high = __builtin_shufflevector(
        codes, codes, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
    const Shorts8 first = reinterpret_cast<Shorts8>(low) >> 8;
    const Shorts8 second = reinterpret_cast<Shorts8>(high) >> 8;
    put(0, floats(first, 0));
    put(4, floats(first, 1));
    put(8, floats(second, 0));
    put(12, floats(second, 1));
}

// out[i] = scale * codes[i] for 16 signed codes.
inline void scaled(Bytes16 codes, float scale, float* out) {
    each_four(codes, [=](int i, Floats4 four) {
        four *= scale;
        std::memcpy(out + i, &four, sizeof four);
    });
}

// out[i] = scale * codes[i] - minimum for 16 signed codes.
inline void scaled(Bytes16 codes, float scale, float minimum, float* out) {
    each_four(codes, [=](int i, Floats4 four) {
        four = four * scale - minimum;
        std::memcpy(out + i, &four, sizeof four);
    });
}

struct Q4_0 {
    static constexpr int bytes = 18, elements = 32;
    static bool wild_scale(const uint8_t* b) { return wild(b); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b);
        const Bytes16 q = load(b + 2);
        scaled((q & 15) - 8, d, out);
        scaled((q >> 4) - 8, d, out + 16);
    }
};

// d * q + m; a negative m subtracted rounds alike.
struct Q4_1 {
    static constexpr int bytes = 20, elements = 32;
    static bool wild_scale(const uint8_t* b) { return wild(b) || wild(b + 2); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b), minimum = -half(b + 2);
        const Bytes16 q = load(b + 4);
        scaled(q & 15, d, minimum, out);
        scaled(q >> 4, d, minimum, out + 16);
    }
};

// Nibbles as in Q4_0, with 32 fifth bits before them.
struct Q5_0 {
    static constexpr int bytes = 22, elements = 32;
    static bool wild_scale(const uint8_t* b) { return wild(b); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b);
        const Bytes16 q = load(b + 6);
        scaled(((q & 15) | sixteens(b + 2)) - 16, d, out);
        scaled(((q >> 4) | sixteens(b + 4)) - 16, d, out + 16);
    }
};

struct Q5_1 {
    static constexpr int bytes = 24, elements = 32;
    static bool wild_scale(const uint8_t* b) { return wild(b) || wild(b + 2); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b), minimum = -half(b + 2);
        const Bytes16 q = load(b + 8);
        scaled((q & 15) | sixteens(b + 4), d, minimum, out);
        scaled((q >> 4) | sixteens(b + 6), d, minimum, out + 16);
    }
};

struct Q8_0 {
    static constexpr int bytes = 34, elements = 32;
    static bool wild_scale(const uint8_t* b) { return wild(b); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b);
        scaled(load(b + 2), d, out);
        scaled(load(b + 18), d, out + 16);
    }
};

// The types with blocks of 256 elements are read in 16 parts of 16. A byte holds elements 32
// apart: part p of 2-bit elements is in field p / 2 % 4 of the 16 bytes named here, part p of
// 4-bit elements in field p / 2 % 2.
inline Bytes16 two_bits(const uint8_t* q, int part) {
    return field(load(q + part / 8 * 32 + part % 2 * 16), part / 2 % 4 * 2, 3);
}
inline Bytes16 four_bits(const uint8_t* q, int part) {
    return field(load(q + part / 4 * 32 + part % 2 * 16), part / 2 % 2 * 4, 15);
}
inline Bytes16 one_bit(const uint8_t* q, int part) {
    return field(load(q + part % 2 * 16), part / 2, 1);
}

// 16 scales and minima of 4 bits; elements of 2 bits; d, dmin.
struct Q2_K {
    static constexpr int bytes = 84, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b + 80) || wild(b + 82); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b + 80), least = half(b + 82);
        for (int part = 0; part < 16; ++part) {
            const float scale = d * static_cast<float>(b[part] & 15);
            const float minimum = least * static_cast<float>(b[part] >> 4);
            scaled(two_bits(b + 16, part), scale, minimum, out + 16 * part);
        }
    }
};

// Third bits, which mean -4 where they are 0; elements of 2 bits; 16 scales of 6 bits; d.
struct Q3_K {
    static constexpr int bytes = 110, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b + 108); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b + 108);
        const uint8_t* packed = b + 96;
        for (int part = 0; part < 16; ++part) {
            const int low = part < 8 ? packed[part] & 15 : packed[part - 8] >> 4;
            const int high = packed[8 + part % 4] >> part / 4 * 2 & 3;
            const float scale = d * static_cast<float>((low | high << 4) - 32);
            const Bytes16 codes = two_bits(b + 32, part) + one_bit(b, part) * 4 - 4;
            scaled(codes, scale, out + 16 * part);
        }
    }
};

// Scale and minimum of 32 elements, from 8 pairs of 6 bits in 12 bytes.
inline int six_bit_scale(const uint8_t* p, int run) {
    return run < 4 ? p[run] & 63 : (p[run + 4] & 15) | (p[run - 4] >> 2 & 48);
}
inline int six_bit_minimum(const uint8_t* p, int run) {
    return run < 4 ? p[run + 4] & 63 : p[run + 4] >> 4 | (p[run] >> 2 & 48);
}

// d, dmin; scales and minima; elements of 4 bits.
struct Q4_K {
    static constexpr int bytes = 144, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b) || wild(b + 2); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b), least = half(b + 2);
        for (int part = 0; part < 16; ++part) {
            const float scale = d * static_cast<float>(six_bit_scale(b + 4, part / 2));
            const float minimum = least * static_cast<float>(six_bit_minimum(b + 4, part / 2));
            scaled(four_bits(b + 16, part), scale, minimum, out + 16 * part);
        }
    }
};

// As Q4_K, with fifth bits before the elements.
struct Q5_K {
    static constexpr int bytes = 176, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b) || wild(b + 2); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b), least = half(b + 2);
        for (int part = 0; part < 16; ++part) {
            const float scale = d * static_cast<float>(six_bit_scale(b + 4, part / 2));
            const float minimum = least * static_cast<float>(six_bit_minimum(b + 4, part / 2));
            const Bytes16 codes = four_bits(b + 48, part) | one_bit(b + 16, part) * 16;
            scaled(codes, scale, minimum, out + 16 * part);
        }
    }
};

// Low nibbles, 64 elements apart; upper 2 bits; 16 scales of 8 bits; d.
struct Q6_K {
    static constexpr int bytes = 210, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b + 208); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b + 208);
        for (int part = 0; part < 16; ++part) {
            const float scale = d * static_cast<float>(static_cast<int8_t>(b[192 + part]));
            const Bytes16 bytes = load(b + part / 8 * 64 + part % 4 * 16);
            const Bytes16 low = field(bytes, part / 4 % 2 * 4, 15);
            scaled((low | two_bits(b + 128, part) * 16) - 32, scale, out + 16 * part);
        }
    }
};

// A byte is 5 base-3 digits as a fraction of 256. The first digit is the top of 3 * fraction, the
// next one that of 3 * fraction mod 256, and the element is one less.
inline Bytes16 trits(Bytes16 fraction) {
    const Bytes16 one = reinterpret_cast<Bytes16>(fraction > 85) & 1;
    const Bytes16 two = reinterpret_cast<Bytes16>(fraction > 170) & 1;
    return one + two - 1;
}

// 48 bytes of 5 digits, those of 32 and of 16 bytes together; 4 bytes of 4 digits; d.
struct TQ1_0 {
    static constexpr int bytes = 54, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b + 52); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b + 52);
        Bytes16 parts[3] = {load(b), load(b + 16), load(b + 32)};
        for (int place = 0; place < 5; ++place) {
            scaled(trits(parts[0]), d, out + 32 * place);
            scaled(trits(parts[1]), d, out + 32 * place + 16);
            scaled(trits(parts[2]), d, out + 160 + 16 * place);
            for (Bytes16& part : parts) part = part + part + part;
        }
        uint8_t rest[16];
        for (int i = 0; i < 4; ++i) rest[i] = b[48 + i];
        for (int i = 4; i < 16; ++i) rest[i] = static_cast<uint8_t>(3 * rest[i - 4]);
        scaled(trits(load(rest)), d, out + 240);
    }
};

// Elements of 2 bits; d.
struct TQ2_0 {
    static constexpr int bytes = 66, elements = 256;
    static bool wild_scale(const uint8_t* b) { return wild(b + 64); }
    static void block(const uint8_t* b, float* out) {
        const float d = half(b + 64);
        for (int part = 0; part < 16; ++part)
            scaled(two_bits(b, part) - 1, d, out + 16 * part);
    }
};

// The processor chooses sign and payload of a NaN: replace them by one NaN for all machines.
inline void canonical(float* out, int count) {
    for (int i = 0; i < count; ++i)
        if (out[i] != out[i]) out[i] = from_bits(0x7fc00000);
}

template <class Type>
void dequantise(const uint8_t* blocks, uint64_t count, float* out) {
    for (uint64_t i = 0; i < count; ++i) {
        Type::block(blocks, out);
        if (Type::wild_scale(blocks)) canonical(out, Type::elements);
        blocks += Type::bytes;
        out += Type::elements;
    }
}

}  // namespace ggml
}  // namespace weightguard
