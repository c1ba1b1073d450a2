/* C = A B in float32, for the products over all steps: panels of B, rows of A.
 *
 * The BLAS that PyTorch comes with takes half of what an AMD processor's vectors can do. */
#include <stdlib.h>

#include "product.h"
#include "threads.h"

/* Depth of a block: of it a panel of B and some rows of A stay in the second-level cache. */
#define BLOCK 512
/* Rows of A that one thread takes before it goes on to the next panel. */
#define ROWS 48

typedef struct {
    int64_t m, n, k, threads, accumulate;
    const float *a, *b; /* (M, K), of which one stride is 1, and (K, N) */
    int64_t a_row, a_column, b_row, b_column;
    float *c; /* (M, N) */
    int64_t c_row;
    float *panels;  /* (N / PANEL, BLOCK, PANEL) */
    float *edges;   /* (threads, ROWS, PANEL) */
} matmul_call;

static void pack_panel(const matmul_call *of, int64_t panel, int64_t from, int64_t depth) {
    int64_t first = panel * PANEL, n = of->n - first < PANEL ? of->n - first : PANEL;
    float *out = of->panels + panel * BLOCK * PANEL;
    const float *source = of->b + from * of->b_row + first * of->b_column;
    if (n < PANEL) memset(out, 0, (size_t)(depth * PANEL) * sizeof(float));
    if (of->b_column == 1) {
        for (int64_t k = 0; k < depth; k++)
            memcpy(out + k * PANEL, source + k * of->b_row, (size_t)n * sizeof(float));
        return;
    }
    for (int64_t k = 0; k < depth; k += 16)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = k; j < k + 16 && j < depth; j++)
                out[j * PANEL + i] = source[j * of->b_row + i * of->b_column];
}

/* a (M, K) times b (K, N) into c (M, N), or added to it. */
EXPORT void matmul(const matmul_call *of) {
    int64_t panels = (of->n + PANEL - 1) / PANEL, blocks = (of->m + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(of->threads)
    {
        int64_t thread, threads;
        which_thread(&thread, &threads);
        float *edge = of->edges + thread * ROWS * PANEL;
        for (int64_t from = 0; from < of->k; from += BLOCK) {
            int64_t depth = of->k - from < BLOCK ? of->k - from : BLOCK;
            for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; p++)
                pack_panel(of, p, from, depth);
            BARRIER
            for (int64_t block = blocks * thread / threads;
                 block < blocks * (thread + 1) / threads; block++) {
                int64_t row = of->m * block / blocks, rows = of->m * (block + 1) / blocks - row;
                const float *a = of->a + row * of->a_row + from * of->a_column;
                for (int64_t p = 0; p < panels; p++) {
                    int64_t n = of->n - p * PANEL < PANEL ? of->n - p * PANEL : PANEL;
                    float *out = of->c + row * of->c_row + p * PANEL;
                    int64_t width = of->c_row;
                    int fresh = from == 0 && !of->accumulate;
                    if (n < PANEL) {
                        for (int64_t i = 0; i < rows; i++)
                            memcpy(edge + i * PANEL, out + i * width, (size_t)n * sizeof(float));
                        out = edge;
                        width = PANEL;
                    }
                    for (int64_t i = 0; fresh && i < rows; i++)
                        memset(out + i * width, 0, PANEL * sizeof(float));
                    const float *panel = of->panels + p * BLOCK * PANEL;
                    if (of->a_column == 1)
                        tiles_of(out, width, panel, a, of->a_row, depth, rows, n, 0, 0);
                    else tiles_of(out, width, panel, a, of->a_column, depth, rows, n, 0, 1);
                    if (n < PANEL)
                        for (int64_t i = 0; i < rows; i++)
                            memcpy(of->c + (row + i) * of->c_row + p * PANEL, edge + i * PANEL,
                                   (size_t)n * sizeof(float));
                }
            }
            BARRIER
        }
    }
}

EXPORT int64_t matmul_panels(int64_t n) { return (n + PANEL - 1) / PANEL * BLOCK * PANEL; }
EXPORT int64_t matmul_edges(int64_t threads) { return threads * ROWS * PANEL; }
