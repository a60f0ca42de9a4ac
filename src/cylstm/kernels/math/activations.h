/* The activations of the gates: ONNX's list (operators RNN, GRU and LSTM, opset 22).
 *
 * activate is y = f(x); d_activate is dx = f'(x) dy. Where a derivative is not a function of y
 * alone, x is read as well. At a kink it is the derivative of the flat side.
 */
#ifndef CYLSTM_ACTIVATIONS_H
#define CYLSTM_ACTIVATIONS_H

typedef struct {
    int kind;
    double alpha, beta;
} Activation;

enum {
    SIGMOID, TANH, RELU, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, HARD_SIGMOID, ELU,
    SOFTSIGN, SOFTPLUS
};

/* The rest is for the levels. */
#ifdef CYLSTM_REAL
#include "simd.h"

INLINE vec vabs(vec x) { return (vec)((ivec)x & ~(ivec)vset(-(real)0.0)); }
/* A NaN passes. */
INLINE vec vclamp(vec x, vec low, vec high) {
    return vselect(x > high, high, vselect(x < low, low, x));
}
INLINE vec vwithin(vec x, real bound, vec v) {
    return vselect(vabs(x) > vset(bound), vset(0), v);
}

/* exp(x) - 1 for x <= 0. */
INLINE vec vexpm1(vec x) {
    vec scale, p;
    exp_parts(x, &scale, &p);
    return vfma(scale, p, scale - vset(1));
}

/* exp(x), for x up to 80. */
INLINE vec vexp(vec x) {
    vec scale, p;
    exp_parts(x, &scale, &p);
    return vfma(scale, p, scale);
}

/* a where x is 0, where x < y; b elsewhere. */
INLINE vec vwhere_zero(vec x, vec a, vec b) { return vselect(x == vset(0), a, b); }
INLINE vec vwhere_less(vec x, vec y, vec a, vec b) { return vselect(x < y, a, b); }

/* log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|) in [0, 1]. With s = u / (2 + u) <= 1/3
 * log1p(u) = 2 artanh(s), whose series is cut where (1/9)^n / (2 n + 1) vanishes. */
INLINE vec vsoftplus(vec x) {
    vec scale, p;
    exp_parts((vec)((ivec)x | (ivec)vset(-(real)0.0)), &scale, &p);
    const vec u = vfma(scale, p, scale), s = u / (vset(2) + u), ss = s * s;
    const int terms = IS_F32 ? 8 : 17;
    vec sum = vset((real)1 / (2 * terms + 1));
    for (int n = terms - 1; n >= 0; n--) sum = vfma(sum, ss, vset((real)1 / (2 * n + 1)));
    return vrelu(x) + (s + s) * sum;
}

/* a where w is 0, b where it is 1, w b + (1 - w) a between: exact at both ends. */
INLINE vec vmix(vec w, vec a, vec b) {
    const vec mixed = vfma(w, b, (vset(1) - w) * a);
    return vselect(w == vset(0), a, vselect(w == vset(1), b, mixed));
}

/* Not inlined: the usual two are taken care of below. */
static __attribute__((noinline)) vec activate_other(const Activation *act, vec x) {
    const vec alpha = vset((real)act->alpha), beta = vset((real)act->beta), zero = vset(0);
    switch (act->kind) {
    case RELU: return vrelu(x);
    case AFFINE: return vfma(alpha, x, beta);
    case LEAKY_RELU: return vselect(x > zero, x, alpha * x);
    case THRESHOLDED_RELU: return vselect(x <= alpha, zero, x);
    case SCALED_TANH: return alpha * vtanh(beta * x);
    case HARD_SIGMOID: return vclamp(vfma(alpha, x, beta), zero, vset(1));
    case ELU: return vselect(x < zero, alpha * vexpm1(x), x);
    case SOFTSIGN: return x / (vset(1) + vabs(x));
    default: return vsoftplus(x);
    }
}

static __attribute__((noinline)) vec d_activate_other(const Activation *act, vec x, vec y, vec dy) {
    const vec alpha = vset((real)act->alpha), beta = vset((real)act->beta), zero = vset(0);
    const vec one = vset(1);
    vec t;
    switch (act->kind) {
    case RELU: return vstep(y, dy);
    case AFFINE: return alpha * dy;
    case LEAKY_RELU: return vselect(x > zero, dy, alpha * dy);
    case THRESHOLDED_RELU: return vselect(x > alpha, dy, zero);
    case SCALED_TANH: t = vtanh(beta * x); return alpha * beta * dy * (one - t * t);
    case HARD_SIGMOID:
        t = vfma(alpha, x, beta);
        return vselect((t > zero) & (t < one), alpha * dy, zero);
    case ELU: return vselect(x < zero, dy * vfma(alpha, vexpm1(x), alpha), dy);
    case SOFTSIGN: t = one / (one + vabs(x)); return dy * (t * t);
    default: return dy * vsigmoid(x);
    }
}

INLINE vec activate(const Activation *act, vec x) {
    if (act->kind == SIGMOID) return vsigmoid(x);
    if (act->kind == TANH) return vtanh(x);
    return activate_other(act, x);
}

INLINE vec d_activate(const Activation *act, vec x, vec y, vec dy) {
    if (act->kind == SIGMOID) return dy * (y * (vset(1) - y));
    if (act->kind == TANH) return dy * (vset(1) - y * y);
    return d_activate_other(act, x, y, dy);
}
#endif
#endif
