# A call like the one before, as in a stream: nothing to plan, nothing to allocate but the results.

cdef enum:
    ANY_NUMBER = 0  # of threads: a small call stays on one anyway

ctypedef struct Arrays:
    View x
    View h      # of all layers, as is the next; no data are zeros
    View c


@cython.final
@cython.auto_pickle(False)
cdef class Stack:
    """Packed weights of all layers, and their last call, to be run again on other values.

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
    cdef Claim claim    # of the two attributes that follow
    cdef list calls     # one per layer; None if there are none
    cdef bint small     # whether they stay on one thread anyway

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
        cdef bint small = True
        if len(calls) != len(self.layers):
            return
        for depth in range(len(calls)):
            call = calls[depth]
            if call is None or call.weights is not self.layers[depth] or not runs_again(call) \
                    or not goes_with(call, first):
                return
            first = first or call
            small = small and estimate(call) < SERIAL_SECONDS
        if let_go(calls) and take_claim(&self.claim):
            self.calls, self.small = calls[:], small
            drop_claim(&self.claim)

    def again(self, x, state, bint batch_first, num_threads):
        """Run the last call again.

        Parameters
        ----------
        x : ndarray of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I)
        state : None, or for an LSTM tuple of (h, c), otherwise h
            h is an ndarray of shape (L * D, B, P), or (L * D, P) if x is (T, I), or None; c is
            one with H in place of P, or None.
        batch_first : bool
        num_threads : int or None

        Returns
        -------
        tuple of (y, state) or None
            None, with nothing done, if there is no such call or if anything is not exactly as
            described (C-contiguous, of the weights' dtype) or not shaped as then.
        """
        # A call from another thread, or from a signal handler, meanwhile is planned as usual.
        if not take_claim(&self.claim):
            return None
        try:
            return self.run(x, state, batch_first, num_threads)
        finally:
            drop_claim(&self.claim)

    cdef run(self, x, state, bint batch_first, num_threads):
        """Do what `again` says, as the one thread that may."""
        cdef list calls = self.calls
        cdef Call call
        cdef Sequence *s
        cdef Arrays given, found
        cdef Py_ssize_t itemsize, depth, n, ndim
        cdef bint rows_first
        cdef int threads = ANY_NUMBER
        cdef Clock clock
        if calls is None or not cnp.PyArray_CheckExact(x) or not 2 <= cnp.PyArray_NDIM(x) <= 3:
            return None
        if not self.small or (num_threads is not None
                              and (type(num_threads) is not int or num_threads < 1)):
            threads = self.number(num_threads)
        ndim = cnp.PyArray_NDIM(x)
        rows_first = batch_first and ndim == 3
        if not self.fits(&given, x, state, ndim, rows_first, threads):
            return None
        self.calls = None       # unless they run to their end
        call = calls[0]
        s, itemsize, n = &call.seq[0], call.level.itemsize, len(calls) * call.directions
        h = made(&found.h, ndim, False, n, s.rows, s.w.outputs, itemsize)
        c = None
        if s.c != NULL:
            c = made(&found.c, ndim, False, n, s.rows, s.w.hidden, itemsize)
        for depth in range(len(calls)):
            call = calls[depth]
            y = made(&found.x, ndim, rows_first, s.steps, s.rows, call.directions * s.w.outputs,
                     itemsize)
            call.x = x      # for a thread that is left behind
            take_arrays(call, &given, &found.x, depth)
            clock = Clock(-1)
            go(<Run *>call.job, call, call.team, &clock)
            give_states(call, &found, depth)
            given.x, x = found.x, y
        if let_go(calls):
            self.calls = calls
        return y, (h if c is None else (h, c))

    cdef bint fits(self, Arrays *given, x, state, Py_ssize_t ndim, bint rows_first,
                   int threads) except -1:
        """Whether there is a call, for as many threads, and all arrays are exactly as described."""
        cdef Call call
        cdef Sequence *s
        cdef Py_ssize_t itemsize, n
        if threads != ANY_NUMBER:
            for call in self.calls:
                if team_size(call, threads) != call.team:
                    return False
        call = self.calls[0]
        s, itemsize, n = &call.seq[0], call.level.itemsize, len(self.calls) * call.directions
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
