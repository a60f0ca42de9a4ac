# One pass of one layer over a batch: where everything is, and the tape.

cdef inline Py_ssize_t odd_lines(Py_ssize_t count, Py_ssize_t itemsize) noexcept nogil:
    """Elements in an odd number of cache lines, so that equal columns use all cache sets."""
    return ((count * itemsize + 63) // 64 | 1) * 64 // itemsize


@cython.final
@cython.auto_pickle(False)
cdef class Call:
    """One pass of one layer over a batch. Kept, it is the tape of that pass."""
    cdef Sequence seq[2]
    cdef Py_ssize_t directions
    cdef Level *level
    cdef Py_ssize_t *row        # (rows) place of each sorted row in the caller's batch
    cdef Py_ssize_t *length     # (rows) its steps
    cdef Arena arena            # what the pointers in seq point into, as do weights and x
    cdef list weights
    cdef readonly object x

    def __init__(self, list weights, cnp.ndarray x not None, cnp.ndarray y not None, lengths,
                 bint taped):
        cdef Packed packed = packed_of(weights, 0)
        cdef Py_ssize_t itemsize = packed.level.itemsize, d, width, slots
        cdef Sequence *s
        cdef View x_view, y_view
        self.weights, self.directions, self.level = weights, len(weights), packed.level
        self.x, self.arena = x, Arena()
        if cnp.PyArray_NDIM(x) != 3:
            raise ValueError(f"x: expected shape (T, B, I), got {x.ndim} dimensions")
        cdef Py_ssize_t steps = cnp.PyArray_DIM(x, 0), rows = cnp.PyArray_DIM(x, 1)
        look(&x_view, x, itemsize, steps, rows, packed.w.inputs, "x")
        look(&y_view, y, itemsize, steps, rows, self.directions * packed.w.hidden, "y", True)
        for d in range(self.directions):
            s = &self.seq[d]
            packed = packed_of(weights, d)
            s.w = packed.w
            s.steps, s.rows = steps, rows
            s.x, s.y = x_view.data, y_view.data + d * s.w.hidden * itemsize
            if packed.level != self.level or s.w.inputs != self.seq[0].w.inputs \
                    or s.w.hidden != self.seq[0].w.hidden or (taped and not packed.backward):
                raise ValueError("weights: expected directions packed alike, for the tape if any")
        self.order_rows(lengths)
        for d in range(self.directions):
            s = &self.seq[d]
            s.x_row, s.x_step = self.place(d, &x_view), x_view.outer // itemsize
            s.y_row, s.y_step = self.place(d, &y_view), y_view.outer // itemsize
            if d:
                s.x_step, s.y_step = -s.x_step, -s.y_step
            width = s.w.blocks * self.level.lanes * itemsize
            s.ring = -1 if taped else 1
            slots = times((steps if taped else 1) + 1, rows)
            s.h = self.arena.room(slots, width)
            s.c = self.arena.room(slots, width) if s.w.cell == LSTM else NULL
            s.tape = self.arena.room(times(s.first[steps], s.w.slots), width) if taped else NULL

    cdef int order_rows(self, lengths) except -1:
        """Sort rows by length, longest first and stable; count those running at each step."""
        cdef Py_ssize_t steps = self.seq[0].steps, rows = self.seq[0].rows, b, t, n, at
        cdef Py_ssize_t tables = 3 * (steps + 2) + 2 * rows
        cdef Py_ssize_t *active = <Py_ssize_t *>self.arena.room(tables, sizeof(Py_ssize_t), True)
        cdef Py_ssize_t *first = active + steps + 2
        cdef Py_ssize_t *start = first + steps + 2
        cdef Py_ssize_t *row = start + steps + 2
        cdef const cnp.int64_t[::1] given
        self.row, self.length = row, row + rows
        if lengths is None:
            for t in range(steps):
                active[t] = rows
            for b in range(rows):
                row[b], self.length[b] = b, steps
        else:
            given = lengths
            if given.shape[0] != rows:
                raise ValueError(f"lengths: expected {rows} values, got {given.shape[0]}")
            for b in range(rows):
                n = given[b]
                if not 0 <= n <= steps:
                    raise ValueError(f"lengths: expected values in 0..{steps}, got {n}")
                start[n] += 1       # rows of exactly n steps
            n = 0
            for t in range(steps, -1, -1):
                active[t] = n       # rows of more than t steps
                n += start[t]
                start[t] = active[t]
            for b in range(rows):
                at = start[given[b]]
                start[given[b]] += 1
                row[at], self.length[at] = b, given[b]
        for t in range(steps):
            first[t + 1] = first[t] + active[t]
        for b in range(self.directions):
            self.seq[b].active, self.seq[b].first = active, first
        return 0

    cdef Py_ssize_t *place(self, Py_ssize_t d, View *view) except NULL:
        """Elements from the start of a (T, B, ...) array to each sorted row's step 0."""
        cdef Py_ssize_t b, rows = self.seq[0].rows
        cdef Py_ssize_t *at = <Py_ssize_t *>self.arena.room(rows, sizeof(Py_ssize_t))
        for b in range(rows):
            at[b] = self.row[b] * view.inner
            if d:
                at[b] += max(0, self.length[b] - 1) * view.outer
            at[b] //= self.level.itemsize
        return at

    cdef int copy_rows_in(self, Py_ssize_t d, void *base, array, str name) except -1:
        """Sorted and padded rows from a (D, B, H) array; None is zeros."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t itemsize = self.level.itemsize, b
        cdef Py_ssize_t width = s.w.blocks * self.level.lanes * itemsize
        cdef View view
        memset(base, 0, s.rows * width)
        if array is not None:
            look(&view, array, itemsize, self.directions, s.rows, s.w.hidden, name)
            for b in range(s.rows):
                memcpy(<char *>base + b * width,
                       view.data + d * view.outer + self.row[b] * view.inner,
                       s.w.hidden * itemsize)
        return 0

    cdef int copy_rows_out(self, Py_ssize_t d, void *base, array, str name,
                           Py_ssize_t ring) except -1:
        """The reverse, from slot `length & ring` of each row."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t itemsize = self.level.itemsize, b
        cdef Py_ssize_t width = s.w.blocks * self.level.lanes * itemsize
        cdef View view
        look(&view, array, itemsize, self.directions, s.rows, s.w.hidden, name, True)
        for b in range(s.rows):
            memcpy(view.data + d * view.outer + self.row[b] * view.inner,
                   <char *>base + ((self.length[b] & ring) * s.rows + b) * width,
                   s.w.hidden * itemsize)
        return 0

    cdef Call again(self, dy, list dx):
        """A copy for one backward pass, with gradients where the outputs were."""
        cdef Call call = Call.__new__(Call)
        cdef Arena arena = Arena()
        cdef Py_ssize_t itemsize = self.level.itemsize, d, entries, width, vector
        cdef Sequence *s
        cdef View view
        call.arena, call.weights, call.directions, call.level = arena, self.weights, \
            self.directions, self.level
        call.row, call.length, call.x = self.row, self.length, self.x
        vector = self.level.lanes * itemsize
        for d in range(self.directions):
            call.seq[d] = self.seq[d]
            s = &call.seq[d]
            width = s.w.blocks * vector
            entries = max(CHUNK_ENTRIES, s.rows)
            s.d_x = arena.room(times(entries, s.w.gates), width)
            s.d_h = arena.room(times(entries, s.w.gates), width) if s.w.cell == GRU else s.d_x
            s.x_stride = odd_lines(s.w.inputs, itemsize)
            s.h_stride = odd_lines(s.w.hidden, itemsize)
            s.x_copy = arena.room(times(entries, s.x_stride), itemsize)
            s.h_copy = arena.room(times(entries, s.h_stride), itemsize)
            s.dx_copy = arena.room(times(entries, s.w.in_blocks), vector)
            s.dh = arena.room(s.rows, width)
            s.dc = arena.room(s.rows, width) if s.w.cell == LSTM else NULL
            s.dw_ih = arena.room(times(s.w.gates, s.w.inputs), width, True)
            s.dw_hh = arena.room(times(s.w.gates, s.w.hidden), width, True)
            s.db_ih = arena.room(s.w.gates, width, True)
            s.db_hh = arena.room(s.w.gates, width, True) if s.w.cell == GRU else NULL
            look(&view, dx[d], itemsize, s.steps, s.rows, s.w.inputs, "dx", True)
            s.dx, s.dx_row = view.data, call.place(d, &view)
            s.dx_step = (-view.outer if d else view.outer) // itemsize
            s.y = NULL
            if dy is not None:
                look(&view, dy, itemsize, s.steps, s.rows, self.directions * s.w.hidden, "dy")
                s.y, s.y_row = view.data + d * s.w.hidden * itemsize, call.place(d, &view)
                s.y_step = (-view.outer if d else view.outer) // itemsize
        return call

    cdef int add_gradients(self, Py_ssize_t d, tuple gradients) except -1:
        """Add the packed gradients of one direction to (dw_ih, dw_hh, db_ih, db_hh)."""
        cdef Sequence *s = &self.seq[d]
        cdef Weights *w = &s.w
        cdef Level *level = self.level
        cdef Py_ssize_t size = w.gates * w.hidden, turn = 2 if w.cell == GRU else 0
        cdef View ih, hh, b_ih, b_hh
        dw_ih, dw_hh, db_ih, db_hh = gradients
        look(&ih, dw_ih, level.itemsize, 1, size, w.inputs, "dw_ih", True)
        look(&hh, dw_hh, level.itemsize, 1, size, w.hidden, "dw_hh", True)
        level.unpack_add(s.dw_ih, w.hidden, w.inputs, w.gates, turn, ih.data)
        level.unpack_add(s.dw_hh, w.hidden, w.hidden, w.gates, 0, hh.data)
        if db_ih is not None:
            look(&b_ih, db_ih, level.itemsize, 1, 1, size, "db_ih", True)
            look(&b_hh, db_hh, level.itemsize, 1, 1, size, "db_hh", True)
            level.unpack_add(s.db_ih, w.hidden, 1, w.gates, turn, b_ih.data)
            level.unpack_add(s.db_ih if s.db_hh == NULL else s.db_hh, w.hidden, 1, w.gates, 0,
                             b_hh.data)
        return 0

    def recorded(self, Py_ssize_t d):
        """What the tape of direction `d` holds, for inspection.

        Returns
        -------
        tuple of ndarray
            Activated slots (entries, S, H), c after each entry (entries, H) or None, h likewise,
            time and row of each entry in the caller's batch.
        """
        if not 0 <= d < self.directions or self.seq[d].tape == NULL:
            raise ValueError(f"d: expected a direction with a tape, got {d}")
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t itemsize = self.level.itemsize, lanes = self.level.lanes, e = 0, t, b, k
        cdef Py_ssize_t entries = s.first[s.steps], vector = lanes * itemsize
        dtype = cnp.NPY_FLOAT32 if itemsize == 4 else cnp.NPY_FLOAT64
        cdef cnp.npy_intp shape[4]
        shape[0], shape[1], shape[2], shape[3] = entries, s.w.blocks, s.w.slots, lanes
        slots = cnp.PyArray_SimpleNew(4, shape, dtype)
        memcpy(cnp.PyArray_DATA(slots), s.tape, entries * s.w.blocks * s.w.slots * vector)
        shape[1] = s.w.blocks * lanes
        h = cnp.PyArray_SimpleNew(2, shape, dtype)
        c = cnp.PyArray_SimpleNew(2, shape, dtype) if s.c != NULL else None
        shape[1] = 2
        where = cnp.PyArray_SimpleNew(2, shape, cnp.NPY_INTP)
        cdef Py_ssize_t *at = <Py_ssize_t *>cnp.PyArray_DATA(where)
        cdef Py_ssize_t width = s.w.blocks * vector
        for t in range(s.steps):
            for b in range(s.active[t]):
                k = ((t + 1) * s.rows + b) * width
                memcpy(cnp.PyArray_BYTES(h) + e * width, <char *>s.h + k, width)
                if s.c != NULL:
                    memcpy(cnp.PyArray_BYTES(c) + e * width, <char *>s.c + k, width)
                at[2 * e] = self.length[b] - 1 - t if d else t
                at[2 * e + 1] = self.row[b]
                e += 1
        n = s.w.hidden
        slots = slots.transpose(0, 2, 1, 3).reshape(entries, s.w.slots, s.w.blocks * lanes)
        slots = slots[:, :, :n]
        return slots, None if c is None else c[:, :n], h[:, :n], where[:, 0], where[:, 1]

    cdef Py_ssize_t work(self):
        """Multiply-adds of one forward pass, saturating."""
        cdef Weights *w = &self.seq[0].w
        cdef double n = (<double>self.directions * self.seq[0].first[self.seq[0].steps]
                         * w.gates * w.hidden * (w.inputs + w.hidden))
        return <Py_ssize_t>min(n, 1e18)
