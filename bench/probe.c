/* What the machine can do at best, with the widest vectors it has (compiled with -march=native). */
#include <stddef.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
typedef float vec __attribute__((vector_size(WIDTH)));
enum { CHAINS = 10, LANES = WIDTH / sizeof(float) };

static volatile float sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void keep(const vec *a, int n) {
    float s = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < LANES; j++) s += a[i][j];
    sink = s;
}

/* GFLOP/s of `steps` rounds of 10 independent chains of fused multiply-adds in registers. */
double fma_gflops(ptrdiff_t steps, float factor) {
    vec a[CHAINS], m = factor - (vec){};
    for (int i = 0; i < CHAINS; i++) a[i] = (float)(i + 1) - (vec){};
    double start = now();
    for (ptrdiff_t s = 0; s < steps; s++) {
#pragma GCC unroll 10
        for (int i = 0; i < CHAINS; i++) a[i] = a[i] * m + m;
    }
    double seconds = now() - start;
    keep(a, CHAINS);
    return 2e-9 * CHAINS * LANES * steps / seconds;
}

/* GB/s of reading `n` floats `sweeps` times; n is a multiple of 8 vectors. */
double read_gbs(const float *data, ptrdiff_t n, ptrdiff_t sweeps) {
    vec a[8] = {};
    double start = now();
    for (ptrdiff_t s = 0; s < sweeps; s++) {
        for (ptrdiff_t i = 0; i < n; i += 8 * LANES) {
            const vec *p = (const vec *)(data + i);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) a[j] += p[j];
        }
    }
    double seconds = now() - start;
    keep(a, 8);
    return 1e-9 * sizeof(float) * n * sweeps / seconds;
}
