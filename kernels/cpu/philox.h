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

/* word[0] holds the first words of n <= COUNTERS counters; the others are one for all. */
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
