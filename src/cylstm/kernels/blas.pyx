"""Matrix products through SciPy's BLAS: the only module of cylstm that needs SciPy.

BLAS and not `numpy.matmul`, because `beta=1` adds a product straight into a gradient array.
"""

from cython cimport floating
from scipy.linalg.cython_blas cimport dgemm, sgemm

# BLAS counts rows and columns in C int; larger products are split. Tests lower it.
max_dimension = 2147483647


def gemm(
    const floating[:, ::1] a,  # IN (M, K), or (K, M) with transpose_a
    const floating[:, ::1] b,  # IN (K, N), or (N, K) with transpose_b
    floating[:, ::1] c,  # IN, OUT (M, N)
    bint transpose_a=False,
    bint transpose_b=False,
    double alpha=1.0,
    double beta=0.0,
):
    """C := alpha * op(A) op(B) + beta * C.

    Parameters
    ----------
    a : ndarray of shape (M, K), or (K, M) with `transpose_a`, float32 or float64
        C-contiguous, aligned; may be read-only, as `b`.
    b : ndarray of shape (K, N), or (N, K) with `transpose_b`, dtype of `a`
    c : ndarray of shape (M, N), dtype of `a`
        Written in place; must not overlap `a` or `b`. Not read when `beta` is 0.
    transpose_a, transpose_b : bool, default False
        op(X) is the transpose of X.
    alpha : float, default 1.0
    beta : float, default 0.0

    Raises
    ------
    ValueError
        Shapes that do not fit, an array that is not C-contiguous, a read-only `c`, or dtypes
        that differ.
    TypeError
        `a` is not a matrix of float32 or float64.
    """
    cdef Py_ssize_t m = a.shape[1 if transpose_a else 0]
    cdef Py_ssize_t k = a.shape[0 if transpose_a else 1]
    cdef Py_ssize_t n = b.shape[0 if transpose_b else 1]
    cdef Py_ssize_t limit = max_dimension
    if b.shape[1 if transpose_b else 0] != k or c.shape[0] != m or c.shape[1] != n:
        raise ValueError(
            f"op(a) {m, k}, op(b) {b.shape[1 if transpose_b else 0], n} and "
            f"c {c.shape[0], c.shape[1]} do not fit (m, k), (k, n) and (m, n)"
        )
    if m == 0 or n == 0:
        return
    with nogil:
        _gemm_split(
            &a[0, 0], &b[0, 0], &c[0, 0], m, n, k, transpose_a, transpose_b,
            <floating> alpha, <floating> beta, limit,
        )


cdef void _gemm_split(
    const floating *a,  # IN (m, k) or (k, m)
    const floating *b,  # IN (k, n) or (n, k)
    floating *c,  # IN, OUT (m, n)
    Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
    bint transpose_a, bint transpose_b, floating alpha, floating beta,
    Py_ssize_t limit,
) noexcept nogil:
    """C := alpha * op(A) op(B) + beta * C, in pieces of at most `limit` rows and columns."""
    cdef Py_ssize_t lda = m if transpose_a else k
    cdef Py_ssize_t ldb = k if transpose_b else n
    cdef Py_ssize_t step_m = limit, step_n = limit, step_k = limit
    cdef Py_ssize_t i = 0, j, p, rows, columns, inner
    # A stored row longer than the limit cannot be a BLAS stride: take such rows one at a time.
    if lda > limit:
        if transpose_a:
            step_k = 1
        else:
            step_m = 1
    if ldb > limit:
        if transpose_b:
            step_n = 1
        else:
            step_k = 1
    if n > limit:
        step_m = 1
    while i < m:
        rows = min(step_m, m - i)
        j = 0
        while j < n:
            columns = min(step_n, n - j)
            p = 0
            while p < k or p == 0:  # once for k = 0, which scales C
                inner = min(step_k, k - p)
                _gemm_row_major(
                    a + (p * lda + i if transpose_a else i * lda + p), min(lda, limit),
                    b + (j * ldb + p if transpose_b else p * ldb + j), min(ldb, limit),
                    c + i * n + j, min(n, limit),
                    <int> rows, <int> columns, <int> inner, transpose_a, transpose_b,
                    alpha, beta if p == 0 else 1,
                )
                p += step_k
            j += step_n
        i += step_m


cdef void _gemm_row_major(
    const floating *a, Py_ssize_t lda, const floating *b, Py_ssize_t ldb,
    floating *c, Py_ssize_t ldc,
    int m, int n, int k, bint transpose_a, bint transpose_b, floating alpha, floating beta,
) noexcept nogil:
    """C := alpha * op(A) op(B) + beta * C, as C' := alpha * op(B)' op(A)' + beta * C' in BLAS."""
    cdef char *op_a = b"t" if transpose_a else b"n"
    cdef char *op_b = b"t" if transpose_b else b"n"
    cdef int stride_a = <int> max(lda, 1)  # BLAS refuses 0, also for the empty matrix
    cdef int stride_b = <int> max(ldb, 1)
    cdef int stride_c = <int> ldc
    if floating is float:
        sgemm(op_b, op_a, &n, &m, &k, &alpha, <float *> b, &stride_b, <float *> a, &stride_a,
              &beta, c, &stride_c)
    else:
        dgemm(op_b, op_a, &n, &m, &k, &alpha, <double *> b, &stride_b, <double *> a, &stride_a,
              &beta, c, &stride_c)
