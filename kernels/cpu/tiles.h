/* Whole tiles in bfloat16, of up to 16 rows by 16 outputs by 32 of depth: AMX, whose permission a
 * process has to ask for.
 *
 * ULMFIT_FAST_EMULATE_TILES computes them in plain C, so that what is built on them is tested on any
 * processor.
 * Source: Intel, "Architecture instruction set extensions programming reference", chapter 3. */
#ifndef ULMFIT_FAST_TILES_H
#define ULMFIT_FAST_TILES_H

#include "simd.h"

#define TILE_ROWS 16
#define TILE_DEPTH 32

#if defined(ULMFIT_FAST_EMULATE_TILES)
#define HAS_TILES 1
#elif defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_TILES 0
#endif

#if HAS_TILES
/* What each of the eight tiles holds: rows, and bytes of a row. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Whether this process may use them. */
extern int tiles_allowed;

/* For how many rows this thread's tiles are shaped, 0 for none. */
static __thread int shaped_for;

#ifdef ULMFIT_FAST_EMULATE_TILES
static __thread struct {
    tile_shapes shapes;
    char data[8][TILE_ROWS][64];
} emulated;

INLINE void load_shapes(const tile_shapes *shapes) {
    memset(&emulated, 0, sizeof emulated);
    emulated.shapes = *shapes;
}

INLINE void load_tile(int tile, const void *from, int64_t stride) {
    for (int row = 0; row < emulated.shapes.rows[tile]; row++)
        memcpy(emulated.data[tile][row], (const char *)from + row * stride,
               emulated.shapes.bytes[tile]);
}

INLINE void store_tile(int tile, void *to, int64_t stride) {
    for (int row = 0; row < emulated.shapes.rows[tile]; row++)
        memcpy((char *)to + row * stride, emulated.data[tile][row], emulated.shapes.bytes[tile]);
}

INLINE void multiply_tiles(int sums, int rows, int panel) {
    for (int m = 0; m < emulated.shapes.rows[sums]; m++) {
        float sum[16], odd[16] = {0.0f}, even[16] = {0.0f};
        uint16_t a[32], b[32];
        memcpy(sum, emulated.data[sums][m], sizeof sum);
        memcpy(a, emulated.data[rows][m], sizeof a);
        for (int k = 0; k < emulated.shapes.rows[panel]; k++) {
            memcpy(b, emulated.data[panel][k], sizeof b);
            for (int n = 0; n < 16; n++) {
                even[n] += from_bfloat16(a[2 * k]) * from_bfloat16(b[2 * n]);
                odd[n] += from_bfloat16(a[2 * k + 1]) * from_bfloat16(b[2 * n + 1]);
            }
        }
        for (int n = 0; n < 16; n++) sum[n] += even[n] + odd[n];
        memcpy(emulated.data[sums][m], sum, sizeof sum);
    }
}

INLINE void zero_tile(int tile) {
    memset(emulated.data[tile], 0, sizeof emulated.data[tile]);
}

INLINE void release(void) {}

INLINE int ask_for_tiles(void) { return 1; }
#else
/* Not the compilers' intrinsics: GCC's do not say which memory they read. */
#define load_shapes(shapes) __asm__ volatile("ldtilecfg (%0)" : : "r"(shapes) : "memory")
#define load_tile(tile, from, stride)                                      \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
#define store_tile(tile, to, stride)                                       \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride) : "memory")
#define multiply_tiles(sums, rows, panel)                                  \
    __asm__ volatile("tdpbf16ps %%tmm" #panel ", %%tmm" #rows ", %%tmm" #sums : : :)
#define zero_tile(tile) __asm__ volatile("tilezero %%tmm" #tile : : :)
#define release() __asm__ volatile("tilerelease" : : :)

/* The numbers are ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux; a kernel that does not know
 * them says no. */
INLINE int ask_for_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif

/* Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 a part of a panel. Of up to 16 rows the sums of
 * four parts lie in 0 to 3; of more, those of two parts and the first 16 rows in 0 and 1, and of
 * the others in 2 and 3. */
INLINE void shape_tiles(int n) {
    if (shaped_for == n) return;
    int first = n < TILE_ROWS ? n : TILE_ROWS, rest = n > TILE_ROWS ? n - TILE_ROWS : first;
    tile_shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) shapes.bytes[tile] = 64;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = (uint8_t)first;
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = (uint8_t)rest;
    shapes.rows[6] = shapes.rows[7] = TILE_ROWS;
    load_shapes(&shapes);
    shaped_for = n;
}

/* At the end of a thread's work: a thread with tiles in use costs more to put aside. */
INLINE void release_tiles(void) {
    if (shaped_for) release();
    shaped_for = 0;
}

/* out (n, 4, 16) += rows (n, K) panel for n <= 32 and a whole number of tiles of depth. */
INLINE void whole_tiles(float *restrict out, int64_t width, const uint16_t *panel,
                        const uint16_t *rows, int64_t stride, int64_t depth, int n) {
    float sums[2 * TILE_ROWS][4 * 16];
    const int64_t of_sums = sizeof sums[0], of_rows = 2 * stride, of_panel = 4 * 16 * 2 * 2;
    shape_tiles(n);
    if (n <= TILE_ROWS) {
        zero_tile(0);
        zero_tile(1);
        zero_tile(2);
        zero_tile(3);
        for (int64_t k = 0; k < depth; k += TILE_DEPTH) {
            const uint16_t *part = panel + k * 64;
            load_tile(4, rows + k, of_rows);
            load_tile(6, part, of_panel);
            multiply_tiles(0, 4, 6);
            load_tile(7, part + 32, of_panel);
            multiply_tiles(1, 4, 7);
            load_tile(6, part + 64, of_panel);
            multiply_tiles(2, 4, 6);
            load_tile(7, part + 96, of_panel);
            multiply_tiles(3, 4, 7);
        }
        store_tile(0, sums[0], of_sums);
        store_tile(1, sums[0] + 16, of_sums);
        store_tile(2, sums[0] + 32, of_sums);
        store_tile(3, sums[0] + 48, of_sums);
    } else {
        for (int half = 0; half < 4; half += 2) {
            zero_tile(0);
            zero_tile(1);
            zero_tile(2);
            zero_tile(3);
            for (int64_t k = 0; k < depth; k += TILE_DEPTH) {
                const uint16_t *part = panel + k * 64 + half * 32;
                load_tile(4, rows + k, of_rows);
                load_tile(6, part, of_panel);
                multiply_tiles(0, 4, 6);
                load_tile(7, part + 32, of_panel);
                multiply_tiles(1, 4, 7);
                load_tile(5, rows + TILE_ROWS * stride + k, of_rows);
                multiply_tiles(2, 5, 6);
                multiply_tiles(3, 5, 7);
            }
            float *to = sums[0] + half * 16, *below = sums[TILE_ROWS] + half * 16;
            store_tile(0, to, of_sums);
            store_tile(1, to + 16, of_sums);
            store_tile(2, below, of_sums);
            store_tile(3, below + 16, of_sums);
        }
    }
    for (int row = 0; row < n; row++)
        for (int lane = 0; lane < 4 * 16; lane++) out[row * width + lane] += sums[row][lane];
}
#else
#define release_tiles()
#endif

#endif
