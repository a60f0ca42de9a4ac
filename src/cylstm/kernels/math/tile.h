/* The register tile: out[r][u][g] = start + sum over k of a[r][k] * w[u][k][g].
 *
 * R rows by U unit blocks by G vectors of accumulators live in registers. The order of summation
 * is the same for every shape, which makes the bits independent of the shape: one accumulator per
 * output, k ascending, added to the total after every FOLD terms. Partial sums that stay short
 * keep the rounding error of 1000 terms near that of FOLD. Forward and backward products of every
 * cell, and the weight gradients, are this tile.
 */
#ifndef CYLSTM_TILE_H
#define CYLSTM_TILE_H

#include "simd.h"

/* Measured at T = 1000, H = 256: with 96 terms the error is below PyTorch's for every cell. */
#define FOLD 96

typedef struct {
    ptrdiff_t depth;        /* number of k */
    const real **a;         /* R row pointers, to k = 0 */
    ptrdiff_t a_step;       /* elements from k to k + 1 in a row */
    const char *w;          /* (U, depth, G) vectors of weights, of whatever format */
    ptrdiff_t w_step;       /* bytes from k to k + 1 */
    ptrdiff_t w_block;      /* bytes from u to u + 1 */
    real **out;             /* R row pointers */
    ptrdiff_t out_start;    /* elements from a row pointer to its (U, G, LANES) */
    ptrdiff_t out_block;    /* elements from u to u + 1 */
    const real *init;       /* (U, G, LANES) that all rows start from; NULL: from out */
    ptrdiff_t init_block;   /* elements from u to u + 1 */
    int out_far;            /* whether out is likely not in cache, and fetched in advance */
} Tile;

/* How weights are stored, which a tile is specialised by: the bytes of a vector of them, and how it
 * is loaded. Another format is another case in these two. */
enum { REALS };
INLINE ptrdiff_t weights_size(const int format) {
    switch (format) { case REALS: return sizeof(vec); }
    __builtin_unreachable();
}
INLINE vec load_weights(const int format, const char *w) {
    switch (format) { case REALS: return vload((const real *)w); }
    __builtin_unreachable();
}

INLINE void tile(const int R, const int G, const int U, const int format, const Tile *t) {
    vec acc[8 * 4];
    const real *a[8];
    const char *w = t->w;
    const ptrdiff_t size = weights_size(format);
    const real *init = t->init;
    const ptrdiff_t w_block = t->w_block;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) a[r] = t->a[r];
    if (t->out_far) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int i = 0; i < U * G; i++)
                __builtin_prefetch(t->out[r] + t->out_start + i / G * t->out_block + i % G * LANES,
                                   1);
    }
    for (ptrdiff_t k = 0, ka = 0; k < t->depth; init = NULL) {
        const ptrdiff_t end = k + FOLD < t->depth ? k + FOLD : t->depth;
#pragma GCC unroll 32
        for (int i = 0; i < R * U * G; i++) acc[i] = vset(0);
        for (; k < end; k++, ka += t->a_step, w += t->w_step) {
            /* The shorter side is held in registers while the longer one passes by. */
            if (R <= G * U) {
                vec x[8];
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) x[r] = vset(a[r][ka]);
#pragma GCC unroll 8
                for (int u = 0; u < U; u++)
#pragma GCC unroll 4
                    for (int g = 0; g < G; g++) {
                        const vec wv = load_weights(format, w + u * w_block + g * size);
#pragma GCC unroll 8
                        for (int r = 0; r < R; r++)
                            acc[(r * U + u) * G + g] = vfma(x[r], wv, acc[(r * U + u) * G + g]);
                    }
            } else {
                vec wv[8];
#pragma GCC unroll 8
                for (int u = 0; u < U; u++)
#pragma GCC unroll 4
                    for (int g = 0; g < G; g++)
                        wv[u * G + g] = load_weights(format, w + u * w_block + g * size);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const vec x = vset(a[r][ka]);
#pragma GCC unroll 8
                    for (int v = 0; v < G * U; v++)
                        acc[r * U * G + v] = vfma(x, wv[v], acc[r * U * G + v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            real *out = t->out[r] + t->out_start;
            const real *total = init ? init : out;
            const ptrdiff_t total_block = init ? t->init_block : t->out_block;
#pragma GCC unroll 8
            for (int u = 0; u < U; u++)
#pragma GCC unroll 4
                for (int g = 0; g < G; g++)
                    vstore(out + u * t->out_block + g * LANES,
                           vload(total + u * total_block + g * LANES) + acc[(r * U + u) * G + g]);
        }
    }
}

/* Every shape in use, X(rows, gates, unit blocks). With 16 registers a tile has up to 12
 * accumulators; with 32 up to 24 where a factor comes straight from memory (AVX-512), and up to 21
 * where all are in registers (AArch64). One row takes several unit blocks to hide FMA latency. */
#if defined(__AVX512F__)
enum { ROWS_BY_4 = 6, ROWS_BY_3 = 8 };
#define UP_TO_BY_4(X, G, U) X(1, G, U) X(2, G, U) X(3, G, U) X(4, G, U) X(5, G, U) X(6, G, U)
#define UP_TO_BY_3(X, G, U) UP_TO_BY_4(X, G, U) X(7, G, U) X(8, G, U)
#elif defined(__aarch64__)
enum { ROWS_BY_4 = 5, ROWS_BY_3 = 7 };
#define UP_TO_BY_4(X, G, U) X(1, G, U) X(2, G, U) X(3, G, U) X(4, G, U) X(5, G, U)
#define UP_TO_BY_3(X, G, U) UP_TO_BY_4(X, G, U) X(6, G, U) X(7, G, U)
#else
enum { ROWS_BY_4 = 3, ROWS_BY_3 = 4 };
#define UP_TO_BY_4(X, G, U) X(1, G, U) X(2, G, U) X(3, G, U)
#define UP_TO_BY_3(X, G, U) UP_TO_BY_4(X, G, U) X(4, G, U)
#endif
#define TILES(X) \
    UP_TO_BY_4(X, 4, 1) X(1, 4, 2) UP_TO_BY_3(X, 3, 1) X(1, 3, 3) \
    UP_TO_BY_4(X, 2, 2) UP_TO_BY_3(X, 2, 1) X(1, 2, 4) \
    UP_TO_BY_4(X, 1, 4) UP_TO_BY_3(X, 1, 3) UP_TO_BY_3(X, 1, 2) UP_TO_BY_3(X, 1, 1) X(1, 1, 8)

/* One function per shape, so that each gets its own registers. */
#define TILE_FUNCTION(R, G, U) \
    static __attribute__((noinline)) void tile_##R##_##G##_##U(const Tile *t) { \
        tile(R, G, U, REALS, t); \
    }
TILES(TILE_FUNCTION)

#define TILE_CASE(R, G, U) \
    case 100 * R + 10 * G + U: tile_##R##_##G##_##U(t); break;
static inline void run_tile(ptrdiff_t rows, ptrdiff_t gates, ptrdiff_t blocks, const Tile *t) {
    switch (100 * rows + 10 * gates + blocks) { TILES(TILE_CASE) }
}

/* For one row: whether four chains keep up with its weights, as they do with L2 if vectors are cache
 * lines. Fewer blocks at once are fewer streams, which are read faster; L1 needs more chains. */
#define FAR_BYTES (96 * 1024)
static inline int four_suffice(ptrdiff_t vectors) {
    return sizeof(vec) == 64 && vectors > FAR_BYTES / 64;
}

/* Unit blocks that one tile takes for this many rows, and the most rows it takes for those. */
static inline ptrdiff_t tile_blocks(ptrdiff_t rows, ptrdiff_t gates, ptrdiff_t blocks,
                                    ptrdiff_t depth) {
    const int four = rows > 1 || four_suffice(gates * blocks * depth);
    ptrdiff_t most = gates == 1 ? (blocks >= 8 && !four ? 8 : 4)
                   : gates == 2 ? (rows > 1 ? 2 : 4)
                   : rows > 1   ? 1
                   : gates == 3 ? 3
                   : four       ? 1 : 2;
    if (blocks >= most) return most;
    return gates == 1 ? blocks : 1;
}
static inline ptrdiff_t tile_rows(ptrdiff_t gates, ptrdiff_t blocks) {
    return gates * blocks >= 4 ? ROWS_BY_4 : ROWS_BY_3;
}

#endif
