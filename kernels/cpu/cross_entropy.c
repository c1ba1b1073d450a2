/* Softmax with cross entropy of rows of logits: each row's loss, and the gradient over the logits.
 *
 * A row is one thread's, from its first sum to its last. It is read once from memory, in blocks: the
 * largest so far, the exponentials beside that one, their sum, which shrinks where a later block has
 * a larger one. Then it is in the second-level cache, and written from there. */
#include <math.h>

#include "simd.h"
#include "threads.h"

/* Classes at a time: they stay in the first-level cache. */
#define BLOCK 2048
/* Logits for which another thread is worth its start. */
#define GRAIN 32768

typedef struct {
    int64_t rows, classes, stride, threads, ignore_index;
    void *logits;           /* (N, V), rows `stride` apart */
    const float *bias;      /* (V,), or NULL */
    const int64_t *targets; /* (N,) */
    float *losses;          /* (N,) */
    float *scratch;         /* (threads, scratch_size): factors of blocks, exponentials of a row */
    int64_t scratch_size;
    float label_smoothing;
} loss_call;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE floats larger(floats a, floats b) { return choose(b > a, b, a); }

/* Minus infinity in the lanes from n on. */
INLINE floats first_lanes(floats x, int64_t n) {
    for (int64_t i = n; i < LANES; i++) x[i] = -INFINITY;
    return x;
}

INLINE floats logits_at(const loss_call *of, int64_t at, int64_t class, int64_t n,
                        const int bfloat16) {
    floats x = load(of->logits, at + class, n, bfloat16);
    if (of->bias) x += load_floats(of->bias + class, n);
    return x;
}

INLINE double sum_of(floats x) {
    double sum = 0.0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* Logits of n <= BLOCK classes as float32; returns the largest, and adds them to *total. NaN is not
 * larger than anything: it shows in the sum of the exponentials. */
INLINE float gather(const loss_call *of, float *x, int64_t at, int64_t class, int64_t n,
                    double *total, const int bfloat16) {
    floats largest[4], sum[4];
    for (int j = 0; j < 4; j++) largest[j] = splat(-INFINITY), sum[j] = splat(0.0f);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            floats value = logits_at(of, at, class + i + j * LANES, LANES, bfloat16);
            *(floats *)(x + i + j * LANES) = value;
            largest[j] = larger(largest[j], value);
            sum[j] += value;
        }
    for (; i < n; i += LANES) {
        floats value = logits_at(of, at, class + i, n - i, bfloat16);
        store_floats(x + i, value, n - i);
        sum[0] += value;
        largest[0] = larger(largest[0], first_lanes(value, n - i));
    }
    *total += sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    floats all = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
    float found = all[0];
    for (int j = 1; j < LANES; j++) found = all[j] > found ? all[j] : found;
    return found;
}

/* x becomes exp(x - shift); returns the sum. */
INLINE double exponentials(float *x, float shift, int64_t n, const int keep) {
    floats sum[2] = {splat(0.0f), splat(0.0f)};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int j = 0; j < 2; j++) {
            floats *at = (floats *)(x + i + j * LANES);
            floats value = exponential(*at - shift);
            if (keep) *at = value;
            sum[j] += value;
        }
    for (; i < n; i += LANES) {
        floats value = exponential(first_lanes(load_floats(x + i, n - i), n - i) - shift);
        if (keep) store_floats(x + i, value, n - i);
        sum[0] += value;
    }
    return sum_of(sum[0] + sum[1]);
}

INLINE void fill(const loss_call *of, int64_t at, float value, const int bfloat16) {
    for (int64_t i = 0; i < of->classes; i += LANES)
        store(of->logits, at + i, splat(value), of->classes - i, bfloat16);
}

/* Returns whether the target is no class: its loss and gradient are NaN. */
INLINE int64_t row(const loss_call *of, int64_t r, float *scratch, const int bfloat16,
                   const int gradient) {
    int64_t target = of->targets[r], at = r * of->stride, classes = of->classes;
    if (target == of->ignore_index) {
        of->losses[r] = 0.0f;
        if (gradient) fill(of, at, 0.0f, bfloat16);
        return 0;
    }
    if (target < 0 || target >= classes) {
        of->losses[r] = NAN;
        if (gradient) fill(of, at, NAN, bfloat16);
        return 1;
    }
    float held[BLOCK], *shifts = scratch, *exps = scratch + (classes + BLOCK - 1) / BLOCK;
    /* Where the logits are float32 the exponentials take their place. */
    if (gradient && !bfloat16) exps = (float *)of->logits + at;
    double chosen = logits_at(of, at, target, 1, bfloat16)[0];
    double sum = 0.0, total = 0.0;
    float largest = -INFINITY;
    for (int64_t start = 0, block = 0; start < classes; start += BLOCK, block++) {
        int64_t n = least(BLOCK, classes - start);
        float *x = gradient ? exps + start : held;
        float found = gather(of, x, at, start, n, &total, bfloat16);
        if (found > largest) {
            sum *= exp((double)largest - found);
            largest = found;
        }
        /* Of minus infinities alone nothing but 0 may be subtracted; if no other logit follows, the
         * logarithm of their sum makes the loss NaN, and the quotient by it the gradient. */
        float shift = largest == -INFINITY ? 0.0f : largest;
        sum += exponentials(x, shift, n, gradient);
        shifts[block] = shift;
    }
    double normaliser = largest + log(sum), smoothing = of->label_smoothing;
    double loss = (1.0 - smoothing) * (normaliser - chosen);
    if (smoothing > 0.0) loss += smoothing * (normaliser - total / classes);
    of->losses[r] = (float)loss;
    if (!gradient) return 0;
    float even = (float)(smoothing / classes);
    /* Near 0 for a sure hit, whose digits are left by float64 alone. */
    float of_chosen = (float)(exp(chosen - normaliser) - smoothing / classes - (1.0 - smoothing));
    for (int64_t start = 0, block = 0; start < classes; start += BLOCK, block++) {
        int64_t n = least(BLOCK, classes - start), i = 0;
        float factor = (float)(exp((double)shifts[block] - largest) / sum);
        const float *x = exps + start;
        for (; i + LANES <= n; i += LANES)
            store(of->logits, at + start + i, *(const floats *)(x + i) * factor - even, LANES,
                  bfloat16);
        if (i < n)
            store(of->logits, at + start + i, load_floats(x + i, n - i) * factor - even, n - i,
                  bfloat16);
    }
    if (bfloat16) ((uint16_t *)of->logits)[at + target] = to_bfloat16(of_chosen);
    else ((float *)of->logits)[at + target] = of_chosen;
    return 0;
}

/* The losses (N,) of logits (N, V), which the gradients take the place of if that is asked for.
 * Returns how many targets are neither a class nor ignored. */
EXPORT int64_t cross_entropy(const loss_call *of, int bfloat16, int gradient) {
    int64_t wrong = 0, team = least(of->threads, of->rows * of->classes / GRAIN + 1);
#pragma omp parallel num_threads((int)team) reduction(+ : wrong)
    {
        int64_t thread, threads;
        which_thread(&thread, &threads);
        float *scratch = of->scratch + thread * of->scratch_size;
        /* Said here, for the body of a parallel region is a function of its own. */
        for (int64_t r = of->rows * thread / threads; r < of->rows * (thread + 1) / threads; r++) {
            if (bfloat16 && gradient) wrong += row(of, r, scratch, 1, 1);
            else if (bfloat16) wrong += row(of, r, scratch, 1, 0);
            else if (gradient) wrong += row(of, r, scratch, 0, 1);
            else wrong += row(of, r, scratch, 0, 0);
        }
    }
    return wrong;
}
