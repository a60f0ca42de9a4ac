# Vanilla RNN (Elman 1990): h_t = tanh(W x + b + U h_{t-1}), or another activation.
# IndRNN (Li et al. 2018): u h_{t-1} elementwise in place of the product.

cdef inline void rnn_forward(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block, bint plain) noexcept nogil:
    cdef vec a = vload(z)
    if not plain and s.w.diagonal >= 0:
        a = vfma(single(s, s.w.diagonal, block), fed(s, step, row, block), a)
    a = gate(s, z, 0, a, True, plain)
    show(s, step, row, block, a, plain)
    if s.tape != NULL:
        vstore(z, a)


cdef inline void rnn_backward(const Sequence *s, const real *z, real *dz, real *d_h,
                              real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                              Py_ssize_t entry, bint plain) noexcept nogil:
    cdef vec da = d_gate(s, z, 0, vload(z), seen(s, step, row, block, plain), True, plain)
    cdef real *carry
    vstore(dz, da)
    if not plain and s.w.diagonal >= 0:
        carry = carried_h(s, row, block)
        add_to(d_single + s.w.diagonal * LANES, da * fed(s, step, row, block))
        vstore(carry, vload(carry)
               + masked(s, row, block, da * single(s, s.w.diagonal, block)))


cdef void rnn_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(rnn_forward, at, plain)


cdef void rnn_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(rnn_backward, at, plain)


new_cell("rnn", 1, 1, 1, rnn_forward_step, rnn_backward_step)
