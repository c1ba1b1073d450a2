/* The activations of simd.h over memory, as the kernels apply them to what they have in registers:
 * tests compare them with float64. */
#include "simd.h"

INLINE floats activated(floats x, int which) {
    if (which == 0) return exponential(x);
    if (which == 1) return sigmoid(x);
    if (which == 2) return hyperbolic_tangent(x);
    return widen(narrow(x));
}

/* One of them over x (n,), into y (n,). */
EXPORT void activations(const float *x, float *y, int64_t n, int which) {
    for (int64_t i = 0; i < n; i += LANES)
        store_floats(y + i, activated(load_floats(x + i, n - i), which), n - i);
}
