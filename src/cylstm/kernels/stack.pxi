# A call shaped as one before, as in a stream: nothing to plan, nothing to allocate but the results.

cdef enum:
    ANY_NUMBER = 0  # of threads: a small call stays on one anyway
    KEPT_CALLS = 4  # of different shapes

ctypedef struct Arrays:
    View x
    View h      # of all layers, as is the next; no data are zeros
    View c


@cython.final
@cython.auto_pickle(False)
cdef class Kept:
    """Calls of one pass, to be run again on other values."""
    cdef list calls     # one per layer; None while they run
    cdef bint small     # whether they stay on one thread anyway


@cython.final
@cython.auto_pickle(False)
cdef class Stack:
    """Packed weights of all layers, and their last calls, to be run again on other values.

    Parameters
    ----------
    layers : list of list of Packed
        Of each layer one per direction.
    number : callable
        From `num_threads` as the caller gave it to how many threads a call may use. Not asked by
        calls so small that they stay on one thread.
    """
    cdef readonly list layers
    cdef object number
    cdef Claim claim    # of what follows
    cdef list kept      # of Kept: of each shape one, the last used first

    def __cinit__(self):
        self.kept = []

    def __init__(self, list layers not None, number):
        self.layers, self.number = layers, number

    def keep(self, list calls not None):
        """Take the calls of a pass just finished, if they may be run again.

        Parameters
        ----------
        calls : list of Call
            One per layer, whose outputs, both directions side by side, are the next one's x.
        """
        cdef Call call, first = None
        cdef Kept made = Kept.__new__(Kept)
        made.small = True
        if len(calls) != len(self.layers):
            return
        for depth in range(len(calls)):
            call = calls[depth]
            if call is None or call.weights is not self.layers[depth] or not runs_again(call) \
                    or not goes_with(call, first):
                return
            first = first or call
            made.small = made.small and estimate(call) < SERIAL_SECONDS
        if not let_go(calls) or not take_claim(&self.claim):
            return
        made.calls = calls[:]
        self.kept = [made, *[kept for kept in self.kept if not alike_shaped(kept, first)]]
        del self.kept[KEPT_CALLS:]
        drop_claim(&self.claim)

    def again(self, x, state, bint batch_first, out, num_threads):
        """Run the last call of the same shape again.

        Parameters
        ----------
        x : ndarray of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I)
            Copied unless it is C-contiguous and of the weights' dtype.
        state : None, or for an LSTM tuple of (h, c), otherwise h
            h is an ndarray of shape (L * D, B, P), or (L * D, P) if x is (T, I), or None; c is
            one with H in place of P, or None.
        batch_first : bool
        out : ndarray or None
            OUT, shaped as x with the outputs' width; None makes one.
        num_threads : int or None

        Returns
        -------
        tuple of (y, state) or None
            None, with nothing done, if there is no such call or if anything is not exactly as
            described (C-contiguous, of the weights' dtype, `out` in memory of its own).
        """
        # A call from another thread, or from a signal handler, meanwhile is planned as usual.
        if not take_claim(&self.claim):
            return None
        try:
            return self.run(x, state, batch_first, out, num_threads)
        finally:
            drop_claim(&self.claim)

    cdef run(self, x, state, bint batch_first, out, num_threads):
        """Do what `again` says, as the one thread that may."""
        cdef Kept kept = self.find(x, batch_first)
        cdef list calls
        cdef Call call
        cdef Sequence *s
        cdef Arrays given, found
        cdef Py_ssize_t itemsize, depth, n, ndim
        cdef bint rows_first
        cdef int threads = ANY_NUMBER
        cdef Clock clock
        if kept is None:
            return None
        calls, ndim = kept.calls, cnp.PyArray_NDIM(x)
        rows_first = batch_first and ndim == 3
        if not kept.small or (num_threads is not None
                              and (type(num_threads) is not int or num_threads < 1)):
            threads = self.number(num_threads)
        call = calls[0]
        x = as_contiguous(x, call.level.itemsize)
        if x is None or not fits(calls, &given, x, state, ndim, rows_first, threads) or (
                out is not None and not takes(calls, &given, &found.x, out, ndim, rows_first)):
            return None
        kept.calls = None       # unless they run to their end
        s, itemsize, n = &call.seq[0], call.level.itemsize, len(calls) * call.directions
        h = made(&found.h, ndim, False, n, s.rows, s.w.outputs, itemsize)
        c = None
        if s.c != NULL:
            c = made(&found.c, ndim, False, n, s.rows, s.w.hidden, itemsize)
        for depth in range(len(calls)):
            call = calls[depth]
            if out is not None and depth == len(calls) - 1:
                y = out
                takes(calls, &given, &found.x, out, ndim, rows_first)
            else:
                y = made(&found.x, ndim, rows_first, s.steps, s.rows,
                         call.directions * s.w.outputs, itemsize)
            call.x = x      # for a thread that is left behind
            take_arrays(call, &given, &found.x, depth)
            clock = Clock(-1)
            go(<Run *>call.job, call, call.team, &clock)
            give_states(call, &found, depth)
            given.x, x = found.x, y
        if let_go(calls):
            kept.calls = calls
        return y, (h if c is None else (h, c))

    cdef Kept find(self, x, bint batch_first):
        """The calls that were shaped so, which come first from now on."""
        cdef Py_ssize_t i, ndim, steps, rows = 1
        cdef Kept kept
        cdef Call call
        if not cnp.PyArray_CheckExact(x) or not 2 <= cnp.PyArray_NDIM(x) <= 3:
            return None
        ndim = cnp.PyArray_NDIM(x)
        steps = cnp.PyArray_DIM(x, 1 if batch_first and ndim == 3 else 0)
        if ndim == 3:
            rows = cnp.PyArray_DIM(x, 0 if batch_first else 1)
        for i in range(len(self.kept)):
            kept = self.kept[i]
            if kept.calls is None:
                continue
            call = kept.calls[0]
            if call.seq[0].steps == steps and call.seq[0].rows == rows:
                if i > 0:
                    del self.kept[i]
                    self.kept.insert(0, kept)
                return kept
        return None


cdef bint alike_shaped(Kept kept, Call call) noexcept:
    """Whether calls of the same shape are kept, or none any more."""
    cdef Call other
    if kept.calls is None:
        return True
    other = kept.calls[0]
    return other.seq[0].steps == call.seq[0].steps and other.seq[0].rows == call.seq[0].rows


cdef object as_contiguous(x, Py_ssize_t itemsize):
    """Real numbers as the kernels read them, copied if need be; None for what is not that."""
    if cnp.PyArray_TYPE(x) == type_of(itemsize) and cnp.PyArray_IS_C_CONTIGUOUS(x) \
            and cnp.PyArray_ISBEHAVED_RO(x):
        return x
    if not (cnp.PyArray_ISINTEGER(x) or cnp.PyArray_ISFLOAT(x)):
        return None
    return cnp.PyArray_FROMANY(x, type_of(itemsize), 0, 0,
                               cnp.NPY_ARRAY_CARRAY_RO | cnp.NPY_ARRAY_FORCECAST)


cdef bint fits(list calls, Arrays *given, x, state, Py_ssize_t ndim, bint rows_first,
               int threads) except -1:
    """Whether calls are for as many threads, and all arrays exactly as described."""
    cdef Call call
    cdef Sequence *s
    cdef Py_ssize_t itemsize, n
    if threads != ANY_NUMBER:
        for call in calls:
            if team_size(call, threads) != call.team:
                return False
    call = calls[0]
    s, itemsize, n = &call.seq[0], call.level.itemsize, len(calls) * call.directions
    h, c = state, None
    if s.c != NULL and state is not None:
        if type(state) is not tuple or len(<tuple>state) != 2:
            return False
        h, c = <tuple>state
    given.h.data = given.c.data = NULL
    return (as_made(&given.x, x, ndim, rows_first, s.steps, s.rows, s.w.inputs, itemsize)
            and (h is None
                 or as_made(&given.h, h, ndim, False, n, s.rows, s.w.outputs, itemsize))
            and (c is None
                 or as_made(&given.c, c, ndim, False, n, s.rows, s.w.hidden, itemsize)))


cdef bint takes(list calls, Arrays *given, View *y, out, Py_ssize_t ndim,
                bint rows_first) noexcept:
    """Whether `out` is an array for the outputs, apart from what is read, and where it is."""
    cdef Call call = calls[len(calls) - 1]
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t itemsize = call.level.itemsize, width = call.directions * s.w.outputs
    cdef Py_ssize_t states = len(calls) * call.directions * s.rows
    if not as_made(y, out, ndim, rows_first, s.steps, s.rows, width, itemsize) \
            or not cnp.PyArray_ISWRITEABLE(out):
        return False
    call = calls[0]
    width *= s.steps * s.rows * itemsize
    return (apart(y, width, &given.x, s.steps * s.rows * call.seq[0].w.inputs * itemsize)
            and apart(y, width, &given.h, states * s.w.outputs * itemsize)
            and apart(y, width, &given.c, states * s.w.hidden * itemsize))


cdef bint apart(View *a, Py_ssize_t size, View *b, Py_ssize_t other) noexcept:
    """Whether contiguous arrays of so many bytes share none."""
    return b.data == NULL or a.data + size <= b.data or b.data + other <= a.data


cdef bint runs_again(Call call) noexcept:
    """Whether a call may be run again: a finished plain pass over whole rows, of little memory."""
    return (call.whole and call.extras is None and call.seq[0].tape == NULL and call.job != NULL
            and call.arena.total <= AGAIN_BYTES)


cdef bint let_go(list calls) noexcept:
    """Let go of the caller's arrays; False if a thread left behind may still read them."""
    cdef Call call
    for call in calls:
        if call.job.state != IDLE:
            return False
    for call in calls:
        call.x = None
    return True


cdef bint goes_with(Call call, Call first) noexcept:
    """Whether the call's states are in the same arrays as the first layer's."""
    cdef Weights *w = &call.seq[0].w
    cdef Weights *other
    if first is None:
        return True
    other = &first.seq[0].w
    return (call.level == first.level and call.directions == first.directions
            and call.seq[0].steps == first.seq[0].steps and call.seq[0].rows == first.seq[0].rows
            and w.cell == other.cell and w.hidden == other.hidden and w.outputs == other.outputs
            and w.inputs == first.directions * other.outputs)


cdef void take_arrays(Call call, Arrays *given, View *y, Py_ssize_t depth) noexcept:
    """Have a call read and write other arrays than last time."""
    cdef Run *run = <Run *>call.job
    cdef Sequence *s
    cdef Py_ssize_t d, at = depth * call.directions
    for d in range(call.directions):
        s = &call.seq[d]
        s.x, s.x_step = given.x.data, call.stride(d, &given.x)
        s.y, s.y_step = y.data + d * s.w.outputs * call.level.itemsize, call.stride(d, y)
        call.place_rows(s.x_row, &given.x, s.w.reverse)
        call.place_rows(s.y_row, y, s.w.reverse)
        call.take_rows(s.h, &given.h, at + d, s.w.outputs)
        if s.c != NULL:
            call.take_rows(s.c, &given.c, at + d, s.w.hidden)
    run.team_seq.x, run.team_seq.x_step = call.seq[0].x, call.seq[0].x_step


cdef void give_states(Call call, Arrays *found, Py_ssize_t depth) noexcept:
    cdef Sequence *s
    cdef Py_ssize_t d, at = depth * call.directions
    for d in range(call.directions):
        s = &call.seq[d]
        call.give_rows(s.h, &found.h, at + d, s.w.outputs, True)
        if s.c != NULL:
            call.give_rows(s.c, &found.c, at + d, s.w.hidden, True)
