# AUGRU (Zhou et al. 2019): a GRU, in its slots, that keeps (1 - a_t) z of h_{t-1} instead of z. The
# number a_t is given for each step of a row; its gradient is a sum over units, -(h_{t-1} - n) z.

cdef inline void augru_forward(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                               Py_ssize_t block, bint plain) noexcept nogil:
    gru_gates(s, slots, step, row, block, True, plain)


cdef inline void augru_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                                Py_ssize_t entry, bint plain) noexcept nogil:
    gru_gates_backward(s, slots, d_x, d_h, step, row, block, entry, True, plain)


cdef inline void augru_finish(const Sequence *s, real *slots, Py_ssize_t step, Py_ssize_t row,
                              Py_ssize_t block, bint plain) noexcept nogil:
    gru_output(s, slots, step, row, block, vload(slots + 2 * LANES), vload(slots), True, plain)


cdef inline void augru_finish_backward(const Sequence *s, const real *slots, real *d_x, real *d_h,
                                       real *d_single, Py_ssize_t step, Py_ssize_t row,
                                       Py_ssize_t block, Py_ssize_t entry,
                                       bint plain) noexcept nogil:
    vstore(<real *>s.d_2 + (entry * s.w.out_blocks + block) * LANES,
           gru_output_backward(s, slots, d_x, step, row, block, entry, True, plain))


cdef void augru_forward_step(const Blocks *at, bint plain) noexcept nogil:
    forward_by(augru_forward, at, plain)


cdef void augru_backward_step(const Blocks *at, bint plain) noexcept nogil:
    backward_by(augru_backward, at, plain)


cdef void augru_finish_step(const Blocks *at, bint plain) noexcept nogil:
    each_forward(augru_finish, at, False)


cdef void augru_finish_backward_step(const Blocks *at, bint plain) noexcept nogil:
    each_backward(augru_finish_backward, at, False)


cdef int add_augru() except -1:
    cdef CellKernels *after = new_cell("augru", 3, 4, 1, augru_forward_step, augru_backward_step)
    cdef CellKernels *before = new_cell("augru_reset_before", 3, 3, 1, augru_forward_step,
                                        gru_reset_backward_step)
    after.attends = before.attends = True
    before.finish, before.finish_backward = augru_finish_step, augru_finish_backward_step
    return 0


add_augru()
