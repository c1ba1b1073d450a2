/* One LSTM layer in one direction, all steps in one call: products, gates, masks, cell.
 *
 * As on a GPU: the weight's mask is applied while the weight is packed, the gates' masks are drawn
 * where the gates are, and drawn again in the backward; nothing of a mask is stored. The notation is
 * that of ../README.md. A tensor's dtype, `bfloat16`, and that of the products, `fast`, are known
 * when a function is compiled; all else is float32. */
#include "philox.h"
#include "product.h"
#include "threads.h"

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE void put(void *panel, int64_t at, float value, const int bfloat16) {
    if (bfloat16) ((uint16_t *)panel)[at] = to_bfloat16(value);
    else ((float *)panel)[at] = value;
}

INLINE float get(const void *from, int64_t at, const int bfloat16) {
    return bfloat16 ? from_bfloat16(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

/* What a weight is packed from and into. */
typedef struct {
    int64_t hidden, depth, threads, transposed;
    const void *weight; /* (4H, K), bfloat16 or float32 */
    void *panels;       /* panel p: gates of units p LANES..., or units p PANEL... of the transpose */
    dropout drop;
} packing;

/* Multiply n neighbours by the mask of their gate. A product, as in the reference: what is dropped
 * of infinity is no number. */
INLINE void masked(float *restrict out, const void *weight, int64_t at, const dropout *drop,
                   const uint32_t *restrict drawn, int gate, int n, const int bfloat16) {
    uint32_t threshold = drop->threshold[gate];
    float scale = drop->scale[gate];
    if (drop->active)
        for (int i = 0; i < n; i++)
            out[i] = get(weight, at + i, bfloat16) * (drawn[i] >= threshold ? scale : 0.0f);
    else
        for (int i = 0; i < n; i++) out[i] = get(weight, at + i, bfloat16);
}

INLINE void draw_weights(random_words *drawn, const packing *of, int64_t first, int n) {
    if (!of->drop.active) return;
    for (int i = 0; i < n; i++) drawn->word[0][i] = (uint32_t)first + (uint32_t)i;
    philox(drawn, 0, of->drop.stream, KIND_WEIGHT, of->drop.seed, n);
}

INLINE void pack_gates(const packing *of, int64_t panel, const int bfloat16, const int fast) {
    int64_t hidden = of->hidden, depth = of->depth, padded = fast ? (depth + 1) / 2 * 2 : depth;
    char *out = (char *)of->panels + panel * padded * PANEL * (fast ? 2 : 4);
    int64_t first = panel * LANES, units = least(LANES, hidden - first);
    float values[4][LANES][COUNTERS];
    if (units < LANES || depth % COUNTERS) memset(values, 0, sizeof values);
    for (int64_t k = 0; k < depth; k += COUNTERS) {
        int n = (int)least(COUNTERS, depth - k);
        if (n < COUNTERS) memset(values, 0, sizeof values);
        for (int64_t lane = 0; lane < units; lane++) {
            random_words drawn;
            draw_weights(&drawn, of, (first + lane) * hidden + k, n);
            for (int gate = 0; gate < 4; gate++)
                masked(values[gate][lane], of->weight, (gate * hidden + first + lane) * depth + k,
                       &of->drop, drawn.word[gate], gate, n, bfloat16);
        }
        if (!fast) {
            float *to = (float *)out + k * PANEL;
            for (int i = 0; i < n; i++)
                for (int gate = 0; gate < 4; gate++, to += LANES)
                    for (int lane = 0; lane < LANES; lane++) to[lane] = values[gate][lane][i];
        } else {
            uint16_t *to = (uint16_t *)out + k * PANEL;
            for (int i = 0; i < n; i += 2)
                for (int gate = 0; gate < 4; gate++)
                    for (int lane = 0; lane < LANES; lane++, to += 2) {
                        to[0] = to_bfloat16(values[gate][lane][i]);
                        to[1] = to_bfloat16(values[gate][lane][i + 1]);
                    }
        }
    }
}

INLINE void pack_transposed(const packing *of, int64_t panel, const int bfloat16, const int fast) {
    int64_t hidden = of->hidden, rows = 4 * hidden, first = panel * PANEL;
    int n = (int)least(PANEL, hidden - first);
    float *sums = (float *)of->panels + panel * rows * PANEL;
    uint16_t *pairs = (uint16_t *)of->panels + panel * rows * PANEL;
    float values[4][PANEL];
    memset(values, 0, sizeof values);
    for (int64_t unit = 0; unit < hidden; unit++) {
        random_words drawn;
        draw_weights(&drawn, of, unit * hidden + first, n);
        for (int gate = 0; gate < 4; gate++) {
            int64_t row = gate * hidden + unit;
            float *value = values[gate];
            masked(value, of->weight, row * hidden + first, &of->drop, drawn.word[gate], gate, n,
                   bfloat16);
            if (!fast) memcpy(sums + row * PANEL, value, sizeof values[gate]);
            else
                for (int i = 0; i < PANEL; i++)
                    pairs[(row / 2 * PANEL + i) * 2 + row % 2] = to_bfloat16(value[i]);
        }
    }
}

INLINE void pack(const packing *of, int64_t thread, int64_t threads, const int bfloat16,
                 const int fast) {
    int64_t width = of->transposed ? PANEL : LANES;
    int64_t panels = (of->hidden + width - 1) / width;
    for (int64_t panel = panels * thread / threads; panel < panels * (thread + 1) / threads;
         panel++) {
        if (of->transposed) pack_transposed(of, panel, bfloat16, fast);
        else pack_gates(of, panel, bfloat16, fast);
    }
}

typedef struct {
    int64_t steps, batch, input, hidden, threads, reverse, sequence;
    int64_t chunk;            /* steps whose products with W are formed at once */
    const void *x;            /* (T, B, E) */
    const void *input_panels; /* W, (P, E, 4, LANES) */
    const void *panels;       /* M * U, (P, H, 4, LANES) */
    const float *bias;        /* (4H,), or NULL */
    const int64_t *lengths;   /* (B,), or NULL */
    const void *h0;           /* (B, H) */
    float *c;                 /* (B, H): c_0, then c_n */
    void *h;                  /* (2, B, H) in the products' dtype, H even for bfloat16 */
    void *rows;               /* (chunk, B, E) likewise, or NULL where x will do */
    float *sums;              /* (P, chunk, B, 4, LANES) */
    void *output;             /* (T, B, H) */
    void *h_n;                /* (B, H) */
    void *gates;              /* s, (T, B, 4H), or NULL */
    float *cells;             /* c, (T, B, H), or NULL */
    dropout drop;             /* of the gates */
} forward_call;

/* Draw z of some rows at one step: (rows, LANES) counters, COUNTERS / LANES rows at a time. */
INLINE void draw_gates(random_words *drawn, const dropout *drop, int64_t hidden, int64_t row,
                       int64_t rows, int64_t unit, int64_t lanes, int64_t t) {
    for (int64_t j = 0; j < rows; j++)
        for (int64_t i = 0; i < lanes; i++)
            drawn->word[0][j * lanes + i] = (uint32_t)((row + j) * hidden + unit + i);
    philox(drawn, (uint32_t)t, drop->stream, KIND_GATE, drop->seed, (int)(rows * lanes));
}

INLINE floats scales(const random_words *drawn, const dropout *drop, int gate, int64_t at) {
    words word = *(const words *)(drawn->word[gate] + at);
    ints kept = (ints)(word >= drop->threshold[gate]);
    return choose(kept, splat(drop->scale[gate]), splat(0.0f));
}

/* Gates and cell of LANES units for the rows [from, to) at step t. */
INLINE void cell(const forward_call *of, int64_t panel, const float *sums, int64_t from, int64_t to,
                 int64_t t, int last, const void *h, void *h_new, const int bfloat16,
                 const int fast) {
    int64_t hidden = of->hidden, unit = panel * LANES, n = least(LANES, hidden - unit);
    int64_t stride = fast ? (hidden + 1) / 2 * 2 : hidden;
    random_words drawn;
    for (int64_t row = from; row < to; row++, sums += PANEL) {
        int64_t at = row * hidden + unit, in_step = t * of->batch * hidden + at;
        int64_t position = (row - from) % (COUNTERS / LANES);
        if (of->drop.active && position == 0)
            draw_gates(&drawn, &of->drop, hidden, row, least(COUNTERS / LANES, to - row), unit,
                       LANES, of->sequence ? 0 : t);
        floats c = load_floats(of->c + at, n), c_new = c, h_row, out;
        int active = of->lengths == NULL || t < of->lengths[row];
        floats i = sigmoid(*(const floats *)sums);
        floats f = sigmoid(*(const floats *)(sums + LANES));
        floats g = hyperbolic_tangent(*(const floats *)(sums + 2 * LANES));
        floats o = sigmoid(*(const floats *)(sums + 3 * LANES));
        if (of->gates) {
            int64_t gate = (t * of->batch + row) * 4 * hidden + unit;
            store(of->gates, gate, i, n, bfloat16);
            store(of->gates, gate + hidden, f, n, bfloat16);
            store(of->gates, gate + 2 * hidden, g, n, bfloat16);
            store(of->gates, gate + 3 * hidden, o, n, bfloat16);
        }
        if (of->drop.active) {
            i *= scales(&drawn, &of->drop, 0, position * LANES);
            f *= scales(&drawn, &of->drop, 1, position * LANES);
            g *= scales(&drawn, &of->drop, 2, position * LANES);
            o *= scales(&drawn, &of->drop, 3, position * LANES);
        }
        if (active) {
            c_new = f * c + i * g;
            h_row = out = o * hyperbolic_tangent(c_new);
            /* h is exchanged in the tensors' dtype, whatever the products are in. */
            if (bfloat16 && !fast) h_row = widen(narrow(h_row));
        } else {
            h_row = load(h, row * stride + unit, n, fast);
            out = splat(0.0f);
        }
        store_floats(of->c + at, c_new, n);
        if (of->cells) store_floats(of->cells + in_step, c_new, n);
        store(of->output, in_step, out, n, bfloat16);
        store(h_new, row * stride + unit, h_row, n, fast);
        if (last) store(of->h_n, at, h_row, n, bfloat16);
    }
}

/* One thread's part. */
INLINE void forward(const forward_call *of, int64_t thread, int64_t threads, const int bfloat16,
                    const int fast) {
    int64_t batch = of->batch, hidden = of->hidden, panels = (hidden + LANES - 1) / LANES;
    int64_t size = fast ? 2 : 4, input = of->input;
    int64_t wide_hidden = fast ? (hidden + 1) / 2 * 2 : hidden;
    int64_t wide_input = fast ? (input + 1) / 2 * 2 : input;
    char *states = of->h;
    int64_t panel, from, to;
    for (int64_t row = batch * thread / threads; row < batch * (thread + 1) / threads; row++)
        for (int64_t k = 0; k < wide_hidden; k++)
            put(states, row * wide_hidden + k,
                k < hidden ? get(of->h0, row * hidden + k, bfloat16) : 0.0f, fast);
    for (int64_t done = 0; done < of->steps; done += of->chunk) {
        int64_t count = least(of->chunk, of->steps - done);
        int64_t start = of->reverse ? of->steps - done - count : done, rows = count * batch;
        const char *inputs = (const char *)of->x + start * batch * input * (bfloat16 ? 2 : 4);
        if (of->rows) {
            for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads;
                 row++)
                for (int64_t k = 0; k < wide_input; k++)
                    put(of->rows, row * wide_input + k,
                        k < input ? get(inputs, row * input + k, bfloat16) : 0.0f, fast);
            BARRIER
            inputs = of->rows;
        }
        share own = share_of(panels, rows, thread, threads);
        while (next_panel(&own, &panel, &from, &to)) {
            float *sums = of->sums + (panel * of->chunk * batch + from) * PANEL;
            for (int64_t row = 0; row < to - from; row++)
                for (int v = 0; v < 4; v++) {
                    int64_t unit = panel * LANES, n = least(LANES, hidden - unit);
                    floats bias = of->bias ? load_floats(of->bias + v * hidden + unit, n)
                                           : splat(0.0f);
                    *(floats *)(sums + row * PANEL + v * LANES) = bias;
                }
            add_product(sums,
                        (const char *)of->input_panels + panel * wide_input * PANEL * size,
                        inputs + from * wide_input * size, wide_input, wide_input, to - from,
                        PANEL, fast);
        }
        BARRIER
        for (int64_t k = 0; k < count; k++) {
            int64_t step = done + k, t = of->reverse ? of->steps - 1 - step : step;
            char *h = states + step % 2 * batch * wide_hidden * size;
            char *h_new = states + (step + 1) % 2 * batch * wide_hidden * size;
            own = share_of(panels, batch, thread, threads);
            while (next_panel(&own, &panel, &from, &to)) {
                float *sums = of->sums +
                              (panel * of->chunk * batch + (t - start) * batch + from) * PANEL;
                add_product(sums,
                            (const char *)of->panels + panel * wide_hidden * PANEL * size,
                            h + from * wide_hidden * size, wide_hidden, wide_hidden, to - from,
                            PANEL, fast);
                cell(of, panel, sums, from, to, t, step == of->steps - 1, h, h_new, bfloat16,
                     fast);
            }
            BARRIER
        }
    }
}

typedef struct {
    int64_t steps, batch, hidden, threads, reverse, sequence;
    int64_t first, last;      /* the steps [first, last), from their end to their beginning */
    int64_t products;         /* whether the last of these steps has a gradient of h to form */
    const void *panels;       /* (M * U)^T, (P, 4H, 4, LANES) */
    const int64_t *lengths;   /* (B,), or NULL */
    const void *gates;        /* s, (T, B, 4H) */
    const float *cells;       /* c, (T, B, H) */
    const float *c0;          /* (B, H) */
    const void *grad_output;  /* (T, B, H) */
    float *grad_h;            /* (P, B, 4, LANES): carried */
    float *grad_c;            /* (B, H): carried */
    void *grad_sums;          /* da, (last - first, B, 4H) in the products' dtype */
    dropout drop;             /* of the gates */
} backward_call;

/* The gradients of the pre-activations of PANEL units for the rows [from, to) at step t. */
INLINE void cell_backward(const backward_call *of, int64_t panel, float *grad_h, int64_t from,
                          int64_t to, int64_t t, const int bfloat16, const int fast) {
    int64_t hidden = of->hidden, batch = of->batch;
    int64_t before = of->reverse ? t + 1 : t - 1;
    const float *cells = of->cells + t * batch * hidden;
    const float *cells_before = before < 0 || before >= of->steps
                                    ? of->c0
                                    : of->cells + before * batch * hidden;
    for (int64_t row = from; row < to; row++, grad_h += PANEL) {
        int active = of->lengths == NULL || t < of->lengths[row];
        random_words drawn;
        if (of->drop.active && active)
            draw_gates(&drawn, &of->drop, hidden, row, 1, panel * PANEL, PANEL,
                       of->sequence ? 0 : t);
        for (int v = 0; v < 4; v++) {
            int64_t unit = panel * PANEL + v * LANES, n = least(LANES, hidden - unit);
            if (n <= 0) break;
            int64_t at = row * hidden + unit;
            int64_t target = ((t - of->first) * batch + row) * 4 * hidden + unit;
            if (!active) {
                for (int gate = 0; gate < 4; gate++)
                    store(of->grad_sums, target + gate * hidden, splat(0.0f), n, fast);
                continue;
            }
            int64_t source = (t * batch + row) * 4 * hidden + unit;
            floats s_i = load(of->gates, source, n, bfloat16);
            floats s_f = load(of->gates, source + hidden, n, bfloat16);
            floats s_g = load(of->gates, source + 2 * hidden, n, bfloat16);
            floats s_o = load(of->gates, source + 3 * hidden, n, bfloat16);
            floats i = s_i, f = s_f, g = s_g, o = s_o;
            floats one = splat(1.0f), z_i = one, z_f = one, z_g = one, z_o = one;
            if (of->drop.active) {
                z_i = scales(&drawn, &of->drop, 0, v * LANES);
                z_f = scales(&drawn, &of->drop, 1, v * LANES);
                z_g = scales(&drawn, &of->drop, 2, v * LANES);
                z_o = scales(&drawn, &of->drop, 3, v * LANES);
                i *= z_i, f *= z_f, g *= z_g, o *= z_o;
            }
            floats tanh_c = hyperbolic_tangent(load_floats(cells + at, n));
            floats c_before = load_floats(cells_before + at, n);
            floats dh = *(floats *)(grad_h + v * LANES) +
                        load(of->grad_output, t * batch * hidden + at, n, bfloat16);
            floats dc = load_floats(of->grad_c + at, n) + dh * o * (1.0f - tanh_c * tanh_c);
            store(of->grad_sums, target, z_i * dc * g * s_i * (1.0f - s_i), n, fast);
            store(of->grad_sums, target + hidden, z_f * dc * c_before * s_f * (1.0f - s_f), n,
                  fast);
            store(of->grad_sums, target + 2 * hidden, z_g * dc * i * (1.0f - s_g * s_g), n, fast);
            store(of->grad_sums, target + 3 * hidden, z_o * dh * tanh_c * s_o * (1.0f - s_o), n,
                  fast);
            store_floats(of->grad_c + at, dc * f, n);
            *(floats *)(grad_h + v * LANES) = splat(0.0f);
        }
    }
}

/* One thread's part. */
INLINE void backward(const backward_call *of, int64_t thread, int64_t threads, const int bfloat16,
                    const int fast) {
    int64_t batch = of->batch, rows = 4 * of->hidden, panels = (of->hidden + PANEL - 1) / PANEL;
    int64_t size = fast ? 2 : 4, count = of->last - of->first;
    int64_t panel, from, to;
    for (int64_t k = 0; k < count; k++) {
        int64_t t = of->reverse ? of->first + k : of->last - 1 - k;
        const char *grad_sums =
            (const char *)of->grad_sums + (t - of->first) * batch * rows * size;
        /* The same share at every step: what is carried stays with its thread. */
        share own = share_of(panels, batch, thread, threads);
        while (next_panel(&own, &panel, &from, &to))
            cell_backward(of, panel, of->grad_h + (panel * batch + from) * PANEL, from, to, t,
                          bfloat16, fast);
        BARRIER
        if (k == count - 1 && !of->products) break;
        own = share_of(panels, batch, thread, threads);
        while (next_panel(&own, &panel, &from, &to))
            add_product(of->grad_h + (panel * batch + from) * PANEL,
                        (const char *)of->panels + panel * rows * PANEL * size,
                        grad_sums + from * rows * size, rows, rows, to - from,
                        of->hidden - panel * PANEL, fast);
    }
}

/* The dtypes are told apart inside the parallel region: what is outlined of a function of known
 * dtypes takes them as variables again. */
#if HAS_BFLOAT16
#define IN_BFLOAT16(part)                                 \
    if (bfloat16 && fast) {                               \
        part(of, thread, threads, 1, 1);                  \
        release_tiles();                                  \
    } else
#else
#define IN_BFLOAT16(part)
#endif
#define IN_THREADS(part)                                  \
    _Pragma("omp parallel num_threads(of->threads)") {    \
        int64_t thread, threads;                          \
        which_thread(&thread, &threads);                  \
        IN_BFLOAT16(part)                                 \
        if (bfloat16) part(of, thread, threads, 1, 0);    \
        else part(of, thread, threads, 0, 0);             \
    }

/* A weight (4H, K) or (4H, H) into panels (P, K, PANEL), or those of the transpose, dropped. */
EXPORT void pack_weight(const packing *of, int bfloat16, int fast) {
    (void)fast;
    IN_THREADS(pack)
}

/* x (T, B, E) to output (T, B, H); gates (T, B, 4H) and cells (T, B, H) where they are kept. */
EXPORT void lstm_forward(const forward_call *of, int bfloat16, int fast) {
    (void)fast;
    IN_THREADS(forward)
}

/* The gradients of a chunk's pre-activations, (S, B, 4H), and what it carries on: (P, B, PANEL) of h
 * and (B, H) of c. */
EXPORT void lstm_backward(const backward_call *of, int bfloat16, int fast) {
    (void)fast;
    IN_THREADS(backward)
}

EXPORT int64_t lanes(void) { return LANES; }
EXPORT int has_bfloat16(void) { return HAS_BFLOAT16; }

#if defined(__AVX512F__)
#define INSTRUCTIONS "AVX-512"
#elif defined(__AVX2__)
#define INSTRUCTIONS "AVX2"
#elif defined(__AVX__)
#define INSTRUCTIONS "AVX"
#elif defined(__ARM_NEON)
#define INSTRUCTIONS "NEON"
#else
#define INSTRUCTIONS "128 bits"
#endif
#if HAS_BFLOAT16
#define PRODUCTS ", bfloat16 products"
#else
#define PRODUCTS ""
#endif
#ifdef _OPENMP
#define THREADS ", OpenMP"
#else
#define THREADS ", one thread"
#endif
#ifdef ULMFIT_FAST_EMULATE_TILES
#define TILES ", emulated tiles"
#else
#define TILES ", AMX"
#endif

EXPORT const char *ulmfit_fast_features(void) {
#if HAS_TILES
    if (tiles_allowed) return INSTRUCTIONS TILES PRODUCTS THREADS;
#endif
    return INSTRUCTIONS PRODUCTS THREADS;
}
