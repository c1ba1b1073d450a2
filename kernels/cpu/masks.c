/* Dropout masks of a seed, drawn alone or where they are applied. Who owns which counter is in
 * ulmfit_fast/rng.py. Each element is made for itself: threads change no bit. */
#include "philox.h"

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Counters for which another thread is worth its start. */
#define GRAIN 8192

INLINE int team(int64_t counters, int64_t threads) {
    return (int)least(threads, counters / GRAIN + 1);
}

typedef struct {
    int64_t n;       /* counters, or elements */
    int64_t rows;    /* B of the gates, T of a sequence */
    int64_t columns; /* H of the gates */
    int64_t start;   /* the first of the steps */
    int64_t steps;
    int64_t threads;
    uint32_t kind;
    uint32_t gradient; /* whether the weight is a gradient */
    const void *source;
    void *target;
    float *scales; /* (n,), what locked dropout multiplies by */
    dropout drop;
} mask_call;

INLINE void count_from(random_words *drawn, int64_t first) {
    for (int i = 0; i < COUNTERS; i++) drawn->word[0][i] = (uint32_t)(first + i);
}

INLINE ints kept_lanes(const random_words *drawn, const dropout *drop, int gate, int at) {
    return (ints)(*(const words *)(drawn->word[gate] + at) >= drop->threshold[gate]);
}

/* One byte an element. A scale of 0 is that of p = 1, which keeps nothing. */
INLINE void keep(uint8_t *restrict target, const random_words *drawn, const dropout *drop, int gate,
                 int word, int n) {
    uint32_t threshold = drop->threshold[gate];
    uint8_t some = drop->scale[gate] != 0.0f;
    const uint32_t *restrict from = drawn->word[word];
    for (int i = 0; i < n; i++) target[i] = (uint8_t)(from[i] >= threshold) & some;
}

INLINE void drop_lanes(const mask_call *of, const random_words *drawn, int gate, int64_t block,
                       int i, int64_t n, const int bfloat16) {
    int64_t at = gate * of->n + block + i;
    ints kept = kept_lanes(drawn, &of->drop, gate, i);
    floats value = load(of->source, at, n, bfloat16), zero = splat(0.0f);
    floats scale = splat(of->drop.scale[gate]);
    /* Of a weight a product, as in the reference: what is dropped of infinity is no number. Of a
     * gradient nothing is left, whatever it was. */
    if (of->gradient) value = choose(kept & (scale != zero), value * scale, zero);
    else value *= choose(kept, scale, zero);
    store(of->target, at, value, n, bfloat16);
}

INLINE void drop_block(const mask_call *of, int64_t block, const int bfloat16) {
    int64_t n = least(COUNTERS, of->n - block);
    random_words drawn;
    count_from(&drawn, block);
    philox(&drawn, 0, of->drop.stream, KIND_WEIGHT, of->drop.seed, (int)n);
    for (int gate = 0; gate < 4; gate++) {
        if (n == COUNTERS)
            for (int i = 0; i < COUNTERS; i += LANES)
                drop_lanes(of, &drawn, gate, block, i, LANES, bfloat16);
        else
            for (int i = 0; i < n; i += LANES)
                drop_lanes(of, &drawn, gate, block, i, n - i, bfloat16);
    }
}

/* (4, n) weights, times their mask over 1 - p. The body of a parallel loop is a function of its own
 * before anything is inlined: what is known of the dtype has to be said within. */
EXPORT void drop_weight(const mask_call *of, int bfloat16) {
#pragma omp parallel for num_threads(team(of->n, of->threads)) schedule(static)
    for (int64_t block = 0; block < of->n; block += COUNTERS) {
        if (bfloat16) drop_block(of, block, 1);
        else drop_block(of, block, 0);
    }
}

/* (4, n) bytes. */
EXPORT void weight_keep(const mask_call *of) {
#pragma omp parallel for num_threads(team(of->n, of->threads)) schedule(static)
    for (int64_t block = 0; block < of->n; block += COUNTERS) {
        int n = (int)least(COUNTERS, of->n - block);
        random_words drawn;
        count_from(&drawn, block);
        philox(&drawn, 0, of->drop.stream, KIND_WEIGHT, of->drop.seed, n);
        for (int gate = 0; gate < 4; gate++)
            keep((uint8_t *)of->target + gate * of->n + block, &drawn, &of->drop, gate, gate, n);
    }
}

/* (S, B, 4, H) bytes. */
EXPORT void gate_keep(const mask_call *of) {
    int64_t hidden = of->columns, rows = of->steps * of->rows;
#pragma omp parallel for num_threads(team(rows * hidden, of->threads)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        uint32_t t = (uint32_t)(of->start + row / of->rows);
        for (int64_t unit = 0; unit < hidden; unit += COUNTERS) {
            int n = (int)least(COUNTERS, hidden - unit);
            random_words drawn;
            count_from(&drawn, row % of->rows * hidden + unit);
            philox(&drawn, t, of->drop.stream, KIND_GATE, of->drop.seed, n);
            uint8_t *target = (uint8_t *)of->target + row * 4 * hidden + unit;
            for (int gate = 0; gate < 4; gate++)
                keep(target + gate * hidden, &drawn, &of->drop, gate, gate, n);
        }
    }
}

/* (n,) bytes, four elements a counter. */
EXPORT void keep_mask(const mask_call *of) {
    int64_t counters = (of->n + 3) / 4;
#pragma omp parallel for num_threads(team(counters, of->threads)) schedule(static)
    for (int64_t block = 0; block < counters; block += COUNTERS) {
        int n = (int)least(COUNTERS, counters - block);
        random_words drawn;
        uint8_t kept[4][COUNTERS], elements[4 * COUNTERS];
        count_from(&drawn, block);
        philox(&drawn, 0, of->drop.stream, of->kind, of->drop.seed, n);
        for (int word = 0; word < 4; word++)
            keep(kept[word], &drawn, &of->drop, 0, word, COUNTERS);
        for (int i = 0; i < COUNTERS; i++)
            for (int word = 0; word < 4; word++) elements[4 * i + word] = kept[word][i];
        memcpy((uint8_t *)of->target + 4 * block, elements, least(4 * n, of->n - 4 * block));
    }
}

/* (n,) bytes of n token ids; returns whether one of them is no word of 32 bits, and so no counter. */
EXPORT int embedding_keep(const mask_call *of) {
    const int64_t *tokens = of->source;
    int64_t wide = 0;
#pragma omp parallel for num_threads(team(of->n, of->threads)) schedule(static) reduction(| : wide)
    for (int64_t block = 0; block < of->n; block += COUNTERS) {
        int n = (int)least(COUNTERS, of->n - block);
        random_words drawn;
        for (int i = 0; i < n; i++) {
            drawn.word[0][i] = (uint32_t)tokens[block + i];
            wide |= tokens[block + i] >> 32;
        }
        philox(&drawn, 0, 0, KIND_EMBEDDING, of->drop.seed, n);
        keep((uint8_t *)of->target + block, &drawn, &of->drop, 0, 0, n);
    }
    return wide != 0;
}

INLINE void draw_locked(const mask_call *of, int64_t block) {
    int64_t left = of->n - block;
    random_words drawn;
    float elements[4 * COUNTERS];
    count_from(&drawn, block / 4);
    philox(&drawn, 0, of->drop.stream, KIND_LOCKED, of->drop.seed, COUNTERS);
    for (int i = 0; i < COUNTERS; i++)
        for (int word = 0; word < 4; word++)
            elements[4 * i + word] =
                drawn.word[word][i] >= of->drop.threshold[0] ? of->drop.scale[0] : 0.0f;
    memcpy(of->scales + block, elements, least(4 * COUNTERS, left) * sizeof(float));
}

INLINE void drop_piece(const mask_call *of, int64_t step, int64_t start, const int bfloat16) {
    int64_t first = step * of->n + start, n = least(4 * COUNTERS, of->n - start);
    const float *scale = of->scales + start;
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        floats value = load(of->source, first + i, LANES, bfloat16);
        store(of->target, first + i, value * *(const floats *)(scale + i), LANES, bfloat16);
    }
    if (whole < n) {
        floats value = load(of->source, first + whole, n - whole, bfloat16);
        value *= load_floats(scale + whole, n - whole);
        store(of->target, first + whole, value, n - whole, bfloat16);
    }
}

/* (T, n) elements, each row of them times the same mask over 1 - p. */
EXPORT void locked_dropout(const mask_call *of, int bfloat16) {
    int64_t pieces = (of->n + 4 * COUNTERS - 1) / (4 * COUNTERS);
#pragma omp parallel num_threads(team(of->n * of->rows / 4, of->threads))
    {
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < pieces; piece++) draw_locked(of, piece * 4 * COUNTERS);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < pieces * of->rows; at++) {
            int64_t step = at / pieces, start = at % pieces * 4 * COUNTERS;
            if (bfloat16) drop_piece(of, step, start, 1);
            else drop_piece(of, step, start, 0);
        }
    }
}
