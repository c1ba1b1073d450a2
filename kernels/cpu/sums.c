/* Sums over the rows of a matrix in float32: the gradients of biases.
 *
 * PyTorch's sum of a bfloat16 matrix in float32 copies the whole of it first. */
#include "simd.h"
#include "threads.h"

/* Columns at a time, whose sums stay in the first-level cache, and rows to a partial sum: one sum
 * over all rows would lose what is small beside it. */
#define COLUMNS 1024
#define ROWS 128

typedef struct {
    int64_t rows, columns, stride, threads;
    const void *x; /* (N, M), columns side by side */
    float *out;    /* (M,), to which the sums are added */
} sums_call;

INLINE void sum_columns(const sums_call *of, int64_t from, int64_t to, const int bfloat16) {
    float partial[COLUMNS];
    for (int64_t row = 0; row < of->rows; row += ROWS) {
        int64_t last = row + ROWS < of->rows ? row + ROWS : of->rows;
        memset(partial, 0, (size_t)(to - from) * sizeof(float));
        for (int64_t r = row; r < last; r++)
            for (int64_t k = from; k < to; k += LANES) {
                int64_t n = to - k;
                floats sum = load_floats(partial + k - from, n);
                store_floats(partial + k - from, sum + load(of->x, r * of->stride + k, n, bfloat16),
                             n);
            }
        for (int64_t k = from; k < to; k++) of->out[k] += partial[k - from];
    }
}

/* The sums over the rows of x (N, M), added to out (M,). */
EXPORT void column_sums(const sums_call *of, int bfloat16) {
    int64_t blocks = (of->columns + COLUMNS - 1) / COLUMNS;
    /* Of few columns each thread takes a part, of whole cache lines. */
    if (blocks < 4 * of->threads) blocks = 4 * of->threads;
    int64_t width = ((of->columns + blocks - 1) / blocks + 15) / 16 * 16;
#pragma omp parallel for num_threads(of->threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t from = block * width, to = from + width < of->columns ? from + width : of->columns;
        if (from >= to) continue;
        if (bfloat16) sum_columns(of, from, to, 1);
        else sum_columns(of, from, to, 0);
    }
}
