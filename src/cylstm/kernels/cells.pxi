# The recurrent cells: one step of one block of units, forward next to backward, a file for each.
#
# Forward: `z` holds the pre-activations of a row; the state before `step` gives the state after.
# With a tape the activated gates replace the pre-activations. Backward is written in terms of the
# activated gates: d_sigmoid = y (1 - y), d_tanh = 1 - y^2. A d-prefix is a gradient; those of
# states enter as of the state after the step and leave as of the state before it, except for what
# the recurrent product adds to that of h.
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


cdef inline vec linear(const Sequence *s, real *z, Py_ssize_t slot, vec a,
                       bint plain) noexcept nogil:
    """A gate without activation."""
    if plain:
        return a
    if s.w.kept:
        vstore(z + (s.w.kept + slot) * LANES, a)
    return vclamp(a, vset(-s.w.clip), vset(s.w.clip)) if s.w.clip > 0 else a


cdef inline vec d_linear(const Sequence *s, const real *z, Py_ssize_t slot, vec d,
                         bint plain) noexcept nogil:
    if plain:
        return d
    if s.w.clip > 0:
        d = vwithin(vload(z + (s.w.kept + slot) * LANES), s.w.clip, d)
    return vclamp(d, vset(-s.clip_step), vset(s.clip_step)) if s.clip_step > 0 else d


ctypedef void (*ForwardBlock)(const Sequence *s, real *z, Py_ssize_t step, Py_ssize_t row,
                              Py_ssize_t block, bint plain) noexcept nogil
ctypedef void (*BackwardBlock)(const Sequence *s, const real *z, real *d_x, real *d_h,
                               real *d_single, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                               Py_ssize_t entry, bint plain) noexcept nogil


cdef inline void each_forward(ForwardBlock f, const Blocks *at, bint plain) noexcept nogil:
    """Apply `f`, a constant wherever this is inlined as is `plain`, to every block."""
    cdef const Sequence *s = at.s
    cdef Py_ssize_t row, block
    for row in range(at.row0, at.row1):
        for block in range(at.block0, at.block1):
            f(s, <real *>at.p.out[row - at.p.row0] + block * s.w.slots * LANES, at.step, row,
              block, plain)


cdef inline void each_backward(BackwardBlock f, const Blocks *at, bint plain) noexcept nogil:
    cdef const Sequence *s = at.s
    cdef Py_ssize_t row, block, entry, i
    for row in range(at.row0, at.row1):
        entry = entry_of(s, at.p, at.step, row)
        for block in range(at.block0, at.block1):
            i = entry * s.w.blocks + block
            f(s, gates_at(s, at.p, at.step, row) + block * s.w.slots * LANES,
              <real *>s.d_x + i * s.w.gates * LANES, <real *>s.d_h + i * s.d_h_gates * LANES,
              <real *>s.d_singles + (row * s.w.blocks + block) * s.w.singles * LANES,
              at.step, row, block, entry, plain)


cdef inline void forward_by(ForwardBlock f, const Blocks *at, bint plain) noexcept nogil:
    """The same, where `plain` is not known."""
    if plain:
        each_forward(f, at, True)
    else:
        each_forward(f, at, False)


cdef inline void backward_by(BackwardBlock f, const Blocks *at, bint plain) noexcept nogil:
    if plain:
        each_backward(f, at, True)
    else:
        each_backward(f, at, False)


cdef enum:
    MOST_CELLS = 16

cdef CellKernels cells[MOST_CELLS]
cdef Py_ssize_t cell_count = 0


cdef CellKernels *new_cell(const char *name, Py_ssize_t gates, Py_ssize_t slots, Py_ssize_t states,
                           CellStep forward, CellStep backward):
    """Add a cell to the table."""
    global cell_count
    cdef CellKernels *cell = &cells[cell_count]
    cell_count += 1
    cell.name, cell.gates, cell.slots, cell.states = name, gates, slots, states
    cell.forward, cell.backward, cell.has_plain = forward, backward, True
    return cell


include "cells/rnn.pxi"
include "cells/lstm.pxi"
include "cells/gru.pxi"
include "cells/augru.pxi"
include "cells/minimal.pxi"
include "cells/slstm.pxi"
