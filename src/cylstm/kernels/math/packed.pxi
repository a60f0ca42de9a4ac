# Packed weights, and the one description of the cell that they belong to.

@cython.final
@cython.auto_pickle(False)
cdef class Packed:
    """Weights of one direction of one layer, packed for one level.

    Parameters
    ----------
    table : capsule
        The level's kernels.
    cell : cylstm.cells.Cell
        What kind of cell it is.
    w_ih : ndarray of shape (1, G * H, I)
    w_hh : ndarray of shape (1, G * H, P / heads) or None
        None where there is no recurrent product.
    bias : ndarray of shape (1, 1, S * H)
        In slot order; see `cylstm.cells.Cell`.
    backward : bool
        Also pack the transposes that backward needs.
    w_hr : ndarray of shape (1, P, H) or None
        Projection of h.
    single : ndarray of shape (1, 1, N * H) or None
        Weights of single units, in the order of `place_singles`.
    """
    cdef Weights w
    cdef Level *level
    cdef object table
    cdef Arena arena
    cdef readonly bint backward

    def __init__(self, table, cell, w_ih, w_hh, bias, bint backward, w_hr=None, single=None):
        cdef Level *level = level_of(table)
        cdef Weights *w = &self.w
        cdef Py_ssize_t lanes = level.lanes
        cdef View ih, b, ones
        self.table, self.level, self.arena, self.backward = table, level, Arena(), backward
        self.describe(cell)
        w.projects = w_hr is not None
        w.hidden, w.inputs = w_ih.shape[1] // w.gates, w_ih.shape[2]
        w.outputs = w.hidden if w_hr is None else w_hr.shape[1]
        w.blocks = (w.hidden + lanes - 1) // lanes
        w.in_blocks = (w.inputs + lanes - 1) // lanes
        w.out_blocks = (w.outputs + lanes - 1) // lanes
        w.heads, w.depth = cell.heads, w.outputs
        if w.heads != 1:
            if w.heads < 1 or w.hidden % (w.heads * lanes) or w.projects or w.norm != NONE \
                    or w.h_products != 1:
                raise ValueError(f"heads: expected 1, or blocks of whole vectors, got {w.heads}")
            w.depth = w.outputs // w.heads
        self.look_at(&ih, w_ih, times(w.gates, w.hidden), w.inputs, "w_ih")
        self.make(&w.w_ih, w.blocks, w.inputs, w.gates)
        level.pack(ih.data, w.hidden, w.turn, &w.w_ih, 0)
        look(&b, bias, level.itemsize, 1, 1, times(w.summed, w.hidden), "bias")
        w.bias = self.pack_units(b.data, w.summed)
        if backward:
            self.make(&w.w_ih_t, w.in_blocks, times(w.blocks * w.gates, lanes), 1)
            level.pack_transposed(ih.data, w.hidden, w.inputs, w.gates, w.turn, &w.w_ih_t)
        self.pack_recurrent(w_hh, w_hr)
        if w.singles:
            look(&ones, single, level.itemsize, 1, 1, times(w.singles, w.hidden), "single")
            w.single = self.pack_units(ones.data, w.singles)

    cdef int describe(self, cell) except -1:
        """Set everything in `w` but sizes and weights."""
        cdef Weights *w = &self.w
        cdef Py_ssize_t slot
        w.cell = cell_of(self.level, cell.kind)
        w.reverse, w.states, w.gates = cell.reverse, cell.states, len(cell.x_slots)
        w.turn = cell.x_slots.index(0)
        w.h_slot, w.h_products = cell.h_slots[0], cell.products
        w.h_gates = 1 if cell.products > 1 else w.gates
        w.summed = max(*cell.x_slots, *cell.h_slots) + 1
        if not (w.gates == w.cell.gates and w.summed == w.cell.slots
                and w.states == w.cell.states
                and w.h_slot + max(1, w.h_products) * w.h_gates <= w.summed
                and (w.h_products in (0, 1) or (w.h_products == 2 and w.cell.finish != NULL))):
            raise ValueError(f"cell: expected what the kernels of {cell.kind} do, got {cell}")
        w.clip, w.cell_clip = cell.clip, cell.cell_clip
        w.zone, w.zone_c = cell.zone, cell.zone_c
        w.norm = {None: NONE, "haste": OF_PRODUCTS, "tflite": OF_GATES}[cell.norm]
        if not w.gates <= len(cell.activations) <= w.gates + 1 \
                or len(cell.usual) != len(cell.activations):
            raise ValueError(f"activations: expected one per slot, got {cell.activations}")
        # Cells with single-unit weights (norms have some) or a second product are not plain either.
        w.plain = (w.clip == 0 and w.cell_clip == 0 and w.zone == 0 and w.zone_c == 0
                   and w.cell.has_plain)
        w.kinks = w.clip != 0
        for slot in range(len(cell.activations)):
            name, alpha, beta = cell.activations[slot]
            kind = ACTIVATIONS[name]
            w.act[slot if slot < w.gates else 4] = Activation(kind, alpha, beta)
            w.plain = w.plain and name == cell.usual[slot]
            w.kinks = w.kinks or (slot < w.gates and kind not in (SIGMOID, TANH, RELU, AFFINE))
        self.place_singles(cell)
        w.plain = w.plain and w.singles == 0
        return 0

    cdef int place_singles(self, cell) except -1:
        """Set the offset of each single-unit weight; these lines are in the order of memory."""
        cdef Weights *w = &self.w
        w.singles = 0
        w.peephole = self.place(cell.peepholes, w.gates - 1)
        w.norm_x = self.place(w.norm != NONE, w.gates)
        w.norm_h = self.place(w.norm == OF_PRODUCTS, w.gates)
        w.norm_c = self.place(w.norm == OF_PRODUCTS and w.states > 1, 2)
        w.norm_bias = self.place(w.norm != NONE, w.summed)
        w.diagonal = self.place(cell.independent, 1)
        return 0

    cdef Py_ssize_t place(self, bint there, Py_ssize_t count) except -2:
        if not there:
            return -1
        self.w.singles += count
        return self.w.singles - count

    cdef int pack_recurrent(self, w_hh, w_hr) except -1:
        """Pack U, once for each product that forward makes with it, and a step's second product."""
        cdef Weights *w = &self.w
        cdef Level *level = self.level
        cdef Py_ssize_t lanes = level.lanes, k, size, gates
        cdef View hh, hr
        hr.data = NULL
        if w.h_products == 0:
            return 0
        self.look_at(&hh, w_hh, times(w.gates, w.hidden), w.depth, "w_hh")
        size = w.hidden * w.depth * level.itemsize
        self.make(&w.w_hh, w.h_products * w.blocks, w.depth, w.h_gates)
        for k in range(w.h_products):
            level.pack(<char *>hh.data + k * size, w.hidden, 0, &w.w_hh, k * w.blocks)
        if w.h_products > 1:
            hr.data = <char *>hh.data + w.h_products * size
        elif w_hr is not None:
            self.look_at(&hr, w_hr, w.outputs, w.hidden, "w_hr")
        if hr.data != NULL:
            self.make(&w.w_2, w.out_blocks, w.hidden, 1)
            level.pack(hr.data, w.outputs, 0, &w.w_2, 0)
        gates = w.h_products * w.h_gates
        if self.backward:
            self.make(&w.w_hh_t, (w.depth + lanes - 1) // lanes, times(w.blocks * gates, lanes), 1)
            level.pack_transposed(hh.data, w.hidden, w.depth, gates, 0, &w.w_hh_t)
        if self.backward and hr.data != NULL:
            self.make(&w.w_2_t, w.blocks, times(w.out_blocks, lanes), 1)
            level.pack_transposed(hr.data, w.outputs, w.hidden, 1, 0, &w.w_2_t)
        w.plain = w.plain and w.w_2.data == NULL
        return 0

    cdef void *pack_units(self, const void *w, Py_ssize_t gates) except NULL:
        """Numbers of single units, (blocks, gates, lanes): a matrix of one term."""
        cdef Matrix packed
        self.make(&packed, self.w.blocks, 1, gates)
        self.level.pack(w, self.w.hidden, 0, &packed, 0)
        return packed.data

    cdef int look_at(self, View *view, array, Py_ssize_t rows, Py_ssize_t columns,
                     str name) except -1:
        """Check a contiguous matrix."""
        look(view, array, self.level.itemsize, 1, rows, columns, name)
        if rows > 1 and view.inner != columns * self.level.itemsize:
            raise ValueError(f"{name}: expected a contiguous array")
        return 0

    cdef int make(self, Matrix *matrix, Py_ssize_t blocks, Py_ssize_t depth,
                  Py_ssize_t gates) except -1:
        """A matrix of zeros."""
        cdef Py_ssize_t vector = self.level.lanes * self.level.itemsize
        matrix.depth, matrix.gates, matrix.step = depth, gates, gates * vector
        matrix.data = <char *>self.arena.room(times(blocks, times(depth, gates)), vector, True)
        matrix.stride = depth * matrix.step
        return 0


cdef const CellKernels *cell_of(Level *level, str kind) except NULL:
    """The level's functions of a cell."""
    cdef bytes name = kind.encode()
    cdef Py_ssize_t i
    for i in range(level.cell_count):
        if strcmp(level.cells[i].name, name) == 0:
            return &level.cells[i]
    raise ValueError(f"kind: expected a cell that has kernels, got {kind!r}")


cdef Packed packed_of(list weights, Py_ssize_t d):
    """The weights of one of the 1 or 2 directions."""
    if weights is None or not 1 <= len(weights) <= 2:
        raise ValueError("weights: expected a list of 1 or 2 directions")
    cdef Packed packed = weights[d]
    if packed is None or packed.level == NULL:
        raise ValueError(f"weights: expected Packed ones, got {packed!r}")
    return packed


cdef inline bint alike(Weights *a, Weights *b) noexcept:
    """Whether two directions can share a call."""
    return (a.inputs == b.inputs and a.hidden == b.hidden and a.outputs == b.outputs
            and a.cell == b.cell and a.gates == b.gates and a.summed == b.summed
            and a.heads == b.heads and a.norm == b.norm and a.singles == b.singles
            and a.h_products == b.h_products
            and (a.w_2.data == NULL) == (b.w_2.data == NULL))
