# The recurrent cells: one step of one block of units, forward beside backward.
#
# Forward: `z` holds the pre-activations of a row; the state before `step` gives the state after.
# With a tape the activated gates replace the pre-activations. Backward is written in terms of
# those: d_sigmoid = y (1 - y), d_tanh = 1 - y^2. A d-prefix is a gradient; `dh` and `dc` enter as
# gradients of the state after the step and leave as those of the state before it, except for what
# the recurrent product (backward_state) adds to dh.

cdef inline vec d_sigmoid(vec y, vec dy) noexcept nogil:
    return dy * (y * (vset(1) - y))


cdef inline vec d_tanh(vec y, vec dy) noexcept nogil:
    return dy * (vset(1) - y * y)


cdef inline real *state(const Sequence *s, void *base, Py_ssize_t step, Py_ssize_t row,
                        Py_ssize_t block) noexcept nogil:
    """A row's block of h or c before `step`."""
    return <real *>base + (((step & s.ring) * s.rows + row) * s.w.blocks + block) * LANES


cdef inline real *carried(const Sequence *s, void *base, Py_ssize_t row,
                          Py_ssize_t block) noexcept nogil:
    """A row's block of dh or dc."""
    return <real *>base + (row * s.w.blocks + block) * LANES


cdef inline void show(const Sequence *s, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                      vec h) noexcept nogil:
    """The new hidden state, to the next step and to the caller."""
    vstore(state(s, s.h, step + 1, row, block), h)
    vstore_part(<real *>s.y + s.y_row[row] + step * s.y_step + block * LANES, h,
                s.w.hidden - block * LANES)


cdef inline vec seen(const Sequence *s, Py_ssize_t step, Py_ssize_t row,
                     Py_ssize_t block) noexcept nogil:
    """The gradient of the new hidden state: from the next step and from the caller."""
    cdef vec dh = vload(carried(s, s.dh, row, block))
    if s.y != NULL:
        dh = dh + vload_part(<real *>s.y + s.y_row[row] + step * s.y_step + block * LANES,
                             s.w.hidden - block * LANES)
    return dh


# LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000), slots i, f, g, o:
#   c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

cdef inline void lstm_forward(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                              Py_ssize_t block) noexcept nogil:
    cdef vec i = vsigmoid(vload(z))
    cdef vec f = vsigmoid(vload(z + LANES))
    cdef vec g = vtanh(vload(z + 2 * LANES))
    cdef vec o = vsigmoid(vload(z + 3 * LANES))
    cdef vec c = vfma(f, vload(state(s, s.c, step, row, block)), i * g)
    vstore(state(s, s.c, step + 1, row, block), c)
    show(s, step, row, block, o * vtanh(c))
    if s.tape != NULL:
        vstore(z, i)
        vstore(z + LANES, f)
        vstore(z + 2 * LANES, g)
        vstore(z + 3 * LANES, o)


cdef inline void lstm_backward(const Sequence *s, const real *z, real *dz, Py_ssize_t step,
                               Py_ssize_t row, Py_ssize_t block) noexcept nogil:
    cdef vec i = vload(z)
    cdef vec f = vload(z + LANES)
    cdef vec g = vload(z + 2 * LANES)
    cdef vec o = vload(z + 3 * LANES)
    cdef vec c_before = vload(state(s, s.c, step, row, block))
    cdef vec tanh_c = vtanh(vload(state(s, s.c, step + 1, row, block)))
    cdef real *carry = carried(s, s.dc, row, block)
    cdef vec dh = seen(s, step, row, block)
    cdef vec dc = vload(carry) + d_tanh(tanh_c, dh * o)
    vstore(dz, d_sigmoid(i, dc * g))
    vstore(dz + LANES, d_sigmoid(f, dc * c_before))
    vstore(dz + 2 * LANES, d_tanh(g, dc * i))
    vstore(dz + 3 * LANES, d_sigmoid(o, dh * tanh_c))
    vstore(carry, dc * f)
    vstore(carried(s, s.dh, row, block), vset(0))


# GRU with the reset gate after the product (cuDNN, PyTorch), slots n, r, z, u = U_n h + b_hn:
#   n = tanh(W_n x + b_in + r u),  h_t = (1 - z) n + z h_{t-1}

cdef inline void gru_forward(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block) noexcept nogil:
    cdef vec r = vsigmoid(vload(slots + LANES))
    cdef vec z = vsigmoid(vload(slots + 2 * LANES))
    cdef vec n = vtanh(vfma(r, vload(slots + 3 * LANES), vload(slots)))
    show(s, step, row, block, vfma(z, vload(state(s, s.h, step, row, block)) - n, n))
    if s.tape != NULL:
        vstore(slots, n)
        vstore(slots + LANES, r)
        vstore(slots + 2 * LANES, z)


cdef inline void gru_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                              Py_ssize_t step, Py_ssize_t row, Py_ssize_t block) noexcept nogil:
    cdef vec n = vload(slots)
    cdef vec r = vload(slots + LANES)
    cdef vec z = vload(slots + 2 * LANES)
    cdef vec u = vload(slots + 3 * LANES)
    cdef vec h_before = vload(state(s, s.h, step, row, block))
    cdef vec dh = seen(s, step, row, block)
    cdef vec dn = d_tanh(n, dh * (vset(1) - z))
    cdef vec dr = d_sigmoid(r, dn * u)
    cdef vec dz = d_sigmoid(z, dh * (h_before - n))
    vstore(d_x, dn)
    vstore(d_x + LANES, dr)
    vstore(d_x + 2 * LANES, dz)
    vstore(d_h, dr)
    vstore(d_h + LANES, dz)
    vstore(d_h + 2 * LANES, dn * r)
    vstore(carried(s, s.dh, row, block), dh * z)


# Vanilla RNN (Elman 1990): h_t = tanh(W x + b + U h_{t-1}), or relu

cdef inline void rnn_forward(const Sequence *s, const real *z, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block) noexcept nogil:
    if s.w.cell == RNN_RELU:
        show(s, step, row, block, vrelu(vload(z)))
    else:
        show(s, step, row, block, vtanh(vload(z)))


cdef inline void rnn_backward(const Sequence *s, real *dz, Py_ssize_t step, Py_ssize_t row,
                              Py_ssize_t block) noexcept nogil:
    cdef vec h = vload(state(s, s.h, step + 1, row, block))
    cdef vec dh = seen(s, step, row, block)
    if s.w.cell == RNN_RELU:
        vstore(dz, vstep(h, dh))
    else:
        vstore(dz, d_tanh(h, dh))
    vstore(carried(s, s.dh, row, block), vset(0))


cdef void clear_padding(const Sequence *s, real *d_gates, Py_ssize_t block) noexcept nogil:
    """Make lanes beyond the last unit zero: infinite inputs times zero weights made them NaN."""
    cdef Py_ssize_t slot
    for slot in range(s.w.gates):
        vstore(d_gates + slot * LANES,
               vload_part(d_gates + slot * LANES, s.w.hidden - block * LANES))


cdef inline void forward_block(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                               Py_ssize_t block) noexcept nogil:
    z += block * s.w.slots * LANES
    if s.w.cell == LSTM:
        lstm_forward(s, z, step, row, block)
    elif s.w.cell == GRU:
        gru_forward(s, z, step, row, block)
    else:
        rnn_forward(s, z, step, row, block)


cdef inline void backward_block(const Sequence *s, const real *z, real *d_x, real *d_h,
                                Py_ssize_t step, Py_ssize_t row, Py_ssize_t block) noexcept nogil:
    z += block * s.w.slots * LANES
    d_x += block * s.w.gates * LANES
    d_h += block * s.w.gates * LANES
    if s.w.cell == LSTM:
        lstm_backward(s, z, d_x, step, row, block)
    elif s.w.cell == GRU:
        gru_backward(s, z, d_x, d_h, step, row, block)
    else:
        rnn_backward(s, d_x, step, row, block)
    if s.w.hidden < (block + 1) * LANES:
        clear_padding(s, d_x, block)
        clear_padding(s, d_h, block)
