# GRU (Cho et al. 2014) with the reset gate after the product (cuDNN, PyTorch), slots n, r, z,
# u = U_n h + b_hn:
#   n = tanh(W_n x + b_in + r u),  h_t = (1 - z) n + z h_{t-1}
# Reset before the product, slots n, r, z: n = tanh(W_n x + b + U_n (r h)), the second product.

cdef inline bint resets_before(const Sequence *s, bint plain) noexcept nogil:
    return not plain and s.w.h_products == 2


cdef inline vec kept(const Sequence *s, Py_ssize_t step, Py_ssize_t row, vec z,
                     bint attends) noexcept nogil:
    """How much of h_{t-1} is kept: z, or (1 - a_t) z with attention; a constant says which."""
    return z * (vset(1) - attention(s, step, row)) if attends else z


cdef inline void gru_output(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                            Py_ssize_t block, vec z, vec a, bint attends,
                            bint plain) noexcept nogil:
    cdef vec n = gate(s, slots, 0, a, True, plain)
    show(s, step, row, block,
         vfma(kept(s, step, row, z, attends), vload(state(s, step, row, block)) - n, n), plain)
    if s.tape != NULL:
        vstore(slots, n)


cdef inline void gru_gates(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                           Py_ssize_t block, bint attends, bint plain) noexcept nogil:
    cdef vec r = gate(s, slots, 1, vload(slots + LANES), False, plain)
    cdef vec z = gate(s, slots, 2, vload(slots + 2 * LANES), False, plain)
    if s.tape != NULL or resets_before(s, plain):
        vstore(slots + LANES, r)
        vstore(slots + 2 * LANES, z)
    if resets_before(s, plain):
        vstore(second(s, row, block), r * fed(s, step, row, block))
    else:
        gru_output(s, slots, step, row, block, z,
                   vfma(r, vload(slots + 3 * LANES), vload(slots)), attends, plain)


cdef inline void gru_forward(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block, bint plain) noexcept nogil:
    gru_gates(s, slots, step, row, block, False, plain)


cdef inline vec gru_output_backward(const Sequence *s, const real *slots, real *d_x,
                                    Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                    Py_ssize_t entry, bint attends, bint plain) noexcept nogil:
    """Gradients of z's and, returned, of n's pre-activation."""
    cdef vec n = vload(slots)
    cdef vec z = vload(slots + 2 * LANES), keep = kept(s, step, row, z, attends)
    cdef vec dh = seen(s, step, row, block, plain)
    cdef vec dn = d_gate(s, slots, 0, n, dh * (vset(1) - keep), True, plain)
    cdef vec dz = dh * (vload(state(s, step, row, block)) - n)
    cdef real *carry = carried_h(s, row, block)
    vstore(d_x, dn)
    if attends:
        vstore(<real *>s.d_scaled + (entry * s.w.blocks + block) * LANES, vset(0) - dz * z)
    vstore(d_x + 2 * LANES, d_gate(s, slots, 2, z, kept(s, step, row, dz, attends), False, plain))
    vstore(carry, dh * keep if plain else vload(carry) + dh * keep)
    return dn


cdef inline void gru_gates_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                    Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                    Py_ssize_t entry, bint attends, bint plain) noexcept nogil:
    cdef vec dn = gru_output_backward(s, slots, d_x, step, row, block, entry, attends, plain)
    cdef vec r = vload(slots + LANES)
    cdef vec dr = d_gate(s, slots, 1, r, dn * vload(slots + 3 * LANES), False, plain)
    vstore(d_x + LANES, dr)
    vstore(d_h, dr)
    vstore(d_h + LANES, vload(d_x + 2 * LANES))
    vstore(d_h + 2 * LANES, dn * r)


cdef inline void gru_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                              real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                              Py_ssize_t entry, bint plain) noexcept nogil:
    gru_gates_backward(s, slots, d_x, d_h, step, row, block, entry, False, plain)


cdef inline void gru_reset_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                    real *d_single, Py_ssize_t step, Py_ssize_t row,
                                    Py_ssize_t block, Py_ssize_t entry,
                                    bint plain) noexcept nogil:
    """Reset before the product: gradients of r and h, from the gradient of r h."""
    cdef vec r = vload(slots + LANES), h = fed(s, step, row, block)
    cdef vec d = vload(d_second(s, row, block))
    cdef vec dr = d_gate(s, slots, 1, r, d * h, False, plain)
    cdef real *carry = carried_h(s, row, block)
    vstore(copied(s, s.second_copy, entry, block), r * h)
    vstore(d_x + LANES, dr)
    vstore(d_h, dr)
    vstore(d_h + LANES, vload(d_x + 2 * LANES))
    vstore(carry, vload(carry) + masked(s, row, block, d * r))


cdef inline void gru_finish(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                            Py_ssize_t block, bint plain) noexcept nogil:
    """Reset before the product: slot n has its product."""
    gru_output(s, slots, step, row, block, vload(slots + 2 * LANES), vload(slots), False,
               plain)


cdef inline void gru_finish_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                     real *d_single, Py_ssize_t step, Py_ssize_t row,
                                     Py_ssize_t block, Py_ssize_t entry,
                                     bint plain) noexcept nogil:
    vstore(<real *>s.d_2 + (entry * s.w.out_blocks + block) * LANES,
           gru_output_backward(s, slots, d_x, step, row, block, entry, False, plain))


cdef void gru_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(gru_forward, at, plain)


cdef void gru_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(gru_backward, at, plain)


cdef void gru_reset_backward_step(const Blocks *at, bint plain) noexcept nogil:
    each_backward(gru_reset_backward, at, False)


cdef void gru_finish_step(const Blocks *at, bint plain) noexcept nogil:
    each_forward(gru_finish, at, False)


cdef void gru_finish_backward_step(const Blocks *at, bint plain) noexcept nogil:
    each_backward(gru_finish_backward, at, False)


cdef int add_gru_reset_before(const char *name) except -1:
    cdef CellKernels *cell = new_cell(name, 3, 3, 1, gru_forward_step, gru_reset_backward_step)
    cell.finish, cell.finish_backward = gru_finish_step, gru_finish_backward_step
    return 0


new_cell("gru", 3, 4, 1, gru_forward_step, gru_backward_step)
add_gru_reset_before("gru_reset_before")
