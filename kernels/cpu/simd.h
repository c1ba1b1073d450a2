/* Vectors of the width that this CPU has, and the activations on them.
 *
 * GNU C's vectors, which GCC and Clang lower to any instruction set. Without -ffast-math, so that
 * NaN and infinity keep their meaning. */
#ifndef ULMFIT_FAST_SIMD_H
#define ULMFIT_FAST_SIMD_H

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) || defined(ULMFIT_FAST_EMULATE_TILES)
#define LANES 16
#define ROWS_AT_ONCE 6 /* 4 x 6 sums in 32 registers */
#elif defined(__AVX__)
#define LANES 8
#define ROWS_AT_ONCE 3 /* 4 x 3 sums in 16 registers */
#elif defined(__ARM_NEON)
#define LANES 4
#define ROWS_AT_ONCE 6
#else
#define LANES 4
#define ROWS_AT_ONCE 3
#endif

/* Aligned as their elements are: a user's tensor may start anywhere. */
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* A difference, for compilers put one lane after another into place where a loop sets them; x - 0
 * is x, of -0 as well. */
INLINE floats splat(float x) {
    return x - (floats){0.0f};
}

INLINE floats choose(ints mask, floats yes, floats no) {
    return (floats)((mask & (ints)yes) | (~mask & (ints)no));
}

INLINE float from_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE floats widen(halves x) {
    return (floats)(__builtin_convertvector(x, words) << 16);
}

/* To the nearest bfloat16, ties to even; a NaN stays one. */
INLINE halves narrow(floats x) {
    words bits = (words)x;
    words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    words nan = (words)(x != x);
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), halves);
}

INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0u : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* exp(x) to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor
 * polynomial of degree 7 in r. */
INLINE floats exponential(floats x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole */
    x = choose(x > 104.0f, splat(104.0f), x);
    x = choose(x < -104.0f, splat(-104.0f), x);
    floats shifted = x * 1.44269504f + magic;
    floats n = shifted - magic;
    floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f; /* ln 2 in two parts */
    floats p = r * 1.98412698e-4f + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    /* 2^n in two factors, for at the ends one would be no normal number. */
    ints whole = (ints)((words)shifted - 0x4b400000u);
    ints half = whole >> 1;
    words first = ((words)half + 127u) << 23, second = ((words)(whole - half) + 127u) << 23;
    return p * (floats)first * (floats)second;
}

INLINE floats sigmoid(floats x) {
    return 1.0f / (1.0f + exponential(-x));
}

/* An odd polynomial near zero, where 1 - 2 / (exp(2x) + 1) would lose its digits. */
INLINE floats hyperbolic_tangent(floats x) {
    floats square = x * x;
    floats p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    p = p * square * x + x;
    floats far = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
    ints near = (x < 0.625f) & (x > -0.625f);
    /* The sign is that of x: of -0 the polynomial makes 0. */
    return (floats)((ints)choose(near, p, far) | ((ints)x & INT32_MIN));
}

/* The first n lanes from memory that ends after them, zeros in the others. */
INLINE floats load_floats(const float *from, int64_t n) {
    if (n >= LANES) return *(const floats *)from;
    floats value = splat(0.0f);
    for (int64_t i = 0; i < n; i++) value[i] = from[i];
    return value;
}

INLINE void store_floats(float *to, floats value, int64_t n) {
    if (n >= LANES) *(floats *)to = value;
    else
        for (int64_t i = 0; i < n; i++) to[i] = value[i];
}

/* The same of a tensor whose dtype is known when this is compiled: float32 or bfloat16. */
INLINE floats load(const void *from, int64_t at, int64_t n, int bfloat16) {
    if (!bfloat16) return load_floats((const float *)from + at, n);
    const uint16_t *source = (const uint16_t *)from + at;
    if (n >= LANES) return widen(*(const halves *)source);
    floats value = splat(0.0f);
    for (int64_t i = 0; i < n; i++) value[i] = from_bfloat16(source[i]);
    return value;
}

INLINE void store(void *to, int64_t at, floats value, int64_t n, int bfloat16) {
    if (!bfloat16) {
        store_floats((float *)to + at, value, n);
        return;
    }
    uint16_t *target = (uint16_t *)to + at;
    halves narrowed = narrow(value);
    if (n >= LANES) *(halves *)target = narrowed;
    else
        for (int64_t i = 0; i < n; i++) target[i] = narrowed[i];
}

#endif
