# LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000), slots i, f, g, o:
#   c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
# Coupled, of three gates, slots i, g, o: f = 1 - i. Peepholes (Gers and Schmidhuber 2000): i and f
# also see c_{t-1}, o sees c_t; where every gate is normalised by itself, norms.pxi adds them first.

cdef inline bint coupled(const Sequence *s, bint plain) noexcept nogil:
    return not plain and s.w.gates == 3


cdef inline bint peeps(const Sequence *s, bint plain) noexcept nogil:
    return not plain and s.w.peephole >= 0 and s.w.norm != OF_GATES


cdef inline vec lstm_state(const Sequence *s, const real *z, vec i, vec f, vec g, vec c_before,
                           bint plain) noexcept nogil:
    """The new cell state before zoneout; clipped except for plain cells."""
    cdef vec c = vfma(f, c_before, i * g)
    if not plain and s.w.cell_clip > 0:
        c = vclamp(c, vset(-s.w.cell_clip), vset(s.w.cell_clip))
    return c


cdef inline vec lstm_forget(const Sequence *s, const real *z, vec i, bint plain) noexcept nogil:
    """The forget gate from the tape."""
    return vset(1) - i if coupled(s, plain) else vload(z + LANES)


cdef inline vec lstm_input(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                           Py_ssize_t block, bint plain) noexcept nogil:
    """Forget and write: the new cell state."""
    cdef Py_ssize_t slot_g = 1 if coupled(s, plain) else 2
    cdef vec c_before = vload(other_state(s, 1, step, row, block))
    cdef vec a_i = vload(z), a_f = vload(z + LANES), i, f, g, c
    if peeps(s, plain):
        a_i = vfma(single(s, s.w.peephole, block), c_before, a_i)
        a_f = vfma(single(s, s.w.peephole + 1, block), c_before, a_f)
    i = gate(s, z, 0, a_i, False, plain)
    if coupled(s, plain):
        f = vset(1) - i
    else:
        f = gate(s, z, 1, a_f, False, plain)
    g = gate(s, z, slot_g, vload(z + slot_g * LANES), True, plain)
    c = lstm_state(s, z, i, f, g, c_before, plain)
    vstore(other_state(s, 1, step + 1, row, block),
           vmix(zone_of_c(s, step, row, block), c, c_before) if zones_c(s, plain) else c)
    if s.tape != NULL:
        vstore(z, i)
        if not coupled(s, plain):
            vstore(z + LANES, f)
        vstore(z + slot_g * LANES, g)
    return c


cdef inline void lstm_output(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block, vec c, vec shown, bint plain) noexcept nogil:
    """Emit h from the new cell state, or from `shown`: that state after layer normalisation."""
    cdef Py_ssize_t slot = 2 if coupled(s, plain) else 3
    cdef vec a = vload(z + slot * LANES), o, h
    if peeps(s, plain):
        a = vfma(single(s, s.w.peephole + slot - 1, block), c, a)
    o = gate(s, z, slot, a, False, plain)
    h = o * (vtanh(shown) if plain else activate(&s.w.act[4], shown))
    if s.tape != NULL:
        vstore(z + slot * LANES, o)
    if not plain and s.w.w_2.data != NULL:
        vstore(second(s, row, block), h)
    else:
        show(s, step, row, block, h, plain)


cdef inline void lstm_forward(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                              Py_ssize_t block, bint plain) noexcept nogil:
    cdef vec c = lstm_input(s, z, step, row, block, plain)
    lstm_output(s, z, step, row, block, c, c, plain)


cdef inline vec lstm_new_state(const Sequence *s, const real *z, Py_ssize_t step, Py_ssize_t row,
                               Py_ssize_t block, bint plain) noexcept nogil:
    """What lstm_input returned: the state in plain cells, otherwise computed from the tape."""
    if plain:
        return vload(other_state(s, 1, step + 1, row, block))
    cdef vec i = vload(z)
    return lstm_state(s, z, i, lstm_forget(s, z, i, plain),
                      vload(z + (1 if coupled(s, plain) else 2) * LANES),
                      vload(other_state(s, 1, step, row, block)), plain)


cdef inline vec lstm_output_backward(const Sequence *s, const real *z, real *dz, vec dh, vec shown,
                                     bint plain) noexcept nogil:
    """Gradient of o's pre-activation into dz; returns that of `shown`."""
    cdef Py_ssize_t slot = 2 if coupled(s, plain) else 3
    cdef vec o = vload(z + slot * LANES)
    cdef vec u = vtanh(shown) if plain else activate(&s.w.act[4], shown)
    vstore(dz + slot * LANES, d_gate(s, z, slot, o, dh * u, False, plain))
    return d_tanh(u, dh * o) if plain else d_activate(&s.w.act[4], shown, u, dh * o)


cdef inline void lstm_input_backward(const Sequence *s, const real *z, real *dz, real *d_single,
                                     Py_ssize_t step, Py_ssize_t row, Py_ssize_t block, vec c,
                                     vec dc, bint plain) noexcept nogil:
    """From dc, the gradient of the new state through h, compute those of i, f, g and c_{t-1}."""
    cdef Py_ssize_t slot_g = 1 if coupled(s, plain) else 2
    cdef vec i = vload(z), f = lstm_forget(s, z, i, plain), g = vload(z + slot_g * LANES)
    cdef vec c_before = vload(other_state(s, 1, step, row, block))
    cdef real *carry = carried(s, 1, row, block)
    cdef vec later = vload(carry), bypass = vset(0), di, df, do, before
    if zones_c(s, plain):
        bypass = zone_of_c(s, step, row, block) * later
        later = later - bypass
    if peeps(s, plain):
        do = vload(dz + (slot_g + 1) * LANES)
        dc = vfma(single(s, s.w.peephole + slot_g, block), do, dc)
        add_to(d_single + (s.w.peephole + slot_g) * LANES, do * c)
    dc = later + dc
    if not plain and s.w.cell_clip > 0:
        dc = vwithin(vfma(f, c_before, i * g), s.w.cell_clip, dc)
    di, df, before = dc * g, dc * c_before, dc * f
    if coupled(s, plain):
        di = di - df
    di = d_gate(s, z, 0, i, di, False, plain)
    vstore(dz, di)
    if not coupled(s, plain):
        df = d_gate(s, z, 1, f, df, False, plain)
        vstore(dz + LANES, df)
    vstore(dz + slot_g * LANES, d_gate(s, z, slot_g, g, dc * i, True, plain))
    if peeps(s, plain):
        before = before + lstm_peephole_backward(s, dz, d_single, block, c_before)
    vstore(carry, before + bypass if zones_c(s, plain) else before)


cdef inline vec lstm_peephole_backward(const Sequence *s, const real *dz, real *d_single,
                                       Py_ssize_t block, vec c_before) noexcept nogil:
    """Gradient of c_{t-1} through what i and f see of it."""
    cdef vec di = vload(dz), df = vload(dz + LANES)
    cdef vec dc = single(s, s.w.peephole, block) * di
    add_to(d_single + s.w.peephole * LANES, di * c_before)
    if not coupled(s, False):
        dc = vfma(single(s, s.w.peephole + 1, block), df, dc)
        add_to(d_single + (s.w.peephole + 1) * LANES, df * c_before)
    return dc


cdef inline void lstm_backward(const Sequence *s, const real *z, real *dz, real *d_h,
                               real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                               Py_ssize_t entry, bint plain) noexcept nogil:
    cdef vec c = lstm_new_state(s, z, step, row, block, plain)
    cdef vec dc = lstm_output_backward(s, z, dz, lstm_seen(s, z, step, row, block, entry, c, plain),
                                       c, plain)
    lstm_input_backward(s, z, dz, d_single, step, row, block, c, dc, plain)


cdef inline vec lstm_seen(const Sequence *s, const real *z, Py_ssize_t step, Py_ssize_t row,
                          Py_ssize_t block, Py_ssize_t entry, vec shown,
                          bint plain) noexcept nogil:
    """The gradient of o tanh(c), which is h, or is projected to h."""
    if plain or s.w.w_2.data == NULL:
        return seen(s, step, row, block, plain)
    vstore(copied(s, s.second_copy, entry, block),
           vload(z + (2 if coupled(s, plain) else 3) * LANES) * activate(&s.w.act[4], shown))
    return vload(d_second(s, row, block))


cdef void lstm_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(lstm_forward, at, plain)


cdef void lstm_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(lstm_backward, at, plain)


cdef int add_lstm(const char *name, Py_ssize_t gates) except -1:
    cdef CellKernels *cell = new_cell(name, gates, gates, 2, lstm_forward_step, lstm_backward_step)
    cell.has_plain = gates == 4
    cell.normed, cell.normed_backward = lstm_normed, lstm_normed_backward
    return 0


add_lstm("lstm", 4)
add_lstm("lstm_coupled", 3)
