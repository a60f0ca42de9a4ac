# Streams: steps whose states stay in the kernels' memory.
#
# A StepPlan is planned once for a number of rows; one step of any of the first of them, through all
# layers, then allocates nothing. Of the two places that the states of a call have in inference, one
# holds the state before the step and the other takes the one after it; at the next step they change
# roles. A step that ends with an exception has changed nothing: the state before it is still there.

ctypedef struct StepRows:
    # What one thread needs to step rows without the GIL; lives in a StepPlan.
    Level *level
    Py_ssize_t layers
    Sequence **seq          # (layers)
    Part *part              # (layers) of one thread; unless the plan is for several
    char **between          # (layers - 1) outputs of each layer but the last
    Py_ssize_t place        # which of the two places holds the states


cdef inline Py_ssize_t row_bytes(Sequence *s, Py_ssize_t itemsize) noexcept nogil:
    """Bytes of a row's state in one layer, without padding: h, then what else the cell has."""
    return (s.w.outputs + (s.w.states - 1) * s.w.hidden) * itemsize


cdef void load_row(StepRows *r, Py_ssize_t row, const char *state) noexcept nogil:
    """Bring a row's states of all layers in, end to end."""
    cdef Py_ssize_t layer, k, size
    for layer in range(r.layers):
        for k in range(r.seq[layer].w.states):
            size = width_of(&r.seq[layer].w, k) * r.level.itemsize
            memcpy(row_state(r, layer, k, row), state, size)
            state += size


cdef void store_row(StepRows *r, Py_ssize_t row, char *state) noexcept nogil:
    """Take a row's states of all layers out, end to end."""
    cdef Py_ssize_t layer, k, size
    for layer in range(r.layers):
        for k in range(r.seq[layer].w.states):
            size = width_of(&r.seq[layer].w, k) * r.level.itemsize
            memcpy(state, row_state(r, layer, k, row), size)
            state += size


cdef inline char *row_state(StepRows *r, Py_ssize_t layer, Py_ssize_t k,
                            Py_ssize_t row) noexcept nogil:
    """Where one of a row's states in one layer is now."""
    cdef Sequence *s = r.seq[layer]
    return <char *>s.state[k] + (s.state_at[r.place] + row) * blocks_of(s, k) * (
        r.level.lanes * r.level.itemsize)


cdef void step_rows(StepRows *r, Py_ssize_t n, const char *x, char *y,
                    const char *attention) noexcept nogil:
    """One step of the first `n` rows on this thread; attention is theirs, or NULL."""
    cdef Py_ssize_t k, row, phase, step = r.place
    cdef FpMode mode = fp_flush()
    cdef Sequence *s
    cdef Part *p
    for k in range(r.layers):
        s, p = r.seq[k], &r.part[k]
        s.active[step] = n
        s.x, s.y = <void *>x, y if k == r.layers - 1 else r.between[k]
        s.attention = <void *>attention
        p.step0, p.step1 = step, step + 1
        row = 0
        while row < n:
            p.row0, p.row1 = row, min(n, row + GROUP_ROWS)
            row = p.row1
            r.level.project(s, p)
            for phase in range(1 + (s.w.w_2.data != NULL)):
                r.level.forward_step(s, p, step, phase)
        x = <const char *>s.y
    r.place = 1 - step
    fp_restore(mode)


cdef Call call_of_steps(list weights, Py_ssize_t rows):
    """A call of one layer that is run step by step, with the state it ends with as the next one's.

    It has two steps, by turns: each reads the state from where the other one writes it, and goes
    through the weights the other way round.
    """
    cdef Call call
    cdef Sequence *s
    cdef Py_ssize_t row, k
    if len(weights) != 1 or packed_of(weights, 0).w.reverse or rows < 1:
        raise ValueError("layers: expected one direction, forwards, and at least one row")
    call = new_call(weights)
    call.lay_out(2, rows, NULL, False)
    s = &call.seq[0]
    for k in range(s.w.states):
        memset(s.state[k], 0, 2 * rows * blocks_of(s, k) * call.level.lanes * call.level.itemsize)
    if s.w.cell.attends:
        s.attention_row = <Py_ssize_t *>call.arena.room(rows, sizeof(Py_ssize_t))
    for row in range(rows):
        s.x_row[row], s.y_row[row] = row * s.w.inputs, row * s.w.outputs
        if s.w.cell.attends:
            s.attention_row[row] = row
    return call


@cython.final
@cython.auto_pickle(False)
cdef class StepPlan:
    """One step of up to so many rows through all layers, and their states: zeros at first.

    Parameters
    ----------
    stack : Stack
        Packed weights of layers that read forwards.
    rows : int
    threads : int
        Most threads that `step` may use.
    """
    cdef Stack stack
    cdef StepRows rows
    cdef list calls         # one per layer
    cdef Run **runs         # (layers)
    cdef Arena arena
    cdef Py_ssize_t count   # of rows
    cdef Py_ssize_t inputs
    cdef Py_ssize_t outputs
    cdef Py_ssize_t width   # elements of a row's state
    cdef char *one_row      # room for one
    cdef int threads
    cdef double seconds     # that a step of all rows takes at least
    cdef bint spoiled       # a thread left behind, or one of a forked child's parent, is at it

    def __init__(self, Stack stack not None, Py_ssize_t rows, int threads):
        cdef StepRows *r = &self.rows
        cdef Py_ssize_t k
        cdef Call call
        if not stack.weights:
            raise ValueError("stack: expected at least one layer")
        self.stack, self.count, self.threads = stack, rows, threads
        self.arena, self.calls, r.layers = Arena(), [], len(stack.weights)
        r.seq = <Sequence **>self.arena.room(r.layers, sizeof(Sequence *))
        r.part = <Part *>self.arena.room(r.layers, sizeof(Part), True)
        r.between = <char **>self.arena.room(r.layers, sizeof(char *))
        self.runs = <Run **>self.arena.room(r.layers, sizeof(Run *))
        for k in range(r.layers):
            call = call_of_steps(stack.weights[k], rows)
            if k > 0 and (call.level != r.level
                          or call.seq[0].w.inputs != r.seq[k - 1].w.outputs):
                raise ValueError("layers: expected each to read what the one before it writes")
            self.calls.append(call)
            r.level, r.seq[k] = call.level, &call.seq[0]
            self.seconds += estimate(call) / 2
            self.width += row_bytes(r.seq[k], r.level.itemsize) // r.level.itemsize
        self.one_row = <char *>self.arena.room(self.width, r.level.itemsize)
        self.inputs, self.outputs = r.seq[0].w.inputs, r.seq[r.layers - 1].w.outputs
        for k in range(r.layers):
            self.plan_layer(k, 1 if self.small() else threads)

    cdef int plan_layer(self, Py_ssize_t k, int threads) except -1:
        cdef StepRows *r = &self.rows
        cdef Sequence *s = r.seq[k]
        cdef Call call = self.calls[k]
        cdef Run *run = new_run(call)
        plan_forward(run, call, threads)
        self.runs[k] = run
        set_up_part(run, &r.part[k], 0)
        r.part[k].block1, r.part[k].out1 = s.w.blocks, s.w.out_blocks
        r.between[k] = <char *>self.arena.room(times(self.count, s.w.outputs), r.level.itemsize)
        return 0

    cdef bint small(self) noexcept:
        """Whether a step is over sooner than the GIL, or work, is handed to another thread."""
        return self.seconds < SERIAL_SECONDS

    cdef bint attends(self) noexcept:
        """Whether the cells read a number for each row beside x."""
        return self.rows.seq[0].w.cell.attends

    cdef int step(self, x, const char *x_data, char *y, attention) except -1:
        """One step of all rows, of contiguous x (rows, inputs) into y (rows, outputs).

        Attention is an array of a number for each row, or None.
        """
        cdef StepRows *r = &self.rows
        cdef Py_ssize_t k
        cdef Call call
        cdef Clock clock = Clock(-1)
        cdef char *numbers = NULL if attention is None else cnp.PyArray_BYTES(attention)
        if self.small():
            step_rows(r, self.count, x_data, y, numbers)
            return 0
        self.spoiled = True     # unless it ends here: in a forked child it does not
        try:
            for k in range(r.layers):
                call = self.calls[k]
                call.x = x if attention is None else (x, attention)  # for a thread left behind
                r.seq[k].x, r.seq[k].attention = <void *>x_data, numbers
                r.seq[k].y = y if k == r.layers - 1 else r.between[k]
                self.run(k, call, &clock)
                x, x_data = self.arena, <const char *>r.seq[k].y
            r.place = 1 - r.place
        finally:
            self.spoiled = not self.let_go()
        return 0

    cdef bint let_go(self) noexcept:
        """Let go of the caller's array; False if a thread left behind may still read it."""
        cdef Call call
        for call in self.calls:
            if call.job != NULL and call.job.state != IDLE:
                return False
        for call in self.calls:
            call.x = None
        return True

    cdef int run(self, Py_ssize_t k, Call call, Clock *clock) except -1:
        """One layer's step, by as many threads as pay."""
        cdef Run *run = self.runs[k]
        cdef int team = 1
        if estimate(call) >= 2 * SERIAL_SECONDS:    # of its two steps
            team = team_size(call, self.threads)
        run.step0, run.step1 = self.rows.place, self.rows.place + 1
        run.team_seq.x, run.team_seq.attention = call.seq[0].x, call.seq[0].attention
        return go(run, call, team, clock)

    cdef int take_states(self, StepPlan other) except -1:
        """Go on from another plan's states."""
        cdef Py_ssize_t row
        if (other.count, other.width) != (self.count, self.width) \
                or other.rows.level.itemsize != self.rows.level.itemsize:
            raise ValueError("stack: expected layers of the same sizes as before")
        for row in range(self.count):
            store_row(&other.rows, row, self.one_row)
            load_row(&self.rows, row, self.one_row)
        return 0


cdef char *ready(array, Py_ssize_t ndim, Py_ssize_t rows, Py_ssize_t width,
                 int dtype, bint written) noexcept:
    """The data of an array of shape (rows, width), or of one row (width,), that is contiguous.

    NULL for any other.
    """
    if not cnp.PyArray_CheckExact(array) or cnp.PyArray_NDIM(array) != ndim:
        return NULL
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(array)
    if (shape[ndim - 1] != width or rows != (1 if ndim == 1 else shape[0])
            or cnp.PyArray_TYPE(array) != dtype
            or not cnp.PyArray_IS_C_CONTIGUOUS(array) or not cnp.PyArray_ISBEHAVED_RO(array)
            or (written and not cnp.PyArray_ISWRITEABLE(array))):
        return NULL
    return cnp.PyArray_BYTES(array)


cdef object new_rows(Py_ssize_t ndim, Py_ssize_t rows, Py_ssize_t width, int dtype):
    """An array that is `ready`, without values."""
    cdef cnp.npy_intp shape[2]
    shape[0], shape[ndim - 1] = rows, width
    return cnp.PyArray_SimpleNew(ndim, shape, dtype)


cdef object take_frames(owner, x, Py_ssize_t ndim, Py_ssize_t rows, Py_ssize_t width, int dtype):
    """A frame for each row as the kernels read it: `x`, or what the owner makes of it."""
    if ready(x, ndim, rows, width, dtype, False) != NULL:
        return x
    x = owner._checked_frames(x, rows)
    if ready(x, 1, rows, width, dtype, False) == NULL \
            and ready(x, 2, rows, width, dtype, False) == NULL:
        raise TypeError("x: expected frames as the kernels read them")
    return x


cdef object take_attention(owner, attention, Py_ssize_t rows, bint attends, int dtype):
    """A number for each row as the kernels read them, or None where the cell reads none."""
    if not attends:
        if attention is not None:
            raise TypeError("attention: expected none for a layer that reads x alone, got some")
        return None
    if ready(attention, 1, 1, rows, dtype, False) == NULL:
        attention = owner._checked_attention(attention, rows)
        if ready(attention, 1, 1, rows, dtype, False) == NULL:
            raise TypeError("attention: expected numbers as the kernels read them")
    return attention


cdef object take_results(owner, out, Py_ssize_t ndim, Py_ssize_t rows, Py_ssize_t width,
                         int dtype):
    """What to write into: `out` if the kernels can, or an array to be copied from."""
    if out is None:
        return new_rows(ndim, rows, width, dtype)
    if ready(out, ndim, rows, width, dtype, True) != NULL:
        return out
    y = owner._checked_out(out, (rows, width)[2 - ndim:])
    if ready(y, ndim, rows, width, dtype, True) == NULL:
        raise TypeError("out: expected an array that the kernels can write")
    return y


cdef object apart_from(x, y):
    """`x`, or a copy of it where results would be written over what is still to be read."""
    cdef const char *a = cnp.PyArray_BYTES(x)
    cdef const char *b = cnp.PyArray_BYTES(y)
    if a < b + cnp.PyArray_NBYTES(y) and b < a + cnp.PyArray_NBYTES(x):
        return cnp.PyArray_NewCopy(x, cnp.NPY_CORDER)
    return x


cdef object give_results(y, out):
    """The caller's array with the results, or theirs."""
    if out is None:
        return y
    if y is not out:
        out[...] = y
    return out


@cython.auto_pickle(False)
cdef class StreamBase:
    """The part of `cylstm.streams.Stream` that runs at every step.

    A subclass has `_checked_frames(x, rows)`, `_checked_attention(attention, rows)` and
    `_checked_out(out, shape)`, which check what does not come as the kernels read it: the first
    returns an array of shape (rows, inputs) or (inputs,) that does, the second one of shape
    (rows,), the third one to write into, which is copied to `out` if it is another one.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    batch_size : int
    num_threads : int or None
    number : callable
        From `num_threads` to how many threads a step may use; asked at each step if it is None.
    """
    cdef readonly object layer
    cdef readonly Py_ssize_t batch_size
    cdef readonly object num_threads
    cdef int threads
    cdef object number
    cdef StepPlan plan
    cdef Claim claim

    def __init__(self, layer, Py_ssize_t batch_size, num_threads, number):
        if self.plan is not None:
            raise TypeError("stream: expected to be made once")
        self.layer, self.batch_size, self.number = layer, batch_size, number
        self.num_threads, self.threads = num_threads, number(num_threads)
        self.plan = StepPlan(layer._weights(False), batch_size, self.threads)

    def step(self, x, out=None, attention=None):
        """Feed one frame to every row of the stream, and go on to the next state.

        The outputs, and the state afterwards, have the bits that a call on the whole sequence
        gives. With `out` nothing is allocated, if `x` and `out` are C-contiguous arrays of the
        layer's dtype in memory of their own.

        Parameters
        ----------
        x : array-like of shape (B, I), or (I,) if B = 1
            One frame of each row; real numbers of any dtype, cast to the layer's.
        out : ndarray of shape (B, P), or (P,) if x is (I,), optional
            Where to write the outputs. It may share memory with `x`.
        attention : array-like of shape (B,), or a number if B = 1
            How much of each row's update gate is used, 0 to 1: of an AUGRU, and only of one.

        Returns
        -------
        ndarray of shape (B, P), or (P,) if x is (I,)
            `out` if it is given.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the state is as before.
        RuntimeError
            Another thread is at this stream; the state is as it makes it.
        """
        self.enter()
        try:
            return self.run(x, out, attention)
        finally:
            drop_claim(&self.claim)

    cdef StepPlan made(self):
        """The plan as it is."""
        if self.plan is None:
            raise TypeError("stream: expected one made by layer.stream(), got one without a layer")
        return self.plan

    cdef int enter(self) except -1:
        if not take_claim(&self.claim):
            raise RuntimeError("stream: expected one call at a time, got one during another")
        return 0

    cdef run(self, x, out, attention):
        """Do what `step` says, as the one thread that may."""
        cdef StepPlan plan = self.renewed()
        cdef int dtype = type_of(plan.rows.level.itemsize)
        cdef Py_ssize_t rows = plan.count, ndim = 2
        if cnp.PyArray_Check(x) and cnp.PyArray_NDIM(x) == 1:
            ndim = 1
        x = take_frames(self, x, ndim, rows, plan.inputs, dtype)
        ndim = cnp.PyArray_NDIM(x)
        attention = take_attention(self, attention, rows, plan.attends(), dtype)
        y = take_results(self, out, ndim, rows, plan.outputs, dtype)
        x = apart_from(x, y)
        if attention is not None:
            attention = apart_from(attention, y)
        plan.step(x, cnp.PyArray_BYTES(x), cnp.PyArray_BYTES(y), attention)
        return give_results(y, out)

    cdef StepPlan renewed(self):
        """The plan, made anew with the same states if the weights or the threads have changed."""
        cdef StepPlan plan = self.made(), made
        cdef int threads = plan.threads
        if self.num_threads is None and not plan.small():
            threads = self.number(None)
        if self.layer._packed is plan.stack and threads == plan.threads and not plan.spoiled:
            return plan
        made = StepPlan(self.layer._weights(False), plan.count, threads)
        made.take_states(plan)
        self.plan = made
        return made

    def _exclusively(self, call, *arguments):
        """Call what uses `_load` and `_store` while no other thread is at the stream."""
        self.enter()
        try:
            return call(*arguments)
        finally:
            drop_claim(&self.claim)

    def _load(self, rows, states):
        """Set states of rows: intp of shape (n,), and (n, S), all layers' end to end."""
        self.move(rows, states, True)

    def _store(self, rows, states):
        """Copy states of rows, intp of shape (n,), into an array of shape (n, S)."""
        self.move(rows, states, False)

    cdef int move(self, rows, states, bint load) except -1:
        cdef StepPlan plan = self.made()
        cdef Py_ssize_t itemsize = plan.rows.level.itemsize, n = len(rows), i
        cdef char *which = ready(rows, 1, 1, n, cnp.NPY_INTP, False)
        cdef char *data = ready(states, 2, n, plan.width, type_of(itemsize), not load)
        if which == NULL or data == NULL:
            raise ValueError(f"states: expected shape {(n, plan.width)}, got {states.shape}")
        for i in range(n):
            if not 0 <= (<Py_ssize_t *>which)[i] < plan.count:
                raise ValueError(f"rows: expected 0 to {plan.count - 1}, got {rows[i]}")
        for i in range(n):
            if load:
                load_row(&plan.rows, (<Py_ssize_t *>which)[i], data)
            else:
                store_row(&plan.rows, (<Py_ssize_t *>which)[i], data)
            data += plan.width * itemsize
        return 0


@cython.final
@cython.auto_pickle(False)
cdef class Stepper:
    """Steps of a stream's layer from other Cython code, without the GIL: see sequence.pxd.

    It has the weights that the layer has when it is made, and a state of its own, which is that of
    the stream at first.

    Parameters
    ----------
    stream : cylstm.streams.Stream
        From `layer.stream()`.

    Attributes
    ----------
    rows, inputs, outputs, itemsize : int
        Rows of x and y, numbers in each, and bytes of a number.
    """

    def __init__(self, StreamBase stream not None):
        cdef StepPlan plan, old
        if self.plan is not None:
            raise TypeError("stream: expected a Stepper to be made once")
        stream.enter()
        try:
            old = stream.renewed()
            if old.attends():
                raise TypeError("stream: expected one of a layer that reads x alone, got attention")
            plan = StepPlan(old.stack, old.count, 1)
            plan.take_states(old)
        finally:
            drop_claim(&stream.claim)
        self.rows, self.inputs, self.outputs = plan.count, plan.inputs, plan.outputs
        self.itemsize, self.plan, self.at = plan.rows.level.itemsize, plan, &plan.rows

    cdef int step(self, const void *x, void *y) noexcept nogil:
        if self.at == NULL or not take_claim(<Claim *>&self.in_use):
            return -1
        step_rows(<StepRows *>self.at, self.rows, <const char *>x, <char *>y, NULL)
        drop_claim(<Claim *>&self.in_use)
        return 0

    def give_state(self, StreamBase stream not None):
        """Set the state of a stream to this one's.

        Parameters
        ----------
        stream : cylstm.streams.Stream
            Of a layer of the same sizes and as many rows.

        Raises
        ------
        ValueError
            It has other sizes.
        RuntimeError
            Another thread is at the stream, or in a step of this.
        """
        if self.at == NULL or not take_claim(<Claim *>&self.in_use):
            raise RuntimeError("stepper: expected one call at a time, got one during another")
        try:
            stream.enter()
            try:
                stream.renewed().take_states(self.plan)
            finally:
                drop_claim(&stream.claim)
        finally:
            drop_claim(<Claim *>&self.in_use)
