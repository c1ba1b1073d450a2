/* Philox-4x32-10 over a row of counters, as in ../philox.py.
 *
 * Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#ifndef ULMFIT_FAST_PHILOX_H
#define ULMFIT_FAST_PHILOX_H

#include "simd.h"

enum { KIND_WEIGHT, KIND_GATE, KIND_EMBEDDING, KIND_LOCKED, KIND_LAYER };

/* Counters at a time: their words stay in the first-level cache, their loops are unrolled. */
#define COUNTERS 64

typedef struct {
    uint32_t word[4][COUNTERS];
} random_words;

/* Intrinsics, for compilers make a product of 64 bits of the one of 32 x 32 bits that is meant:
 * measured, 1.5 times the time with AVX-512 and twice with AVX2. */
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#define HAS_LONGS 1
#define PAIRS (LANES / 2)
typedef uint64_t longs __attribute__((vector_size(8 * PAIRS)));
typedef uint32_t lows __attribute__((vector_size(4 * PAIRS), aligned(4), may_alias));

INLINE longs splat_long(uint64_t x) {
    return x + (longs){0};
}

#ifdef __AVX512F__
#define UNROLLED 4 /* 4 x 4 vectors of 32 registers */

INLINE longs multiply(longs x, longs y) {
    return (longs)_mm512_mul_epu32((__m512i)x, (__m512i)y);
}

/* The lower halves of twice PAIRS. */
INLINE words join(longs x, longs y) {
    const words even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    return (words)_mm512_permutex2var_epi32((__m512i)x, (__m512i)even, (__m512i)y);
}
#else
#define UNROLLED 2 /* 4 x 2 vectors of 16 registers */

INLINE longs multiply(longs x, longs y) {
    return (longs)_mm256_mul_epu32((__m256i)x, (__m256i)y);
}

INLINE words join(longs x, longs y) {
    __m256i mixed = (__m256i)_mm256_shuffle_ps((__m256)x, (__m256)y, 0x88);
    return (words)_mm256_permute4x64_epi64(mixed, 0xd8);
}
#endif
#else
#define HAS_LONGS 0
#endif

/* word[0] holds the first words of n <= COUNTERS counters; the others are one for all. What lies
 * behind the n words is overwritten. */
#if HAS_LONGS
INLINE void philox(random_words *restrict out, uint32_t word_1, uint32_t word_2, uint32_t word_3,
                   uint64_t seed, int n) {
    const longs multiplier_0 = splat_long(0xD2511F53u), multiplier_1 = splat_long(0xCD9E8D57u);
    for (int start = 0; start < n; start += UNROLLED * PAIRS) {
        /* A word is the lower half of 64 bits; what is in the upper half is never looked at. */
        longs a[UNROLLED], b[UNROLLED], c[UNROLLED], d[UNROLLED];
        for (int i = 0; i < UNROLLED; i++) {
            const lows *words_0 = (const lows *)(out->word[0] + start + i * PAIRS);
            a[i] = __builtin_convertvector(*words_0, longs);
            b[i] = splat_long(word_1);
            c[i] = splat_long(word_2);
            d[i] = splat_long(word_3);
        }
        uint32_t key_0 = (uint32_t)seed, key_1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            for (int i = 0; i < UNROLLED; i++) {
                longs first = multiply(a[i], multiplier_0), second = multiply(c[i], multiplier_1);
                a[i] = (second >> 32) ^ b[i] ^ splat_long(key_0);
                b[i] = second;
                c[i] = (first >> 32) ^ d[i] ^ splat_long(key_1);
                d[i] = first;
            }
            key_0 += 0x9E3779B9u;
            key_1 += 0xBB67AE85u;
        }
        /* In whole vectors: of what is stored in halves no whole one is forwarded to a load. */
        for (int i = 0; i < UNROLLED; i += 2) {
            int at = start + i * PAIRS;
            *(words *)(out->word[0] + at) = join(a[i], a[i + 1]);
            *(words *)(out->word[1] + at) = join(b[i], b[i + 1]);
            *(words *)(out->word[2] + at) = join(c[i], c[i + 1]);
            *(words *)(out->word[3] + at) = join(d[i], d[i + 1]);
        }
    }
}
#else
INLINE void philox(random_words *restrict out, uint32_t word_1, uint32_t word_2, uint32_t word_3,
                   uint64_t seed, int n) {
    uint32_t *restrict a = out->word[0], *restrict b = out->word[1];
    uint32_t *restrict c = out->word[2], *restrict d = out->word[3];
    uint32_t key_0 = (uint32_t)seed, key_1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < n; i++) {
        b[i] = word_1;
        c[i] = word_2;
        d[i] = word_3;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < n; i++) {
            uint64_t first = 0xD2511F53ull * a[i], second = 0xCD9E8D57ull * c[i];
            uint32_t kept = b[i];
            b[i] = (uint32_t)second;
            a[i] = (uint32_t)(second >> 32) ^ kept ^ key_0;
            c[i] = (uint32_t)(first >> 32) ^ d[i] ^ key_1;
            d[i] = (uint32_t)first;
        }
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
}
#endif

/* Four probabilities as thresholds floor(p 2^32) and scales 1/(1-p). p = 1 has no threshold of 32
 * bits: its scale of 0 drops what the largest one keeps. */
typedef struct {
    uint64_t seed;
    uint32_t stream;
    uint32_t active;
    uint32_t threshold[4];
    float scale[4];
} dropout;

#endif
