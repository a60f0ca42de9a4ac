# Minimal cells (Feng et al. 2024), whose gates see x alone. What is written, g, is linear in x.

cdef inline void carry_on(const Sequence *s, Py_ssize_t row, Py_ssize_t block, vec d,
                          bint plain) noexcept nogil:
    """The gradient of h_{t-1}, in addition to what zoneout has let pass."""
    cdef real *carry = carried_h(s, row, block)
    vstore(carry, d if plain else vload(carry) + d)


# minGRU, slots z, g: h_t = (1 - z) h_{t-1} + z g

cdef inline void mingru_forward(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                                Py_ssize_t block, bint plain) noexcept nogil:
    cdef vec z = gate(s, slots, 0, vload(slots), False, plain)
    cdef vec g = linear(s, slots, 1, vload(slots + LANES), plain)
    cdef vec h = vload(state(s, step, row, block))
    show(s, step, row, block, vfma(z, g - h, h), plain)
    if s.tape != NULL:
        vstore(slots, z)
        vstore(slots + LANES, g)


cdef inline void mingru_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                 real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                 Py_ssize_t entry, bint plain) noexcept nogil:
    cdef vec z = vload(slots), g = vload(slots + LANES), dh = seen(s, step, row, block, plain)
    cdef vec dz = dh * (g - vload(state(s, step, row, block)))
    vstore(d_x, d_gate(s, slots, 0, z, dz, False, plain))
    vstore(d_x + LANES, d_linear(s, slots, 1, dh * z, plain))
    carry_on(s, row, block, dh * (vset(1) - z), plain)


# minLSTM, slots i, f, g: h_t = k h_{t-1} + (1 - k) g, k = f / (f + i)

cdef inline vec gate_sum(vec i, vec f) noexcept nogil:
    """f + i, but not 0 where both have vanished."""
    return vmax(vset(1e-30), f + i)


cdef inline void minlstm_forward(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                                 Py_ssize_t block, bint plain) noexcept nogil:
    cdef vec i = gate(s, slots, 0, vload(slots), False, plain)
    cdef vec f = gate(s, slots, 1, vload(slots + LANES), False, plain)
    cdef vec g = linear(s, slots, 2, vload(slots + 2 * LANES), plain)
    show(s, step, row, block,
         vfma(f / gate_sum(i, f), vload(state(s, step, row, block)) - g, g), plain)
    if s.tape != NULL:
        vstore(slots, i)
        vstore(slots + LANES, f)
        vstore(slots + 2 * LANES, g)


cdef inline void minlstm_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                  real *d_single, Py_ssize_t step, Py_ssize_t row,
                                  Py_ssize_t block, Py_ssize_t entry, bint plain) noexcept nogil:
    cdef vec i = vload(slots), f = vload(slots + LANES), g = vload(slots + 2 * LANES)
    cdef vec total = gate_sum(i, f), keep = f / total, dh = seen(s, step, row, block, plain)
    cdef vec dkeep = dh * (vload(state(s, step, row, block)) - g) / total
    vstore(d_x, d_gate(s, slots, 0, i, vset(0) - dkeep * keep, False, plain))
    vstore(d_x + LANES, d_gate(s, slots, 1, f, dkeep * (vset(1) - keep), False, plain))
    vstore(d_x + 2 * LANES, d_linear(s, slots, 2, dh * (vset(1) - keep), plain))
    carry_on(s, row, block, dh * keep, plain)


cdef void mingru_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(mingru_forward, at, plain)


cdef void mingru_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(mingru_backward, at, plain)


cdef void minlstm_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(minlstm_forward, at, plain)


cdef void minlstm_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(minlstm_backward, at, plain)


new_cell("mingru", 2, 2, 1, mingru_forward_step, mingru_backward_step)
new_cell("minlstm", 3, 3, 1, minlstm_forward_step, minlstm_backward_step)
