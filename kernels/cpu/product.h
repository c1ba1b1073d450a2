/* The product that a recurrence is made of: a packed weight with a few rows.
 *
 * A panel holds 4 x LANES outputs of the weight for all of its depth K, (K, 4, LANES), so that it is
 * read from beginning to end; of bfloat16 two neighbours along K lie together, (K / 2, 4, LANES, 2),
 * as the instructions take them. Sums are float32, each in one order, whoever computes it. */
#ifndef ULMFIT_FAST_PRODUCT_H
#define ULMFIT_FAST_PRODUCT_H

#include "tiles.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define HAS_DOT 1
#else
#define HAS_DOT 0
#endif
#define HAS_BFLOAT16 (HAS_DOT || HAS_TILES)

#define PANEL (4 * LANES)
/* As much of a panel as the second-level cache keeps beside the rows. */
#define DEPTH 1536

/* out (n, 4, LANES) += rows (n, K) panel; the rows are `stride` apart, their sums `width`. The rows
 * of a transposed matrix lie beside each other, and their elements `stride` apart. Of a panel that is
 * not full only the first `quarters` are computed. The sum of a tile begins at 0: a single one over a
 * large depth would lose what is small beside it. */
INLINE void tile_float32(float *restrict out, int64_t width, const float *restrict panel,
                         const float *restrict rows, int64_t stride, int64_t depth, const int n,
                         const int quarters, const int transposed) {
    floats sum[ROWS_AT_ONCE][4];
    for (int j = 0; j < n; j++)
        for (int v = 0; v < quarters; v++) sum[j][v] = splat(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        const floats *weight = (const floats *)(panel + k * PANEL);
        for (int j = 0; j < n; j++) {
            float value = transposed ? rows[k * stride + j] : rows[j * stride + k];
            for (int v = 0; v < quarters; v++) sum[j][v] += weight[v] * value;
        }
    }
    for (int j = 0; j < n; j++)
        for (int v = 0; v < quarters; v++) *(floats *)(out + j * width + v * LANES) += sum[j][v];
}

#if HAS_BFLOAT16
/* sum + weight (LANES, 2) times a pair: an intrinsic, for no loop becomes this instruction. */
INLINE floats add_pairs(floats sum, const uint16_t *weight, uint32_t pair) {
#if HAS_DOT
    __m512bh with = (__m512bh)_mm512_loadu_si512(weight);
    return (floats)_mm512_dpbf16_ps((__m512)sum, with, (__m512bh)_mm512_set1_epi32((int)pair));
#else
    words both = *(const words *)weight;
    floats odd = (floats)(both & 0xffff0000u), even = (floats)(both << 16);
    return sum + even * from_bfloat16((uint16_t)pair) + odd * from_bfloat16(pair >> 16);
#endif
}

INLINE void tile_bfloat16(float *restrict out, int64_t width, const uint16_t *restrict panel,
                          const uint16_t *restrict rows, int64_t stride, int64_t depth,
                          const int n, const int quarters) {
    floats sum[ROWS_AT_ONCE][4];
    for (int j = 0; j < n; j++)
        for (int v = 0; v < quarters; v++) sum[j][v] = splat(0.0f);
    for (int64_t k = 0; k < depth; k += 2) {
        const uint16_t *weight = panel + k * PANEL;
        for (int j = 0; j < n; j++) {
            uint32_t pair;
            memcpy(&pair, rows + j * stride + k, 4);
            for (int v = 0; v < quarters; v++)
                sum[j][v] = add_pairs(sum[j][v], weight + v * 2 * LANES, pair);
        }
    }
    for (int j = 0; j < n; j++)
        for (int v = 0; v < quarters; v++) *(floats *)(out + j * width + v * LANES) += sum[j][v];
}
#endif

/* Only float32 is taken transposed. */
INLINE void tile(float *out, int64_t width, const void *panel, const void *rows, int64_t stride,
                 int64_t depth, const int n, const int quarters, const int bfloat16,
                 const int transposed) {
#if HAS_BFLOAT16
    if (bfloat16) {
        tile_bfloat16(out, width, panel, rows, stride, depth, n, quarters);
        return;
    }
#endif
    tile_float32(out, width, panel, rows, stride, depth, n, quarters, transposed);
}

/* The same for any number of rows. */
INLINE void tiles(float *out, int64_t width, const void *panel, const void *rows, int64_t stride,
                  int64_t depth, int64_t n, const int quarters, const int bfloat16,
                  const int transposed) {
    int64_t size = bfloat16 ? 2 : 4, groups = (n + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#if HAS_TILES
    if (bfloat16 && tiles_allowed) {
        /* A row's sum is made in one way, whatever rows are beside it. */
        int64_t whole = depth / TILE_DEPTH * TILE_DEPTH, most = 2 * TILE_ROWS;
        int64_t blocks = whole ? (n + most - 1) / most : 0;
        for (int64_t block = 0; block < blocks; block++) {
            int64_t first = n * block / blocks, count = n * (block + 1) / blocks - first;
            whole_tiles(out + first * width, width, panel,
                        (const uint16_t *)rows + first * stride, stride, whole, (int)count);
        }
        if (whole == depth) return;
        panel = (const uint16_t *)panel + whole * PANEL;
        rows = (const uint16_t *)rows + whole;
        depth -= whole;
    }
#endif
    for (int64_t group = 0; group < groups; group++) {
        int64_t first = n * group / groups, count = n * (group + 1) / groups - first;
        float *sums = out + first * width;
        const char *row = (const char *)rows + first * (transposed ? 1 : stride) * size;
#define TILE(rows_of_it) \
    case rows_of_it:     \
        tile(sums, width, panel, row, stride, depth, rows_of_it, quarters, bfloat16, transposed); \
        break;
        switch (count) {
#if ROWS_AT_ONCE == 6
            TILE(6)
            TILE(5)
            TILE(4)
#endif
            TILE(3)
            TILE(2)
            TILE(1)
        }
#undef TILE
    }
}

/* Those of a panel with so many outputs; half a panel is as much as it pays to tell apart. */
INLINE void tiles_of(float *out, int64_t width, const void *panel, const void *rows, int64_t stride,
                     int64_t depth, int64_t n, int64_t outputs, const int bfloat16,
                     const int transposed) {
    if (outputs <= 2 * LANES)
        tiles(out, width, panel, rows, stride, depth, n, 2, bfloat16, transposed);
    else tiles(out, width, panel, rows, stride, depth, n, 4, bfloat16, transposed);
}

/* out (n, 4, LANES) += rows (n, K) panel, as much of the depth at a time as the cache holds. */
INLINE void add_product(float *out, const void *panel, const void *rows, int64_t stride,
                        int64_t depth, int64_t n, int64_t outputs, const int bfloat16) {
    int64_t size = bfloat16 ? 2 : 4;
    for (int64_t from = 0; from < depth; from += DEPTH)
        tiles_of(out, PANEL, (const char *)panel + from * PANEL * size,
                 (const char *)rows + from * size, stride,
                 depth - from < DEPTH ? depth - from : DEPTH, n, outputs, bfloat16, 0);
}

/* Where weight k of output `lane` in quarter v of a panel lies. */
INLINE int64_t in_panel(int64_t k, int v, int64_t lane, const int bfloat16) {
    if (!bfloat16) return (k * 4 + v) * LANES + lane;
    return ((k / 2 * 4 + v) * LANES + lane) * 2 + k % 2;
}

/* A thread's share of panels times rows: whole tiles, in the order of the panels. */
typedef struct {
    int64_t first, last, groups, rows;
} share;

INLINE share share_of(int64_t panels, int64_t rows, int64_t thread, int64_t threads) {
    int64_t groups = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, tiles = panels * groups;
    share own = {tiles * thread / threads, tiles * (thread + 1) / threads, groups, rows};
    return own;
}

/* Take the next panel of a share, and the rows of it that are this thread's; 0 at the end. */
INLINE int next_panel(share *own, int64_t *panel, int64_t *from, int64_t *to) {
    if (own->first >= own->last) return 0;
    *panel = own->first / own->groups;
    int64_t group = own->first % own->groups, left = own->last - own->first;
    int64_t stop = group + left < own->groups ? group + left : own->groups;
    *from = own->rows * group / own->groups;
    *to = own->rows * stop / own->groups;
    own->first += stop - group;
    return 1;
}

#endif
