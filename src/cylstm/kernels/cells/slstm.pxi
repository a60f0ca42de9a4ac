# sLSTM (Beck et al. 2024), slots i, f, g, o; states h, c, the normaliser n and the stabiliser m:
#   m_t = max(a_i, log f + m_{t-1}),  i = exp(a_i - m_t),  f' = exp(log f + m_{t-1} - m_t)
#   c_t = f' c_{t-1} + i g,  n_t = f' n_{t-1} + i,  h_t = o c_t / n_t
# where f is the sigmoid of its pre-activation, or the exponential. One of i and f' is 1, so that
# nothing overflows, and c_t / n_t does not depend on m. Before the first step n is 0: nothing is
# kept then whatever m is, and m_t = a_i.

cdef enum:
    C = 1
    N = 2
    M = 3


cdef inline void slstm_step(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                            Py_ssize_t block, bint exponential, bint plain) noexcept nogil:
    cdef vec a = linear(s, z, 0, vload(z), plain), b = linear(s, z, 1, vload(z + LANES), plain)
    cdef vec g = gate(s, z, 2, vload(z + 2 * LANES), True, plain)
    cdef vec o = gate(s, z, 3, vload(z + 3 * LANES), False, plain)
    cdef vec before = vload(other_state(s, N, step, row, block)), i, f, c, n, m
    if not exponential:
        b = vset(0) - vsoftplus(vset(0) - b)    # log sigmoid
    b = b + vload(other_state(s, M, step, row, block))
    m = vwhere_zero(before, a, vmax(a, b))
    # The bound matters before the first step alone.
    i, f = vexp(a - m), vexp(vset(0) - vmax(vset(-80), m - b))
    c = vfma(f, vload(other_state(s, C, step, row, block)), i * g)
    n = vfma(f, before, i)
    vstore(other_state(s, C, step + 1, row, block), c)
    vstore(other_state(s, N, step + 1, row, block), n)
    vstore(other_state(s, M, step + 1, row, block), m)
    show(s, step, row, block, o * (c / n), plain)
    if s.tape != NULL:
        vstore(z, i)
        vstore(z + LANES, f)
        vstore(z + 2 * LANES, g)
        vstore(z + 3 * LANES, o)


cdef inline void slstm_step_backward(const Sequence *s, const real *z, real *d_x,
                                     Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                     bint exponential, bint plain) noexcept nogil:
    cdef vec i = vload(z), f = vload(z + LANES), g = vload(z + 2 * LANES)
    cdef vec o = vload(z + 3 * LANES), zero = vset(0)
    cdef vec c_before = vload(other_state(s, C, step, row, block))
    cdef vec n_before = vload(other_state(s, N, step, row, block))
    cdef vec n = vload(other_state(s, N, step + 1, row, block))
    cdef vec u = vload(other_state(s, C, step + 1, row, block)) / n
    cdef vec dh = seen(s, step, row, block, plain)
    cdef vec du = dh * o / n
    cdef vec dc = vload(carried(s, C, row, block)) + du
    cdef vec dn = vload(carried(s, N, row, block)) - du * u
    cdef vec dm = vload(carried(s, M, row, block))
    # What the smaller of a_i and b, log f + m_{t-1}, does not get of dm, the larger one, m_t, gets.
    cdef vec through_f = vfma(dc, c_before, dn * n_before) * f, through_i = vfma(dc, g, dn) * i
    cdef vec da = vwhere_zero(n_before, dm - through_f,
                              vwhere_less(f, vset(1), dm - through_f, through_i))
    cdef vec db = vwhere_zero(n_before, through_f,
                              vwhere_less(f, vset(1), through_f, dm - through_i))
    vstore(carried(s, C, row, block), dc * f)
    vstore(carried(s, N, row, block), dn * f)
    vstore(carried(s, M, row, block), db)
    if not exponential:     # the derivative of log f is 1 - f, and f = f' exp(m_t - m_{t-1})
        db = db * (vset(1) - f * vexp(zero - vmax(
            vset(-80), vload(other_state(s, M, step, row, block))
            - vload(other_state(s, M, step + 1, row, block)))))
    vstore(d_x, d_linear(s, z, 0, da, plain))
    vstore(d_x + LANES, d_linear(s, z, 1, db, plain))
    vstore(d_x + 2 * LANES, d_gate(s, z, 2, g, dc * i, True, plain))
    vstore(d_x + 3 * LANES, d_gate(s, z, 3, o, dh * u, False, plain))


cdef inline void slstm_forward(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                               Py_ssize_t block, bint plain) noexcept nogil:
    slstm_step(s, z, step, row, block, False, plain)


cdef inline void slstm_backward(const Sequence *s, const real *z, real *d_x, real *d_h,
                                real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                Py_ssize_t entry, bint plain) noexcept nogil:
    slstm_step_backward(s, z, d_x, step, row, block, False, plain)


cdef inline void slstm_exp_forward(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                                   Py_ssize_t block, bint plain) noexcept nogil:
    slstm_step(s, z, step, row, block, True, plain)


cdef inline void slstm_exp_backward(const Sequence *s, const real *z, real *d_x, real *d_h,
                                    real *d_single, Py_ssize_t step, Py_ssize_t row,
                                    Py_ssize_t block, Py_ssize_t entry,
                                    bint plain) noexcept nogil:
    slstm_step_backward(s, z, d_x, step, row, block, True, plain)


cdef void slstm_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(slstm_forward, at, plain)


cdef void slstm_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(slstm_backward, at, plain)


cdef void slstm_exp_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(slstm_exp_forward, at, plain)


cdef void slstm_exp_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(slstm_exp_backward, at, plain)


new_cell("slstm", 4, 4, 4, slstm_forward_step, slstm_backward_step)
new_cell("slstm_exp", 4, 4, 4, slstm_exp_forward_step, slstm_exp_backward_step)
