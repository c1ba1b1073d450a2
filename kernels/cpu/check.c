/* Small questions whose answers library.py knows: what a compiler got wrong is not used. */
#include "philox.h"
#include "product.h"

#if __FINITE_MATH_ONLY__
#error "flags for finite numbers only: NaN and infinity keep their meaning here"
#endif

/* The words of COUNTERS counters, each of the four in its place, folded into one. */
EXPORT uint32_t ulmfit_fast_check_philox(uint64_t seed) {
    random_words drawn;
    uint32_t folded = 0;
    for (int i = 0; i < COUNTERS; i++) drawn.word[0][i] = (uint32_t)i;
    philox(&drawn, 1, 2, KIND_GATE, seed, COUNTERS);
    for (int gate = 0; gate < 4; gate++)
        for (int i = 0; i < COUNTERS; i++)
            folded = (folded << 1 | folded >> 31) ^ drawn.word[gate][i];
    return folded;
}

EXPORT int64_t ulmfit_fast_check_size(void) { return sizeof(dropout); }

/* tanh over x, in place: flags that let a compiler reorder sums break it. */
EXPORT void ulmfit_fast_check_tanh(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        store_floats(x + i, hyperbolic_tangent(load_floats(x + i, n - i)), n - i);
}

/* Whether products in bfloat16, of small whole numbers and so without rounding, are right; true
 * where there are none. */
EXPORT int ulmfit_fast_check_product(void) {
    int right = 1;
#if HAS_BFLOAT16
    enum { N = 17, K = 38 };
    uint16_t panel[K * PANEL], rows[N * K];
    for (int k = 0; k < K; k++)
        for (int i = 0; i < PANEL; i++)
            panel[in_panel(k, i / LANES, i % LANES, 1)] = to_bfloat16((float)((7 * k + 3 * i) % 11));
    for (int i = 0; i < N * K; i++) rows[i] = to_bfloat16((float)(i % 13));
    for (int n = N; n > 0; n -= 12) {
        float out[N * PANEL] = {0.0f};
        add_product(out, panel, rows, K, K, n, PANEL, 1);
        for (int i = 0; i < n * PANEL; i++) {
            int sum = 0;
            for (int k = 0; k < K; k++)
                sum += (7 * k + 3 * (i % PANEL)) % 11 * ((i / PANEL * K + k) % 13);
            right &= out[i] == (float)sum;
        }
    }
    release_tiles();
#endif
    return right;
}
