# One pass of one layer over a batch: where everything is, and the tape.

cdef inline Py_ssize_t chunk_of(Py_ssize_t rows) noexcept nogil:
    """Steps of a chunk of backward. Chunks start at multiples of it: sums depend on them."""
    return max(1, CHUNK_ENTRIES // max(1, rows))


cdef inline Py_ssize_t chunk_entries(Py_ssize_t rows) noexcept nogil:
    """Most (step, row) pairs of a chunk of backward."""
    return CHUNK_ROWS if rows > CHUNK_ENTRIES else CHUNK_ENTRIES


cdef inline Py_ssize_t width_of(const Weights *w, Py_ssize_t k) noexcept nogil:
    """Elements of a row of state `k`."""
    return w.hidden if k else w.outputs


cdef inline Py_ssize_t blocks_of(const Sequence *s, Py_ssize_t k) noexcept nogil:
    return s.w.blocks if k else s.w.out_blocks


PICKS = {"all": ALL, "every": EVERY, "last": LAST, "mean": MEAN, "max": MAX, "final": FINAL}


@cython.final
@cython.auto_pickle(False)
cdef class Call:
    """One pass of one layer over a batch. Kept, it is the tape of that pass."""
    cdef Sequence seq[2]
    cdef Py_ssize_t directions
    cdef Level *level
    cdef Py_ssize_t *row        # (rows) place of each sorted row among those given
    cdef Py_ssize_t *length     # (rows) its steps
    cdef Py_ssize_t *start      # (rows) its first time, if rows are segments; otherwise NULL
    cdef Py_ssize_t *column     # (rows) and its place in the caller's batch
    cdef Py_ssize_t *span       # (rows) how many steps of time it has, read or not
    cdef Py_ssize_t *y_start    # (rows) its first output, if every k-th of a segment is picked
    cdef Py_ssize_t running     # rows of at least one step
    cdef Py_ssize_t entries     # (step, row) pairs
    cdef Arena arena            # what the pointers in seq point into, as do weights, x and extras
    cdef Arena sums             # of a backward call: gradients of the weights
    cdef list weights
    cdef object extras
    cdef Call forward_call      # a backward call points into its arena as well
    cdef Job *job               # the last one, that a helper left behind may still be at
    cdef int team               # threads that it is planned for
    cdef bint taped             # whether its kernels write a tape
    cdef bint whole             # whether all steps of all rows are read
    cdef readonly object x      # what may still be read: an array, or a list of them
    cdef Py_ssize_t frames      # axes of x: time, or of segments all their steps
    cdef Py_ssize_t width       # and rows, or 1
    # What decides how it is laid out, in addition to shape and lengths; arrays are its own
    cdef Pick pick
    cdef Py_ssize_t every
    cdef object mask            # (frames, width) of uint8, or None
    cdef object starts          # as in Extras, as are the next
    cdef object columns
    cdef object spans
    cdef object y_starts
    # Checkpoints: states before every `window` steps, from which backward makes the tape again
    cdef Py_ssize_t window      # 0: the tape is kept
    cdef char *saved[2][STATES]     # (windows, rows, blocks * lanes)

    def __init__(self, list weights, cnp.ndarray x not None, lengths, bint taped, extras):
        cdef Packed packed = packed_of(weights, 0)
        cdef Py_ssize_t d
        cdef View view
        if cnp.PyArray_NDIM(x) != 3:
            raise ValueError(f"x: expected shape (T, B, I), got {x.ndim} dimensions")
        cdef Py_ssize_t steps = cnp.PyArray_DIM(x, 0), rows = cnp.PyArray_DIM(x, 1)
        look(&view, x, packed.level.itemsize, steps, rows, packed.w.inputs, "x")
        self.begin(weights, steps, rows, extras, Arena())
        if packed.w.cell.attends and (extras is None or extras.attention is None):
            raise ValueError("attention: expected one number for each step, got None")
        if lengths is not None:
            lengths = lengths.copy()    # what is measured here is what is used
        if self.starts is not None:
            rows, steps = lengths.shape[0], lengths.max(initial=0)
        self.lay_out(steps, rows, counts_of(lengths, rows), taped)
        self.x = x
        for d in range(self.directions):
            self.take_x(d, &view)

    cdef int begin(self, list weights, Py_ssize_t frames, Py_ssize_t width, extras,
                   Arena arena) except -1:
        """Set everything that does not depend on rows and their lengths."""
        cdef Packed packed = packed_of(weights, 0)
        cdef Py_ssize_t d
        self.weights, self.directions, self.level = weights[:], len(weights), packed.level
        self.arena, self.extras, self.frames, self.width = arena, extras, frames, width
        self.pick, self.every = ALL, 1
        for d in range(self.directions):
            packed = packed_of(weights, d)
            self.seq[d].w = packed.w
            if packed.level != self.level or not alike(&packed.w, &self.seq[0].w):
                raise ValueError("weights: expected directions packed alike")
        if extras is None:
            return 0
        self.pick, self.every, self.mask = <Pick><int>PICKS[extras.pick], extras.every, extras.mask
        self.starts, self.columns = own(extras.starts), own(extras.columns)
        self.spans, self.y_starts = own(extras.spans), own(extras.y_starts)
        if self.every < 1:
            raise ValueError(f"every: expected at least 1, got {self.every}")
        return 0

    cdef int lay_out(self, Py_ssize_t steps, Py_ssize_t rows, const cnp.int64_t *lengths,
                     bint taped) except -1:
        """Order rows and share out memory; of a call that has run, in the same memory once more."""
        cdef Py_ssize_t d
        cdef Packed packed
        cdef Sequence *s
        self.arena.rewind()
        self.job = NULL
        for d in range(self.directions):
            packed, s = self.weights[d], &self.seq[d]
            if taped and not packed.backward:
                raise ValueError("weights: expected those packed for backward, for a tape")
            s.steps, s.rows, s.plain = steps, rows, packed.w.plain and self.pick == ALL
        self.order_rows(lengths)
        self.read_segments()
        for d in range(self.directions):
            s = &self.seq[d]
            s.x_row = <Py_ssize_t *>self.arena.room(max(1, rows), sizeof(Py_ssize_t))
            if self.pick <= EVERY:
                s.y_row = <Py_ssize_t *>self.arena.room(max(1, rows), sizeof(Py_ssize_t))
            self.make_pooled(d)
        if self.extras is not None:
            self.read_extras(taped)
        for d in range(self.directions):
            self.make_room(d, taped and self.window == 0, steps)
        return 0

    cdef int make_room(self, Py_ssize_t d, bint taped, Py_ssize_t steps) except -1:
        """States, and for so many steps the tape."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t vector = self.level.lanes * self.level.itemsize, entries = 0, t
        s.w.slots, s.w.kept, s.w.normed = s.w.summed, 0, 0
        if taped and (s.w.kinks or (self.extras is not None and self.extras.record)):
            s.w.kept = s.w.slots
            s.w.slots += s.w.gates
        if s.w.norm != NONE:
            s.w.normed = s.w.slots
            s.w.slots += s.w.gates * (2 if s.w.norm == OF_PRODUCTS else 1)
        s.tape = s.scales = NULL
        self.taped = taped
        if not taped:
            self.make_states(s, times(2, s.rows))
            self.place_states(d, 0, s.steps, False)
            return 0
        if self.whole or steps >= s.steps:
            entries = self.entries if steps >= s.steps else times(steps, s.rows)
        else:
            for t in range(0, s.steps, steps):
                entries = max(entries, s.first[min(t + steps, s.steps)] - s.first[t])
        self.make_states(s, s.rows + entries)
        self.place_states(d, 0, min(steps, s.steps), True)
        s.tape = self.arena.room(times(entries, s.w.slots), s.w.blocks * vector)
        if s.w.norm != NONE:
            s.scales = self.arena.room(entries, 4 * self.level.itemsize)
        return 0

    cdef int make_states(self, Sequence *s, Py_ssize_t count) except -1:
        """Room for `count` rows of each state."""
        cdef Py_ssize_t vector = self.level.lanes * self.level.itemsize, k
        for k in range(s.w.states):
            s.state[k] = self.arena.room(count, blocks_of(s, k) * vector)
        s.second = self.arena.room(s.rows, s.w.blocks * vector) if s.w.w_2.data != NULL else NULL
        return 0

    cdef void place_states(self, Py_ssize_t d, Py_ssize_t base, Py_ssize_t end,
                           bint taped) noexcept:
        """Where states before steps `base` to `end` are: in two places by turns, or all kept."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t step
        s.base = base
        if self.arena.counting:
            return
        for step in range(base, end + 1):
            s.state_at[step] = (step & 1) * s.rows
        for step in range(base, end + 1 if taped else base):
            s.state_at[step] = 0 if step == base else s.rows + s.first[step - 1] - s.first[base]

    cdef int make_pooled(self, Py_ssize_t d) except -1:
        """Which outputs are asked for, and at which times steps are read."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t vector = self.level.lanes * self.level.itemsize
        s.pick, s.every, s.time, s.pooled, s.pooled_rest = self.pick, self.every, NULL, NULL, NULL
        if self.mask is not None:
            s.time = self.times_of(d)
        if LAST <= s.pick <= MAX:
            s.pooled = self.arena.room(s.rows, s.w.out_blocks * vector)
        if s.pick == MEAN:
            s.pooled_rest = self.arena.room(s.rows, s.w.out_blocks * vector)
        if not self.arena.counting:
            self.clear_pooled(d)
        return 0

    cdef int read_extras(self, bint taped) except -1:
        """Random masks and checkpoints."""
        cdef Py_ssize_t d, k, steps = self.seq[0].steps, rows = self.seq[0].rows, chunk
        cdef Py_ssize_t itemsize = self.level.itemsize
        cdef Sequence *s
        extras = self.extras
        for d in range(self.directions):
            s = &self.seq[d]
            if extras.recurrent is not None:
                s.h_mask = self.arena.room(rows, s.w.out_blocks * self.level.lanes * itemsize)
                self.copy_rows_in(d, s.h_mask, extras.recurrent, s.w.outputs, "recurrent mask")
            self.look_zone(d, extras.zone_h, s.w.outputs, &s.zone_h, &s.zone_h_row,
                           &s.zone_h_step)
            self.look_zone(d, extras.zone_c, s.w.hidden, &s.zone_c, &s.zone_c_row,
                           &s.zone_c_step)
            if s.w.cell.attends:
                self.look_step_numbers(d, extras.attention, "attention", False, &s.attention,
                                       &s.attention_row, &s.attention_step)
            if s.h_mask != NULL or s.zone_h != NULL or s.zone_c != NULL or extras.record:
                s.plain = False
        if taped and extras.checkpoint:
            chunk = chunk_of(rows)
            self.window = (min(extras.checkpoint, max(1, steps)) + chunk - 1) // chunk * chunk
            for d in range(self.directions):
                s = &self.seq[d]
                chunk = times((steps + self.window - 1) // self.window, rows)
                for k in range(s.w.states):
                    self.saved[d][k] = <char *>self.arena.room(
                        chunk, blocks_of(s, k) * self.level.lanes * itemsize)
        return 0

    cdef int look_zone(self, Py_ssize_t d, array, Py_ssize_t width, void **base, Py_ssize_t **row,
                       Py_ssize_t *step) except -1:
        """A mask laid out as y."""
        cdef View view
        if array is None:
            return 0
        look(&view, array, self.level.itemsize, self.frames, self.width, self.directions * width,
             "zoneout mask")
        base[0] = view.data + d * width * self.level.itemsize
        row[0] = self.place(d, &view)
        step[0] = self.stride(d, &view)
        return 0

    cdef int look_step_numbers(self, Py_ssize_t d, array, str name, bint written, void **base,
                               Py_ssize_t **row, Py_ssize_t *step) except -1:
        """A number for each step: (frames, width, 1)."""
        cdef View view
        if self.arena.counting:
            self.arena.room(max(1, self.seq[d].rows), sizeof(Py_ssize_t))   # where rows are
            return 0
        look(&view, array, self.level.itemsize, self.frames, self.width, 1, name, written)
        base[0], row[0], step[0] = view.data, self.place(d, &view), self.stride(d, &view)
        return 0

    cdef int order_rows(self, const cnp.int64_t *lengths) except -1:
        """Sort rows by length, longest first and stable; count those running at each step."""
        cdef Py_ssize_t steps = self.seq[0].steps, rows = self.seq[0].rows, b, t, d
        cdef Py_ssize_t *active = <Py_ssize_t *>self.arena.room(
            4 * (steps + 2) + 2 * rows, sizeof(Py_ssize_t), True)
        cdef Py_ssize_t *first = active + steps + 2
        self.row = first + 3 * (steps + 2)
        self.length, self.whole = self.row + rows, lengths == NULL
        self.running, self.entries = rows if steps > 0 else 0, times(steps, rows)
        if self.arena.counting:
            return 0
        if lengths == NULL:
            for t in range(steps):
                active[t] = rows
            for b in range(rows):
                self.row[b], self.length[b] = b, steps
        else:
            self.sort_rows(lengths, active, first + 2 * (steps + 2))
        for t in range(steps):
            first[t + 1] = first[t] + active[t]
        self.running, self.entries = active[0], first[steps]
        for d in range(self.directions):
            self.seq[d].active, self.seq[d].first = active, first
            self.seq[d].state_at = first + steps + 2
            self.seq[d].length = self.length
        return 0

    cdef int sort_rows(self, const cnp.int64_t *given, Py_ssize_t *active,
                       Py_ssize_t *start) except -1:
        """Sort by counting, with room for steps + 1 counts in `start`."""
        cdef Py_ssize_t steps = self.seq[0].steps, rows = self.seq[0].rows, b, t, n = 0, at
        for b in range(rows):
            if not 0 <= given[b] <= steps:
                raise ValueError(f"lengths: expected values in 0..{steps}, got {given[b]}")
            start[given[b]] += 1    # rows of exactly so many steps
        for t in range(steps, -1, -1):
            active[t] = n           # rows of more than t steps
            n += start[t]
            start[t] = active[t]
        for b in range(rows):
            at = start[given[b]]
            start[given[b]] += 1
            self.row[at], self.length[at] = b, given[b]
        return 0

    cdef int read_segments(self) except -1:
        """Where rows are that are given as segments of x: time, and place in the batch."""
        cdef Py_ssize_t rows = self.seq[0].rows, b, span
        cdef const cnp.int64_t *starts = counts_of(self.starts, rows, "starts")
        cdef const cnp.int64_t *columns = counts_of(self.columns, rows, "columns")
        cdef const cnp.int64_t *spans = counts_of(self.spans, rows, "spans")
        cdef const cnp.int64_t *y_starts = counts_of(self.y_starts, rows, "y_starts")
        self.start = NULL
        if starts == NULL or self.arena.counting:
            return 0
        if (self.mask is not None and spans == NULL) or (
                self.pick == EVERY and columns != NULL):
            raise ValueError("segments: expected spans with a mask, and not every k-th output")
        self.start = <Py_ssize_t *>self.arena.room(rows, 4 * sizeof(Py_ssize_t), True)
        self.column, self.y_start = self.start + rows, self.start + 2 * rows
        self.span = self.start + 3 * rows
        for b in range(rows):
            span = self.length[b] if spans == NULL else spans[self.row[b]]
            self.start[b], self.span[b] = starts[self.row[b]], span
            if columns != NULL:
                self.column[b] = columns[self.row[b]]
            if y_starts != NULL:
                self.y_start[b] = y_starts[self.row[b]]
            if not (0 <= self.start[b] <= self.frames and self.length[b] <= span <= self.frames
                    and self.start[b] + span <= self.frames and self.y_start[b] >= 0
                    and 0 <= self.column[b] < self.width):
                raise ValueError(f"starts, columns: expected segments within x, got one of {span} "
                                 f"steps from {self.start[b]} in column {self.column[b]}")
        return 0

    cdef Py_ssize_t *times_of(self, Py_ssize_t d) except NULL:
        """The time of each (step, row) pair, from the row's start, in the order they are read."""
        cdef const cnp.uint8_t[:, ::1] valid = self.mask
        cdef Py_ssize_t steps = self.frames, b, t, n, column, begin, span
        cdef Py_ssize_t *first = self.seq[d].first
        cdef Py_ssize_t *time = <Py_ssize_t *>self.arena.room(max(1, self.entries),
                                                              sizeof(Py_ssize_t))
        cdef bint reverse = self.seq[d].w.reverse
        if valid.shape[0] != steps or valid.shape[1] != self.width:
            raise ValueError(f"mask: expected shape {(self.frames, self.width)}, "
                             f"got {self.mask.shape}")
        for b in range(self.seq[d].rows):
            n, begin, column, span = 0, 0, self.row[b], steps
            if self.start != NULL:
                begin, column, span = self.start[b], self.column[b], self.span[b]
            for t in range(span):
                if valid[begin + t, column]:
                    if n < self.length[b]:
                        time[first[self.length[b] - 1 - n if reverse else n] + b] = t
                    n += 1
            if n != self.length[b]:
                raise ValueError(f"lengths: expected {n}, as the mask says, got {self.length[b]}")
        return time

    cdef void take_x(self, Py_ssize_t d, View *view) noexcept:
        """Where one direction reads x."""
        cdef Sequence *s = &self.seq[d]
        s.x, s.x_step = view.data, self.stride(d, view)
        self.place_rows(d, s.x_row, view, self.start, self.backwards(d))

    cdef bint backwards(self, Py_ssize_t d) noexcept:
        """Whether rows are walked through from their ends, by negative strides."""
        return self.seq[d].w.reverse and self.seq[d].time == NULL

    cdef Py_ssize_t stride(self, Py_ssize_t d, View *view) noexcept:
        """Elements from step to step of a row."""
        cdef Py_ssize_t step = view.outer // self.level.itemsize
        return -step if self.backwards(d) else step

    cdef Py_ssize_t *place(self, Py_ssize_t d, View *view) except NULL:
        """Elements from the start of a (T, B, ...) array to each sorted row's step 0."""
        cdef Py_ssize_t *at = <Py_ssize_t *>self.arena.room(max(1, self.seq[0].rows),
                                                            sizeof(Py_ssize_t))
        self.place_rows(d, at, view, self.start, self.backwards(d))
        return at

    cdef void place_rows(self, Py_ssize_t d, Py_ssize_t *at, View *view, Py_ssize_t *start,
                         bint back) noexcept:
        """Elements before each row's first step, or its last if `back`; `start` NULL: time 0."""
        cdef Py_ssize_t b, itemsize = self.level.itemsize
        for b in range(self.seq[0].rows):
            at[b] = self.row[b] * view.inner if start == NULL \
                else start[b] * view.outer + self.column[b] * view.inner
            if back:
                at[b] += max(0, self.length[b] - 1) * view.outer
            at[b] //= itemsize

    cdef int look_outputs(self, array, str name, bint written, View *view) except -1:
        """Check y or dy, which picking every k-th step makes shorter."""
        cdef Sequence *s = &self.seq[0]
        cdef Py_ssize_t outer = self.frames, b
        if s.pick == EVERY:
            outer = outer // s.every
            if self.starts is not None:
                outer = 0
                for b in range(s.rows):
                    outer += self.length[b] // s.every
                for b in range(s.rows):
                    if self.y_start[b] + self.length[b] // s.every > outer:
                        raise ValueError(f"y_starts: expected outputs within {outer}")
        look(view, array, self.level.itemsize, outer, self.width, self.directions * s.w.outputs,
             name, written)
        return 0

    cdef void take_outputs(self, Py_ssize_t d, View *view, void **base, Py_ssize_t *row,
                           Py_ssize_t *step) noexcept:
        """Where one direction's y or dy is, one for each step read or each k-th in time."""
        cdef Sequence *s = &self.seq[d]
        base[0] = view.data + d * s.w.outputs * self.level.itemsize
        if s.pick == EVERY:
            step[0] = view.outer // self.level.itemsize
            self.place_rows(d, row, view, NULL if self.start == NULL else self.y_start, False)
        else:
            step[0] = self.stride(d, view)
            self.place_rows(d, row, view, self.start, self.backwards(d))

    cdef int copy_rows_in(self, Py_ssize_t d, void *base, array, Py_ssize_t size,
                          str name) except -1:
        """Sorted and padded rows from a (D, B, size) array; None is zeros."""
        cdef View view
        view.data = NULL
        if array is not None:
            look(&view, array, self.level.itemsize, self.directions, self.seq[d].rows, size, name)
        self.take_rows(base, &view, d, size)
        return 0

    cdef void take_rows(self, void *base, View *view, Py_ssize_t index, Py_ssize_t size) noexcept:
        """Sorted and padded rows from index `index` of the first axis; no data are zeros."""
        cdef Py_ssize_t itemsize = self.level.itemsize, lanes = self.level.lanes, b
        cdef Py_ssize_t rows = self.seq[0].rows
        cdef Py_ssize_t width = (size + lanes - 1) // lanes * lanes * itemsize
        memset(base, 0, rows * width)
        for b in range(rows if view.data != NULL else 0):
            memcpy(<char *>base + b * width,
                   view.data + index * view.outer + self.row[b] * view.inner, size * itemsize)

    cdef void forget_rows(self, void *base, cnp.ndarray reset, Py_ssize_t blocks) noexcept:
        """Zero the states of rows, of so many blocks each, that are to start anew."""
        cdef Py_ssize_t size = blocks * self.level.lanes * self.level.itemsize, b
        for b in range(0 if reset is None else self.seq[0].rows):
            if numbers(reset)[self.row[b]]:
                memset(<char *>base + b * size, 0, size)

    cdef void clear_pooled(self, Py_ssize_t d) noexcept:
        """Nothing is pooled yet."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t size = s.rows * s.w.out_blocks * self.level.lanes * self.level.itemsize
        if s.pooled != NULL:
            memset(s.pooled, 0, size)
        if s.pooled_rest != NULL:
            memset(s.pooled_rest, 0, size)

    cdef int copy_rows_out(self, Py_ssize_t d, void *base, array, Py_ssize_t size, str name,
                           bint final) except -1:
        """Rows in the caller's order into a (D, B, size) array, `final` states or plain rows."""
        cdef View view
        look(&view, array, self.level.itemsize, self.directions, self.seq[d].rows, size, name, True)
        self.give_rows(base, &view, d, size, final)
        return 0

    cdef void give_rows(self, void *base, View *view, Py_ssize_t index, Py_ssize_t size,
                        bint final) noexcept:
        """Rows in the caller's order; a `final` state is that before a step the row has not."""
        cdef Sequence *s = &self.seq[0]
        cdef Py_ssize_t itemsize = self.level.itemsize, lanes = self.level.lanes, b
        cdef Py_ssize_t rows = self.seq[0].rows
        cdef Py_ssize_t width = (size + lanes - 1) // lanes * lanes * itemsize
        for b in range(rows):
            memcpy(view.data + index * view.outer + self.row[b] * view.inner,
                   <char *>base + ((s.state_at[self.length[b]] if final else 0) + b) * width,
                   size * itemsize)

    cdef tuple empty_states(self):
        """Arrays (D, B, size) for one of each state."""
        cdef Sequence *s = &self.seq[0]
        cdef Py_ssize_t k
        return tuple([empty(self.directions, s.rows, width_of(&s.w, k), self.level.itemsize)
                      for k in range(s.w.states)])

    cdef int checkpoint(self, Py_ssize_t step, bint restore) except -1:
        """Save the states before `step`, or bring them back into slot 0."""
        cdef Py_ssize_t vector = self.level.lanes * self.level.itemsize, d, k
        cdef Sequence *s
        for d in range(self.directions):
            s = &self.seq[d]
            for k in range(s.w.states):
                self.swap(d, s.state[k], self.saved[d][k], step, blocks_of(s, k) * vector, restore)
        return 0

    cdef void swap(self, Py_ssize_t d, void *states, char *saved, Py_ssize_t step,
                   Py_ssize_t width, bint restore) noexcept:
        cdef Sequence *s = &self.seq[d]
        saved += step // self.window * s.rows * width
        states = <char *>states + s.state_at[step] * width
        memcpy(states if restore else saved, saved if restore else states, s.rows * width)

    cdef Call again(self, dy, list dx, double clip_step, list d_attention):
        """A copy for one backward pass, with gradients where the outputs were."""
        cdef Call call = Call.__new__(Call)
        cdef Py_ssize_t d, k
        cdef Sequence *s
        call.arena, call.sums, call.weights = Arena(), Arena(), self.weights
        call.arena.counting = call.sums.counting = self.arena.counting
        call.directions, call.level = self.directions, self.level
        call.row, call.length, call.x, call.extras = self.row, self.length, self.x, self.extras
        call.start, call.column, call.y_start = self.start, self.column, self.y_start
        call.frames, call.width, call.starts = self.frames, self.width, self.starts
        call.running, call.entries, call.whole = self.running, self.entries, self.whole
        call.window, call.forward_call = self.window, self
        for d in range(self.directions):
            call.seq[d] = self.seq[d]
            s = &call.seq[d]
            for k in range(s.w.states):
                call.saved[d][k] = self.saved[d][k]
            s.y, s.best, s.pooled, s.clip_step = NULL, s.pooled, NULL, clip_step
            s.plain = s.plain and clip_step == 0
            if self.window:
                s.state_at = <Py_ssize_t *>call.arena.room(s.steps + 1, sizeof(Py_ssize_t))
                call.make_room(d, True, self.window)
            call.make_gradient_room(d)
            if not call.arena.counting:
                call.look_gradients(d, dy, dx[d])
            if s.w.cell.attends:
                call.look_step_numbers(d, d_attention and d_attention[d], "d_attention", True,
                                       &s.d_attention, &s.d_attention_row, &s.d_attention_step)
        return call

    cdef int make_gradient_room(self, Py_ssize_t d) except -1:
        cdef Sequence *s = &self.seq[d]
        cdef Arena arena = self.arena
        cdef Py_ssize_t itemsize = self.level.itemsize, vector = self.level.lanes * itemsize
        cdef Py_ssize_t width = s.w.blocks * vector, out_width = s.w.out_blocks * vector
        cdef Py_ssize_t entries = chunk_entries(s.rows), units = s.w.gates * s.w.hidden, k
        cdef bint h_apart = s.w.summed > s.w.gates  # whether the products write to other slots
        s.entries = entries
        s.d_x = arena.room(times(entries, s.w.gates), width)
        s.d_h, s.d_h_gates = s.d_x, s.w.gates
        s.db_hh = NULL
        if h_apart or s.w.h_products > 1 or s.w.norm == OF_PRODUCTS:
            s.d_h_gates = max(1, s.w.h_products) * s.w.h_gates
            s.d_h = arena.room(times(entries, s.d_h_gates), width)
        if h_apart:
            s.db_hh = self.sums.room(s.w.gates, width)
        s.x_copy = self.room_for_copies(d, s.w.in_blocks)
        s.h_copy = self.room_for_copies(d, s.w.out_blocks if s.w.h_products else 0)
        s.dx_copy = arena.room(times(entries, s.w.in_blocks), vector)
        for k in range(s.w.states):
            s.d_state[k] = arena.room(s.rows, blocks_of(s, k) * vector)
        s.dw_ih = self.sums.room(units, s.w.in_blocks * vector)
        s.db_ih = self.sums.room(s.w.gates, width)
        s.dw_hh = self.sums.room(units if s.w.h_products else 0,
                                 (s.w.depth * itemsize + vector - 1) // vector * vector)
        if s.w.w_2.data != NULL:
            # The gradients of the last gate's U are part of those of U.
            s.dw_2 = self.sums.room(s.w.outputs, width) if s.w.projects \
                else <char *>s.dw_hh + s.w.h_products * s.w.hidden * out_width
            s.d_2 = arena.room(entries, out_width)
            s.d_second = arena.room(s.rows, width)
            s.second_copy = self.room_for_copies(d, s.w.blocks)
        if s.w.cell.attends:
            s.d_scaled = arena.room(entries, width)
        if s.w.singles:
            s.d_singles = arena.room(times(s.rows, s.w.singles), width, True)
            s.d_single = self.sums.room(s.w.singles, width, True)
        return 0

    cdef void *room_for_copies(self, Py_ssize_t d, Py_ssize_t blocks) except? NULL:
        return self.arena.room(times(self.seq[d].entries, (blocks + SLAB - 1) // SLAB * SLAB),
                               self.level.lanes * self.level.itemsize)

    cdef int look_gradients(self, Py_ssize_t d, dy, dx) except -1:
        cdef Sequence *s = &self.seq[d]
        cdef View view
        look(&view, dx, self.level.itemsize, self.frames, self.width, s.w.inputs, "dx", True)
        s.dx, s.dx_row = view.data, self.place(d, &view)
        s.dx_step = self.stride(d, &view)
        if dy is None:
            return 0
        if s.pick == FINAL:
            return 0
        if s.pick > EVERY:
            s.d_pooled = self.arena.room(
                s.rows, s.w.out_blocks * self.level.lanes * self.level.itemsize)
            self.copy_rows_in(d, s.d_pooled, dy, s.w.outputs, "dy")
        else:
            self.look_outputs(dy, "dy", False, &view)
            s.dy_row = <Py_ssize_t *>self.arena.room(max(1, s.rows), sizeof(Py_ssize_t))
            self.take_outputs(d, &view, &s.dy, s.dy_row, &s.dy_step)
        return 0

    cdef int add_gradients(self, Py_ssize_t d, tuple gradients, bint look_only) except -1:
        """Add one direction's gradients to (dw_ih, dw_hh, db_ih, db_hh, dw_hr, d_single)."""
        cdef Sequence *s = &self.seq[d]
        cdef Weights *w = &s.w
        cdef Py_ssize_t units = w.gates * w.hidden
        expect("gradients", gradients, 6)
        dw_ih, dw_hh, db_ih, db_hh, dw_hr, d_single = gradients
        self.add_matrix(s.dw_ih, units, w.inputs, dw_ih, "dw_ih", look_only)
        if w.h_products:
            self.add_matrix(s.dw_hh, units, w.depth, dw_hh, "dw_hh", look_only)
        if w.projects:
            self.add_matrix(s.dw_2, w.outputs, w.hidden, dw_hr, "dw_hr", look_only)
        if db_ih is not None:
            self.add_vector(s.db_ih, w.gates, w.turn, db_ih, "db_ih", look_only)
        if db_hh is not None and s.db_hh == NULL:
            self.add_vector(s.db_ih, w.gates, w.turn, db_hh, "db_hh", look_only)
        elif db_hh is not None:
            self.add_vector(s.db_hh, w.gates, 0, db_hh, "db_hh", look_only)
        if w.singles:
            self.add_vector(s.d_single, w.singles, 0, d_single, "d_single", look_only)
        return 0

    cdef int add_matrix(self, void *sums, Py_ssize_t rows, Py_ssize_t columns, into, str name,
                        bint look_only) except -1:
        cdef View view
        look(&view, into, self.level.itemsize, 1, rows, columns, name, True)
        if rows > 1 and view.inner != columns * self.level.itemsize:
            raise ValueError(f"{name}: expected a contiguous array")
        if not look_only:
            self.level.add_rows(sums, rows, columns, view.data)
        return 0

    cdef int add_vector(self, void *sums, Py_ssize_t gates, Py_ssize_t turn, into, str name,
                        bint look_only) except -1:
        cdef View view
        cdef Py_ssize_t hidden = self.seq[0].w.hidden
        look(&view, into, self.level.itemsize, 1, 1, gates * hidden, name, True)
        if not look_only:
            self.level.unpack_add(sums, hidden, gates, turn, view.data)
        return 0

    def recorded(self, Py_ssize_t d):
        """What the tape of direction `d` holds, for inspection.

        Returns
        -------
        tuple
            Activated slots (entries, S, H), the slot at which pre-activations start (0: not
            recorded), each state after each entry (entries, P or H), time and row of each entry
            in the caller's batch.
        """
        if not 0 <= d < self.directions or self.seq[d].tape == NULL or self.arena is None:
            raise ValueError(f"d: expected a direction with a tape, got {d}")
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t itemsize = self.level.itemsize, lanes = self.level.lanes, e = 0, t, b, k
        cdef Py_ssize_t entries = s.first[s.steps], vector = lanes * itemsize
        cdef cnp.npy_intp shape[4]
        shape[0], shape[1], shape[2], shape[3] = entries, s.w.blocks, s.w.slots, lanes
        slots = cnp.PyArray_SimpleNew(4, shape, type_of(itemsize))
        memcpy(cnp.PyArray_DATA(slots), s.tape, entries * s.w.blocks * s.w.slots * vector)
        shape[1] = 2
        where = cnp.PyArray_SimpleNew(2, shape, cnp.NPY_INTP)
        cdef Py_ssize_t *at = <Py_ssize_t *>cnp.PyArray_DATA(where)
        for t in range(s.steps):
            for b in range(s.active[t]):
                at[2 * e] = s.time[e] if s.time != NULL \
                    else self.length[b] - 1 - t if s.w.reverse else t
                at[2 * e + 1] = self.row[b]
                if self.start != NULL:
                    at[2 * e] += self.start[b]
                    at[2 * e + 1] = self.column[b]
                e += 1
        n = s.w.hidden
        slots = slots.transpose(0, 2, 1, 3).reshape(entries, s.w.slots, s.w.blocks * lanes)
        states = [self.states_after(d, s.state[k], blocks_of(s, k) * lanes)[:, :width_of(&s.w, k)]
                  for k in range(s.w.states)]
        return slots[:, :, :n], s.w.kept, states, where[:, 0], where[:, 1]

    cdef cnp.ndarray states_after(self, Py_ssize_t d, void *states, Py_ssize_t width):
        """The state after each entry."""
        cdef Sequence *s = &self.seq[d]
        cdef Py_ssize_t t, size = width * self.level.itemsize
        found = empty(1, s.first[s.steps], width, self.level.itemsize)
        for t in range(s.steps):
            memcpy(cnp.PyArray_BYTES(found) + s.first[t] * size,
                   <char *>states + s.state_at[t + 1] * size, s.active[t] * size)
        return found[0]

    cdef Py_ssize_t work(self):
        """Multiply-adds of one forward pass, saturating."""
        cdef Weights *w = &self.seq[0].w
        cdef double n = w.gates * w.inputs + w.h_products * w.h_gates * w.depth
        if w.w_2.data != NULL:
            n += w.outputs
        n *= <double>self.directions * self.entries * w.hidden
        return <Py_ssize_t>min(n, 1e18)


cdef Call counted_call(list weights, Py_ssize_t steps, Py_ssize_t rows, bint taped, extras):
    """A call over whole rows whose memory is only counted."""
    cdef Call call = Call.__new__(Call)
    call.begin(weights, steps, rows, extras, Arena(True))
    call.lay_out(steps, rows, NULL, taped)
    return call


cdef cnp.ndarray own(values):
    """A copy, because another thread may write into the caller's; None stays None."""
    return None if values is None else values.copy()


cdef const cnp.int64_t *counts_of(values, Py_ssize_t rows, str name="lengths") except? NULL:
    """One count for each row, where there are any."""
    cdef cnp.ndarray a
    if values is None:
        return NULL
    if not isinstance(values, cnp.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(values).__name__}")
    a = values
    if cnp.PyArray_TYPE(a) != cnp.NPY_INT64 or not cnp.PyArray_ISCARRAY_RO(a):
        raise ValueError(f"{name}: expected contiguous int64, got {a.dtype}")
    if cnp.PyArray_NDIM(a) != 1 or cnp.PyArray_DIM(a, 0) != rows:
        raise ValueError(f"{name}: expected {rows} values, got {values.shape}")
    return <const cnp.int64_t *>cnp.PyArray_DATA(a)
