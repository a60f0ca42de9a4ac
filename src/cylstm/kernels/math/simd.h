/* The vector type of one instruction set and dtype, and what Cython cannot say about it.
 *
 * Compiled once per level module: CYLSTM_REAL is float or double, CYLSTM_LANES_BYTES the register
 * width. Arithmetic is GCC/Clang vector extension; only fma, max and broadcast need intrinsics.
 * Every operation that rounds is written out (contraction is off), so that all levels with FMA
 * compute the same bits.
 */
#ifndef CYLSTM_SIMD_H
#define CYLSTM_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef CYLSTM_REAL real;
#define IS_F32 (sizeof(real) == 4)
typedef __typeof__(__builtin_choose_expr(IS_F32, (int32_t)0, (int64_t)0)) bits;
enum { LANES = CYLSTM_LANES_BYTES / sizeof(real) };
typedef real vec __attribute__((vector_size(CYLSTM_LANES_BYTES)));
typedef bits ivec __attribute__((vector_size(CYLSTM_LANES_BYTES)));
typedef real loose_vec
    __attribute__((vector_size(CYLSTM_LANES_BYTES), aligned(sizeof(real))));

/* fma(a, b, c) = a b + c; vmax(a, b) = a > b ? a : b, so that a NaN in b survives. */
#if defined(__AVX512F__) && CYLSTM_LANES_BYTES == 64
#define BY_TYPE(f32, f64) __builtin_choose_expr(IS_F32, f32, f64)
INLINE vec vset(real x) { return (vec)BY_TYPE(_mm512_set1_ps((float)x), _mm512_set1_pd(x)); }
INLINE vec vfma(vec a, vec b, vec c) {
    return (vec)BY_TYPE(_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c),
                        _mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c));
}
INLINE vec vmax(vec a, vec b) {
    return (vec)BY_TYPE(_mm512_max_ps((__m512)a, (__m512)b), _mm512_max_pd((__m512d)a, (__m512d)b));
}
#elif defined(__FMA__) && CYLSTM_LANES_BYTES == 32
#define BY_TYPE(f32, f64) __builtin_choose_expr(IS_F32, f32, f64)
INLINE vec vset(real x) { return (vec)BY_TYPE(_mm256_set1_ps((float)x), _mm256_set1_pd(x)); }
INLINE vec vfma(vec a, vec b, vec c) {
    return (vec)BY_TYPE(_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c),
                        _mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c));
}
INLINE vec vmax(vec a, vec b) {
    return (vec)BY_TYPE(_mm256_max_ps((__m256)a, (__m256)b), _mm256_max_pd((__m256d)a, (__m256d)b));
}
#else
INLINE vec vset(real x) { return x - (vec){0}; }
INLINE vec vmax(vec a, vec b) {
    ivec greater = a > b;
    return (vec)((greater & (ivec)a) | (~greater & (ivec)b));
}
#if defined(__aarch64__)
#define BY_TYPE(f32, f64) __builtin_choose_expr(IS_F32, f32, f64)
INLINE vec vfma(vec a, vec b, vec c) {
    return (vec)BY_TYPE(vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b),
                        vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b));
}
#else
INLINE vec vfma(vec a, vec b, vec c) { return a * b + c; }
#endif
#endif

INLINE vec vload(const real *p) { return *(const loose_vec *)p; }
INLINE void vstore(real *p, vec v) { *(loose_vec *)p = v; }

/* The first n lanes, zero beyond; for the last block of an array whose rows are not padded. */
INLINE vec vload_part(const real *p, ptrdiff_t n) {
    if (n >= LANES) return vload(p);
    vec v = {0};
    for (ptrdiff_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}
INLINE void vstore_part(real *p, vec v, ptrdiff_t n) {
    if (n >= LANES) vstore(p, v);
    else for (ptrdiff_t i = 0; i < n; i++) p[i] = v[i];
}

INLINE vec vselect(ivec where, vec a, vec b) {
    return (vec)((where & (ivec)a) | (~where & (ivec)b));
}

/* For y <= 0 or NaN: scale = 2^n and p = exp(y - n ln 2) - 1, so that exp(y) = scale + scale p.
 * p is the minimax polynomial r + r^2 q(r) on |r| <= ln(2)/2, relative error 2^-26 (float32) and
 * 2^-55 (float64). The lower clamp gives n = -127 (-1023), whose exponent bits spell scale = 0. */
INLINE void exp_parts(vec y, vec *scale, vec *p) {
    static const real q32[] = {0x1.fffffep-2, 0x1.5554b0p-3, 0x1.555674p-5, 0x1.122776p-7,
                               0x1.6bec06p-10};
    static const real q64[] = {0x1.0000000000005p-1, 0x1.5555555555539p-3, 0x1.55555555522b8p-5,
                               0x1.1111111118fa9p-7, 0x1.6c16c17edba42p-10, 0x1.a01a017515664p-13,
                               0x1.a019a76f56f91p-16, 0x1.71de88058d787p-19, 0x1.28a1dfeb6446cp-22,
                               0x1.ae6ba9c908993p-26};
    const real *q = IS_F32 ? q32 : q64;
    const int degree = IS_F32 ? 4 : 9;
    /* Adding 1.5 2^23 (2^52) rounds to an integer that can be read off the low bits. */
    const vec magic = vset(IS_F32 ? 0x1.8p23 : 0x1.8p52);
    const int mantissa = IS_F32 ? 23 : 52, bias = IS_F32 ? 127 : 1023;
    y = vmax(vset(IS_F32 ? -88 : -709), y);
    vec shifted = vfma(y, vset(0x1.71547652b82fep0), magic);
    vec n = shifted - magic;
    /* ln 2 in two parts, the high one short enough for n * high to be exact. */
    vec r = vfma(n, vset(IS_F32 ? -0x1.62e4p-1 : -0x1.62e42fefap-1), y);
    r = vfma(n, vset(IS_F32 ? -0x1.7f7d1cp-20 : -0x1.cf79abc9e3b3ap-40), r);
    vec sum = vset(q[degree]);
    for (int i = degree - 1; i >= 0; i--) sum = vfma(sum, r, vset(q[i]));
    *p = vfma(sum, r * r, r);
    *scale = (vec)(((ivec)shifted + bias) << mantissa);
}

/* 1 / (1 + exp(-x)) through exp(-|x|), which cannot overflow. */
INLINE vec vsigmoid(vec x) {
    const ivec sign = (ivec)vset(-(real)0.0);
    vec scale, p;
    exp_parts((vec)((ivec)x | sign), &scale, &p);
    vec e = vfma(scale, p, scale);
    return vselect(x < vset(0), e, vset(1)) / (vset(1) + e);
}

/* tanh |x| = -expm1(-2|x|) / (2 + expm1(-2|x|)), with the sign of x. */
INLINE vec vtanh(vec x) {
    const ivec sign = (ivec)vset(-(real)0.0);
    vec scale, p;
    exp_parts((vec)((ivec)(x + x) | sign), &scale, &p);
    vec em1 = vfma(scale, p, scale - vset(1));
    return (vec)(((ivec)(em1 / (vset(2) + em1)) & ~sign) | ((ivec)x & sign));
}

/* max(x, 0) that keeps NaN, and its gradient: dy where y > 0. */
INLINE vec vrelu(vec x) { return vmax(vset(0), x); }
INLINE vec vstep(vec y, vec dy) { return vselect(y > vset(0), dy, vset(0)); }
/* The first n lanes, zero beyond. */
INLINE vec vfirst(vec v, ptrdiff_t n) {
    if (n < LANES)
        for (ptrdiff_t i = n; i < LANES; i++) v[i] = 0;
    return v;
}
/* v where a and b differ, 0 elsewhere. */
INLINE vec vunequal(vec a, vec b, vec v) { return vselect(a == b, vset(0), v); }

#endif
