/* Products of a dense layer, both factors as they are stored: y[r][o] = start + sum over k of
 * x[r][k] * w[o][k].
 *
 * The dot tile: vectors along k, R rows by U outputs of accumulators in registers. The order of
 * summation is the same for every shape and place, which makes the bits of an output independent of
 * both: every lane sums its own k, ascending; after each TERM_BYTES of a row the lanes are added up,
 * always neighbours first, and their sum is added to the output. Short sums keep the rounding error
 * small, and TERM_BYTES of a few rows stay in the first-level cache.
 */
#ifndef CYLSTM_DENSE_H
#define CYLSTM_DENSE_H

/* A thread takes at most PANEL outputs at a time. From PACKED_ROWS rows on it packs their weights:
 * aligned, side by side. Of the other products, for gradients, it packs TERMS of both factors. */
enum { TERM_BYTES = 4096, PANEL = 192, PACKED_ROWS = 24, TERMS = 192 };

/* The rest is for the levels. */
#ifdef CYLSTM_REAL
#include "tile.h"

/* Outputs of a tile of several rows, and of one of a single row, which needs as many chains. */
enum { OUTPUTS = 4, ROW_OUTPUTS = 8, TILE_ROWS = ROWS_BY_4 };
_Static_assert(TERMS % FOLD == 0, "otherwise TERMS would change the order of summation");

typedef struct {
    ptrdiff_t depth;        /* number of k */
    const vec *x;           /* (ceil(depth / LANES), R), zero beyond depth */
    const real *w;          /* (outputs, depth) */
    ptrdiff_t w_row;        /* elements from output to output */
    ptrdiff_t w_step;       /* elements from vector to vector */
    ptrdiff_t outputs;      /* 1 ... U */
    const real *start;      /* (outputs) that all rows start from; NULL: from y */
    real *y;                /* (R, outputs) */
    ptrdiff_t y_row;
    const real *ahead;      /* rows of w to fetch, which are far away and needed soon */
    ptrdiff_t aheads;       /* how many */
} Dots;

/* What a tile reads of its rows, and a vector for each of its accumulators. */
typedef struct { vec at[TILE_ROWS * (TERM_BYTES / sizeof(vec))]; } PackedRows;
typedef struct { vec at[TILE_ROWS * OUTPUTS]; } TileOutputs;

/* Sums of neighbouring lanes: first of a, then of b. */
INLINE vec pairs(vec a, vec b) {
#ifdef __clang__
    vec even, odd;
    for (int i = 0; i < LANES; i++) {
        even[i] = i < LANES / 2 ? a[2 * i] : b[2 * i - LANES];
        odd[i] = i < LANES / 2 ? a[2 * i + 1] : b[2 * i + 1 - LANES];
    }
    return even + odd;
#else
    ivec even, odd;
    for (int i = 0; i < LANES; i++) {
        even[i] = 2 * i;
        odd[i] = 2 * i + 1;
    }
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
#endif
}

/* The sum of all lanes of each of four vectors. */
INLINE void sum_lanes(const vec *v, real *sums) {
    const vec first = pairs(v[0], v[1]), rest = pairs(v[2], v[3]);
    if (LANES == 2) {
        vstore(sums, first);
        vstore(sums + 2, rest);
        return;
    }
    vec all = pairs(first, rest);
    for (int n = LANES; n > 4; n /= 2) all = pairs(all, all);
    memcpy(sums, &all, 4 * sizeof(real));
}

/* One vector of k, of which n lanes are there. */
INLINE void add_terms(const int R, const int U, vec *acc, const vec *x, const real **w,
                      ptrdiff_t at, ptrdiff_t n) {
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) {
        const vec wv = vload_part(w[u] + at, n);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[r * U + u] = vfma(x[r], wv, acc[r * U + u]);
    }
}

INLINE void dot_tile(const int R, const int U, const Dots *d) {
    vec acc[TILE_ROWS * OUTPUTS > ROW_OUTPUTS ? TILE_ROWS * OUTPUTS : ROW_OUTPUTS];
    const real *w[ROW_OUTPUTS];
    const ptrdiff_t w_step = d->w_step, rest = d->depth % LANES;
    const vec *x = d->x, *const end = x + d->depth / LANES * R;
    ptrdiff_t at = 0;
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) w[u] = d->w + (u < d->outputs ? u : d->outputs - 1) * d->w_row;
#pragma GCC unroll 32
    for (int i = 0; i < R * U; i++) acc[i] = vset(0);
    /* Little but products: what else there is takes their place. */
    for (; x != end; x += R, at += w_step) {
        if (__builtin_expect(d->aheads > 0, 0))
            for (ptrdiff_t i = 0; i < d->aheads; i++)
                __builtin_prefetch(d->ahead + i * d->w_row + (x - d->x) / R * LANES, 0, 2);
        add_terms(R, U, acc, x, w, at, LANES);
    }
    if (rest > 0) add_terms(R, U, acc, x, w, at, rest);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        real sums[ROW_OUTPUTS], *y = d->y + r * d->y_row;
        const real *start = d->start ? d->start : y;
#pragma GCC unroll 2
        for (int u = 0; u < U; u += 4) sum_lanes(acc + r * U + u, sums + u);
        if (d->outputs >= U)
            for (int u = 0; u < U; u++) y[u] = start[u] + sums[u];
        else
            for (int u = 0; u < d->outputs; u++) y[u] = start[u] + sums[u];
    }
}

/* One function per number of rows, so that each gets its own registers. */
#define DOT_FUNCTION(R, G, U) \
    static __attribute__((noinline)) void dots_##R(const Dots *d) { \
        dot_tile(R, R == 1 ? ROW_OUTPUTS : OUTPUTS, d); \
    }
UP_TO_BY_4(DOT_FUNCTION, 1, OUTPUTS)

#define DOT_CASE(R, G, U) \
    case R: dots_##R(d); break;
static inline void run_dots(ptrdiff_t rows, const Dots *d) {
    switch (rows) { UP_TO_BY_4(DOT_CASE, 1, OUTPUTS) }
}

/* The register tile on packed factors: sums of R rows by U vectors of outputs. */
typedef struct {
    ptrdiff_t depth;
    const real **x;         /* R row pointers */
    ptrdiff_t x_step;       /* elements from term to term */
    const real *w;          /* (depth, U, LANES) */
    const real *init;       /* (U, LANES) that all rows start from; NULL: from out */
    real **out;             /* R row pointers */
} Product;

#define PRODUCT_FUNCTION(R, G, U) \
    static __attribute__((noinline)) void product_##R##_##U(const Product *p) { \
        const Tile t = {.depth = p->depth, .a = p->x, .a_step = p->x_step, \
                        .w = (const char *)p->w, .w_step = U * sizeof(vec), \
                        .w_block = sizeof(vec), .out = p->out, .out_block = LANES, \
                        .init = p->init, .init_block = LANES, .out_far = 1}; \
        tile(R, 1, U, &t, REALS); \
    }
#define PRODUCTS(X) \
    UP_TO_BY_4(X, 1, 4) UP_TO_BY_4(X, 1, 3) UP_TO_BY_4(X, 1, 2) UP_TO_BY_4(X, 1, 1)
PRODUCTS(PRODUCT_FUNCTION)

#define PRODUCT_CASE(R, G, U) \
    case 10 * R + U: product_##R##_##U(p); break;
static inline void run_product(ptrdiff_t rows, ptrdiff_t vectors, const Product *p) {
    switch (10 * rows + vectors) { PRODUCTS(PRODUCT_CASE) }
}

/* Rows side by side, vector by vector with room for `width` of them, zero beyond depth. */
static inline void pack_rows(ptrdiff_t rows, const real *from, ptrdiff_t row, ptrdiff_t depth,
                             ptrdiff_t width, vec *packed) {
    const ptrdiff_t whole = depth / LANES;
    for (ptrdiff_t r = 0; r < rows; r++, from += row) {
        for (ptrdiff_t v = 0; v < whole; v++) packed[v * width + r] = vload(from + v * LANES);
        if (whole * LANES < depth)
            packed[whole * width + r] = vload_part(from + whole * LANES, depth - whole * LANES);
    }
}

#endif
#endif
