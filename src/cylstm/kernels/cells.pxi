# The recurrent cells: one step of one block of units, forward next to backward.
#
# Forward: `z` holds the pre-activations of a row; the state before `step` gives the state after.
# With a tape the activated gates replace the pre-activations. Backward is written in terms of the
# activated gates: d_sigmoid = y (1 - y), d_tanh = 1 - y^2. A d-prefix is a gradient; `dh` and `dc`
# enter as gradients of the state after the step and leave as gradients of the state before it,
# except for what the recurrent product adds to dh.
#
# `plain` is a constant wherever these are inlined: what only a variant does costs others nothing.

cdef inline vec d_sigmoid(vec y, vec dy) noexcept nogil:
    return dy * (y * (vset(1) - y))


cdef inline vec d_tanh(vec y, vec dy) noexcept nogil:
    return dy * (vset(1) - y * y)


cdef inline vec gate(const Sequence *s, real *z, Py_ssize_t slot, vec a, bint is_tanh,
                     bint plain) noexcept nogil:
    """Apply a gate's activation; textbook cells know only tanh and the sigmoid."""
    if plain:
        return vtanh(a) if is_tanh else vsigmoid(a)
    if s.w.kept:
        vstore(z + (s.w.kept + slot) * LANES, a)
    if s.w.clip > 0:
        a = vclamp(a, vset(-s.w.clip), vset(s.w.clip))
    return activate(&s.w.act[slot], a)


cdef inline vec d_gate(const Sequence *s, const real *z, Py_ssize_t slot, vec y, vec dy,
                       bint is_tanh, bint plain) noexcept nogil:
    """The gradient of the pre-activation."""
    cdef vec a, d
    if plain:
        return d_tanh(y, dy) if is_tanh else d_sigmoid(y, dy)
    a = vload(z + (s.w.kept + slot) * LANES) if s.w.kept else y
    d = d_activate(&s.w.act[slot], a, y, dy)
    if s.w.clip > 0:
        d = vwithin(a, s.w.clip, d)
    if s.clip_step > 0:
        d = vclamp(d, vset(-s.clip_step), vset(s.clip_step))
    return d


# LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000), slots i, f, g, o:
#   c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
# Coupled, slots i, g, o: f = 1 - i. Peepholes (Gers and Schmidhuber 2000): i and f also see
# c_{t-1}, o sees c_t; where every gate is normalised by itself, norms.pxi adds them before.

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
    return vset(1) - i if not plain and s.w.coupled else vload(z + LANES)


cdef inline vec lstm_input(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                           Py_ssize_t block, bint plain) noexcept nogil:
    """Forget and write: the new cell state."""
    cdef Py_ssize_t slot_g = 1 if not plain and s.w.coupled else 2
    cdef vec c_before = vload(cell_state(s, step, row, block))
    cdef vec a_i = vload(z), a_f = vload(z + LANES), i, f, g, c
    if peeps(s, plain):
        a_i = vfma(single(s, s.w.peephole, block), c_before, a_i)
        a_f = vfma(single(s, s.w.peephole + 1, block), c_before, a_f)
    i = gate(s, z, 0, a_i, False, plain)
    if not plain and s.w.coupled:
        f = vset(1) - i
    else:
        f = gate(s, z, 1, a_f, False, plain)
    g = gate(s, z, slot_g, vload(z + slot_g * LANES), True, plain)
    c = lstm_state(s, z, i, f, g, c_before, plain)
    vstore(cell_state(s, step + 1, row, block),
           vmix(zone_of_c(s, step, row, block), c, c_before) if zones_c(s, plain) else c)
    if s.tape != NULL:
        vstore(z, i)
        if plain or not s.w.coupled:
            vstore(z + LANES, f)
        vstore(z + slot_g * LANES, g)
    return c


cdef inline void lstm_output(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block, vec c, vec shown, bint plain) noexcept nogil:
    """Emit h from the new cell state, or from `shown`: that state after layer normalisation."""
    cdef Py_ssize_t slot = 2 if not plain and s.w.coupled else 3
    cdef vec a = vload(z + slot * LANES), o, h
    if peeps(s, plain):
        a = vfma(single(s, s.w.peephole + slot - 1, block), c, a)
    o = gate(s, z, slot, a, False, plain)
    h = o * (vtanh(shown) if plain else activate(&s.w.act[4], shown))
    if s.tape != NULL:
        vstore(z + slot * LANES, o)
    if not plain and s.w.w_2 != NULL:
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
        return vload(cell_state(s, step + 1, row, block))
    cdef vec i = vload(z)
    return lstm_state(s, z, i, lstm_forget(s, z, i, plain),
                      vload(z + (1 if s.w.coupled else 2) * LANES),
                      vload(cell_state(s, step, row, block)), plain)


cdef inline vec lstm_output_backward(const Sequence *s, const real *z, real *dz, vec dh, vec shown,
                                     bint plain) noexcept nogil:
    """Gradient of o's pre-activation into dz; returns that of `shown`."""
    cdef Py_ssize_t slot = 2 if not plain and s.w.coupled else 3
    cdef vec o = vload(z + slot * LANES)
    cdef vec u = vtanh(shown) if plain else activate(&s.w.act[4], shown)
    vstore(dz + slot * LANES, d_gate(s, z, slot, o, dh * u, False, plain))
    return d_tanh(u, dh * o) if plain else d_activate(&s.w.act[4], shown, u, dh * o)


cdef inline void lstm_input_backward(const Sequence *s, const real *z, real *dz, real *d_single,
                                     Py_ssize_t step, Py_ssize_t row, Py_ssize_t block, vec c,
                                     vec dc, bint plain) noexcept nogil:
    """From dc, the gradient of the new state through h, compute those of i, f, g and c_{t-1}."""
    cdef Py_ssize_t slot_g = 1 if not plain and s.w.coupled else 2
    cdef vec i = vload(z), f = lstm_forget(s, z, i, plain), g = vload(z + slot_g * LANES)
    cdef vec c_before = vload(cell_state(s, step, row, block))
    cdef real *carry = carried_c(s, row, block)
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
    if not plain and s.w.coupled:
        di = di - df
    di = d_gate(s, z, 0, i, di, False, plain)
    vstore(dz, di)
    if plain or not s.w.coupled:
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
    if not s.w.coupled:
        dc = vfma(single(s, s.w.peephole + 1, block), df, dc)
        add_to(d_single + (s.w.peephole + 1) * LANES, df * c_before)
    return dc


cdef inline void lstm_backward(const Sequence *s, const real *z, real *dz, real *d_single,
                               Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                               Py_ssize_t entry, bint plain) noexcept nogil:
    cdef vec c = lstm_new_state(s, z, step, row, block, plain)
    cdef vec dc = lstm_output_backward(s, z, dz, lstm_seen(s, z, step, row, block, entry, c, plain),
                                       c, plain)
    lstm_input_backward(s, z, dz, d_single, step, row, block, c, dc, plain)


cdef inline vec lstm_seen(const Sequence *s, const real *z, Py_ssize_t step, Py_ssize_t row,
                          Py_ssize_t block, Py_ssize_t entry, vec shown,
                          bint plain) noexcept nogil:
    """The gradient of o tanh(c), which is h, or is projected to h."""
    if plain or s.w.w_2 == NULL:
        return seen(s, step, row, block, plain)
    vstore(copied(s, s.second_copy, entry, block),
           vload(z + (2 if s.w.coupled else 3) * LANES) * activate(&s.w.act[4], shown))
    return vload(d_second(s, row, block))


# GRU (Cho et al. 2014) with the reset gate after the product (cuDNN, PyTorch), slots n, r, z,
# u = U_n h + b_hn:
#   n = tanh(W_n x + b_in + r u),  h_t = (1 - z) n + z h_{t-1}
# Reset before the product, slots n, r, z: n = tanh(W_n x + b + U_n (r h)), the second product.

cdef inline void gru_output(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                            Py_ssize_t block, vec z, vec a, bint plain) noexcept nogil:
    cdef vec n = gate(s, slots, 0, a, True, plain)
    show(s, step, row, block, vfma(z, vload(state(s, step, row, block)) - n, n), plain)
    if s.tape != NULL:
        vstore(slots, n)


cdef inline void gru_forward(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block, bint plain) noexcept nogil:
    cdef vec r = gate(s, slots, 1, vload(slots + LANES), False, plain)
    cdef vec z = gate(s, slots, 2, vload(slots + 2 * LANES), False, plain)
    if s.tape != NULL or (not plain and s.w.reset_before):
        vstore(slots + LANES, r)
        vstore(slots + 2 * LANES, z)
    if not plain and s.w.reset_before:
        vstore(second(s, row, block), r * fed(s, step, row, block))
    else:
        gru_output(s, slots, step, row, block, z,
                   vfma(r, vload(slots + 3 * LANES), vload(slots)), plain)


cdef inline vec gru_output_backward(const Sequence *s, const real *slots, real *d_x,
                                    Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                    bint plain) noexcept nogil:
    """Gradients of z's and, returned, of n's pre-activation."""
    cdef vec n = vload(slots)
    cdef vec z = vload(slots + 2 * LANES)
    cdef vec dh = seen(s, step, row, block, plain)
    cdef vec dn = d_gate(s, slots, 0, n, dh * (vset(1) - z), True, plain)
    cdef real *carry = carried_h(s, row, block)
    vstore(d_x, dn)
    vstore(d_x + 2 * LANES, d_gate(s, slots, 2, z, dh * (vload(state(s, step, row, block)) - n),
                                   False, plain))
    vstore(carry, dh * z if plain else vload(carry) + dh * z)
    return dn


cdef inline void gru_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                              Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                              bint plain) noexcept nogil:
    cdef vec dn = gru_output_backward(s, slots, d_x, step, row, block, plain)
    cdef vec r = vload(slots + LANES)
    cdef vec dr = d_gate(s, slots, 1, r, dn * vload(slots + 3 * LANES), False, plain)
    vstore(d_x + LANES, dr)
    vstore(d_h, dr)
    vstore(d_h + LANES, vload(d_x + 2 * LANES))
    vstore(d_h + 2 * LANES, dn * r)


cdef inline void gru_reset_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                    Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                    Py_ssize_t entry) noexcept nogil:
    """Reset before the product: gradients of r and h, from the gradient of r h."""
    cdef vec r = vload(slots + LANES), h = fed(s, step, row, block)
    cdef vec d = vload(d_second(s, row, block))
    cdef vec dr = d_gate(s, slots, 1, r, d * h, False, False)
    cdef real *carry = carried_h(s, row, block)
    vstore(copied(s, s.second_copy, entry, block), r * h)
    vstore(d_x + LANES, dr)
    vstore(d_h, dr)
    vstore(d_h + LANES, vload(d_x + 2 * LANES))
    vstore(carry, vload(carry) + masked(s, row, block, d * r))


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


cdef inline void rnn_backward(const Sequence *s, const real *z, real *dz, real *d_single,
                              Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                              bint plain) noexcept nogil:
    cdef vec da = d_gate(s, z, 0, vload(z), seen(s, step, row, block, plain), True, plain)
    cdef real *carry
    vstore(dz, da)
    if not plain and s.w.diagonal >= 0:
        carry = carried_h(s, row, block)
        add_to(d_single + s.w.diagonal * LANES, da * fed(s, step, row, block))
        vstore(carry, vload(carry)
               + masked(s, row, block, da * single(s, s.w.diagonal, block)))


cdef void clear_padding(const Sequence *s, real *d_gates, Py_ssize_t gates,
                        Py_ssize_t block) noexcept nogil:
    """Make lanes beyond the last unit zero: infinite inputs times zero weights made them NaN."""
    cdef Py_ssize_t slot
    for slot in range(gates):
        vstore(d_gates + slot * LANES,
               vload_part(d_gates + slot * LANES, s.w.hidden - block * LANES))


cdef inline void forward_block(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                               Py_ssize_t block, bint plain) noexcept nogil:
    if s.w.cell == LSTM:
        lstm_forward(s, z, step, row, block, plain)
    elif s.w.cell == GRU:
        gru_forward(s, z, step, row, block, plain)
    else:
        rnn_forward(s, z, step, row, block, plain)


cdef inline void backward_block(const Sequence *s, const real *z, real *d_x, real *d_h,
                                real *d_single, Py_ssize_t step, Py_ssize_t row,
                                Py_ssize_t block, Py_ssize_t entry, bint plain) noexcept nogil:
    if s.w.cell == LSTM:
        lstm_backward(s, z, d_x, d_single, step, row, block, entry, plain)
    elif s.w.cell == RNN:
        rnn_backward(s, z, d_x, d_single, step, row, block, plain)
    elif plain or not s.w.reset_before:
        gru_backward(s, z, d_x, d_h, step, row, block, plain)
    else:
        gru_reset_backward(s, z, d_x, d_h, step, row, block, entry)
