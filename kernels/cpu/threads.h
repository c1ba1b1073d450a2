/* OpenMP where the compiler has it; one thread where it has not. */
#ifndef ULMFIT_FAST_THREADS_H
#define ULMFIT_FAST_THREADS_H

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#define BARRIER _Pragma("omp barrier")
#else
#define BARRIER
#endif

static inline void which_thread(int64_t *thread, int64_t *threads) {
#ifdef _OPENMP
    *thread = omp_get_thread_num();
    *threads = omp_get_num_threads();
#else
    *thread = 0;
    *threads = 1;
#endif
}

#endif
