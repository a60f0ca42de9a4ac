# Calls of all layers in memory that is kept for the next call shaped so, as in a stream.

cdef enum:
    ANY_NUMBER = 0  # of threads: a small call stays on one anyway
    KEPT_PLANS = 4


@cython.final
@cython.auto_pickle(False)
cdef class Plan:
    """Calls of one shape, one per layer, with order of rows, memory and schedule: no values."""
    cdef list calls
    cdef Py_ssize_t steps
    cdef Py_ssize_t rows
    cdef Pick pick
    cdef Py_ssize_t every
    cdef bint counted   # laid out anew each time, because rows have lengths of their own
    cdef bint small     # stays on one thread anyway
    cdef bint ready     # has a schedule
    cdef bint large     # takes more memory than is kept
    cdef bint busy      # running, or left to a thread that may still be in it

    cdef bint serves(self, Request a) noexcept:
        """Whether calls are planned for such arguments, or can be."""
        if self.busy or self.counted != (a.lengths is not None):
            return False
        return self.counted or (self.steps == a.steps and self.rows == a.rows
                                and self.pick == a.pick and self.every == a.every)

    cdef int lay_out(self, Request a, bint taped=False) except -1:
        """Memory for all calls, in that of the last time."""
        cdef Call call
        cdef Py_ssize_t depth
        self.steps, self.rows, self.pick, self.every = a.steps, a.rows, a.pick, a.every
        self.small, self.ready = True, False
        for depth in range(a.layers):
            call = self.calls[depth]
            if depth == a.layers - 1:
                call.pick, call.every, call.y_starts = a.pick, a.every, a.y_starts
            call.mask, call.starts = a.mask, a.starts
            call.frames = a.steps if a.starts is None else a.total
            call.width = a.rows if a.starts is None else 1
            call.lay_out(a.steps, a.rows, counts_of(a.lengths, a.rows), taped)
            self.small = self.small and estimate(call) < SERIAL_SECONDS
        return 0

    cdef bint is_for(self, int threads) except -1:
        """Whether it has a schedule, for as many threads as the calls are worth."""
        cdef Call call
        if not self.ready or self.small:
            return self.ready
        for call in self.calls:
            if call.team != team_size(call, threads):
                return False
        return True

    cdef int schedule(self, int threads) except -1:
        """Plan the work of so many threads, in calls just laid out."""
        cdef Call call
        cdef Run *run
        for call in self.calls:
            run = new_run(call)
            call.team = 1 if self.small else team_size(call, threads)
            plan_forward(run, call, call.team)
            run.step0, run.step1 = 0, call.seq[0].steps
            call.job = &run.job
            self.large = self.large or call.arena.total > AGAIN_BYTES
        self.ready = True
        return 0

    cdef bint let_go(self) noexcept:
        """Let go of the caller's arrays; False if a thread left behind may still read them."""
        for call in self.calls:
            if (<Call>call).job.state != IDLE:
                return False
        for call in self.calls:
            (<Call>call).x = None
        return True


@cython.final
@cython.auto_pickle(False)
cdef class Stack:
    """Packed weights of all layers, and what their last calls have planned.

    Parameters
    ----------
    layers : list of list of Packed
        Of each layer one per direction.
    number : callable
        From `num_threads` as the caller gave it to how many threads a call may use. Not asked by
        calls so small that they stay on one thread.
    plain : bool
        Whether a layer's outputs, both directions side by side, are what the next one reads and
        the caller gets, and states that are not given are zeros. Otherwise `run` does nothing.
    batch_first : bool
        Layout of x, and of the outputs.
    """
    cdef list weights
    cdef readonly bint backward     # whether they are packed for it
    cdef object number
    cdef bint plain
    cdef bint batch_first
    cdef Claim claim    # of what follows
    cdef Request request
    cdef list plans     # the last used first

    def __cinit__(self):
        self.weights, self.plans, self.request = [], [], Request.__new__(Request)

    def __init__(self, list layers not None, number, bint plain=True, bint batch_first=False):
        cdef list weights = [packed[:] for packed in layers]
        cdef Packed first = packed_of(weights[0], 0) if weights else None
        self.weights, self.number, self.batch_first = weights, number, batch_first
        self.backward = first is not None
        self.plain = plain and first is not None and not first.w.cell.attends
        for layer in weights:
            self.plain = self.plain and follows(layer, first, len(<list>weights[0]))
            self.backward = self.backward and packed_of(layer, 0).backward

    @property
    def layers(self):
        """A list of those of each layer, one per direction."""
        return [packed[:] for packed in self.weights]

    def run(self, x, state, lengths, mask, reset, return_, out, state_out, num_threads):
        """Run all layers.

        Parameters
        ----------
        x : ndarray of shape (T, B, I), (B, T, I) if the layer is `batch_first`, or (T, I); or list
            Copied unless it is C-contiguous and of the weights' dtype. A list has an ndarray of
            shape (T_i, I) for each row.
        state : None, or the state, or a tuple if there are several
            Each is None or an ndarray of shape (L * D, B, size), or (L * D, size) if x is (T, I),
            where size is P for the first and H for others. C-contiguous, of the weights' dtype.
        lengths : None, ndarray of integers of shape (B,), or list of int
        mask : None or ndarray of bool of shape (T, B), (B, T) or (T,), as x
            Which steps are read; not with `lengths`.
        reset : None or ndarray of bool, as `mask`
            For a single step of layers that read forwards: rows whose state does not count.
        return_ : str or int
            As `cylstm.Recurrent` takes it.
        out : None or ndarray
            OUT, shaped as the outputs; None makes one. In memory apart from what is read.
        state_out : None, or as `state`
            OUT; None makes one. It may be `state` itself.
        num_threads : int or None

        Returns
        -------
        tuple of (y, state) or None
            None, with nothing done, if anything is not exactly as described, or while another call
            is running.
        """
        # A call from another thread, or from a signal handler, meanwhile is planned by itself.
        if not self.plain or not take_claim(&self.claim):
            return None
        try:
            if self.reads(self.request, x, state, lengths, mask, reset, return_, out, state_out):
                return self.answer(self.request, out, state_out, num_threads)
            return None
        finally:
            self.request.let_go()
            drop_claim(&self.claim)

    def record(self, x, state, lengths, mask, return_, out, num_threads):
        """Run all layers, keeping their tapes; in memory that nothing else will use.

        Parameters
        ----------
        x, state, lengths, mask, return_, out, num_threads
            As `run` takes them, but for lists as x.

        Returns
        -------
        tuple of (y, state, calls, x, lengths) or None
            Of each layer a Call; x and lengths, or the steps that `mask` has, as they were read.
            None, with nothing done, if anything is not exactly as described.
        """
        cdef Request a
        cdef Plan plan
        if type(x) is list:
            return None
        a = Request.__new__(Request)
        if not self.plain or not self.reads(a, x, state, lengths, mask, None, return_, out, None):
            return None
        if not self.backward:
            raise ValueError("weights: expected those packed for backward, for a tape")
        plan = self.new_plan(a)
        plan.lay_out(a, True)
        plan.schedule(self.threads_for(plan, num_threads))
        y, state = pass_through(a, plan, out, None)
        return y, state, plan.calls, a.x, a.lengths

    cdef bint reads(self, Request a, x, state, lengths, mask, reset, return_, out,
                    state_out) except -1:
        """Look at all arguments; False if any is not as `run` says."""
        cdef Packed packed = <Packed>(<list>self.weights[0])[0]
        a.w, a.itemsize, a.layers = &packed.w, packed.level.itemsize, len(self.weights)
        a.directions = len(<list>self.weights[0])
        return a.read(x, state, lengths, mask, reset, return_, self.batch_first) and (
            (out is None and state_out is None) or a.takes(out, state_out))

    cdef answer(self, Request a, out, state_out, num_threads):
        """Do what `run` says, as the one thread that may."""
        cdef Plan plan = self.plan_of(a)
        cdef int threads = self.threads_for(plan, num_threads)
        if not plan.is_for(threads):
            if plan.ready:
                plan.lay_out(a)
            plan.schedule(threads)
        plan.busy = True    # unless it runs to its end
        results = pass_through(a, plan, out, state_out)
        plan.busy = not plan.let_go()
        if plan.large:
            self.plans.remove(plan)
        return results

    cdef int threads_for(self, Plan plan, num_threads) except -1:
        """How many threads may be used, if that makes a difference."""
        if plan.small and (num_threads is None
                           or (type(num_threads) is int and num_threads > 0)):
            return ANY_NUMBER
        return self.number(num_threads)

    cdef Plan plan_of(self, Request a):
        """A plan for such a call, which is the first from now on."""
        cdef Plan plan
        cdef Py_ssize_t i
        for i in range(len(self.plans)):
            plan = <Plan>self.plans[i]
            if plan.serves(a):
                if i > 0:
                    del self.plans[i]
                    self.plans.insert(0, plan)
                if plan.counted:
                    plan.lay_out(a)
                return plan
        plan = self.new_plan(a)
        plan.lay_out(a)
        self.plans = [plan, *[kept for kept in self.plans if not (<Plan>kept).busy]]
        del self.plans[KEPT_PLANS:]
        return plan

    cdef Plan new_plan(self, Request a):
        """One to be laid out."""
        cdef Plan plan = Plan.__new__(Plan)
        plan.counted = a.lengths is not None
        plan.calls = [new_call(layer) for layer in self.weights]
        return plan


cdef Call new_call(list weights):
    cdef Call call = Call.__new__(Call)
    call.begin(weights, 0, 0, None, Arena())
    return call


cdef pass_through(Request a, Plan plan, out, state_out):
    """Run all layers on values."""
    cdef Call call
    cdef Py_ssize_t depth
    cdef View x = a.at_x, y
    cdef Clock clock
    cdef bint sparse
    inputs, outputs = a.x, None
    if state_out is None:
        state_out = a.made_states()
    for depth in range(a.layers):
        call = <Call>plan.calls[depth]     # of our own making
        sparse = False
        if depth < a.layers - 1:
            outputs = made_for_steps(a, &y)
        elif out is not None:
            outputs, y = out, a.at_y
        else:
            # Of zeros, pages that are not written cost nothing.
            sparse = a.pick <= EVERY and a.starts is None and 2 * call.entries < a.steps * a.rows
            outputs = made(&y, a.y_ndim, a.rows_first, a.y_steps, a.y_rows, a.y_width, a.itemsize,
                           sparse)
        call.x = inputs     # for a thread that is left behind
        take_values(call, a, depth, &x, &y)
        clock = Clock(-1)
        go(<Run *>call.job, call, call.team, &clock)
        give_states(call, a, depth)
        if depth == a.layers - 1:
            give_outputs(call, a, &y, sparse)
        x, inputs = y, outputs
    if a.starts is not None and a.pick <= EVERY:
        outputs = by_row(a, outputs)
    return outputs, state_out


cdef made_for_steps(Request a, View *y):
    """Outputs between layers."""
    if a.starts is not None:
        return made(y, 2, False, a.total, 1, a.directions * a.w.outputs, a.itemsize)
    return made(y, a.ndim, a.rows_first, a.steps, a.rows, a.directions * a.w.outputs, a.itemsize)


cdef list by_row(Request a, flat):
    """Each row's part of outputs that lie end to end."""
    cdef Py_ssize_t b, start = 0, end
    found = []
    for b in range(a.rows):
        end = start + numbers(a.lengths)[b] // a.every
        found.append(flat[start:end])
        start = end
    return found


cdef void take_values(Call call, Request a, Py_ssize_t depth, View *x, View *y) noexcept:
    """Have a call read and write these arrays, and start from its part of the states."""
    cdef Run *run = <Run *>call.job
    cdef Sequence *s
    cdef Py_ssize_t d, k, at = depth * call.directions
    for d in range(call.directions):
        s = &call.seq[d]
        if depth == 0 and a.starts is not None:
            take_rows_of_list(call, a, d)
        else:
            call.take_x(d, x)
        if s.pick <= EVERY:
            call.take_outputs(d, y, &s.y, s.y_row, &s.y_step)
        for k in range(s.w.states):
            call.take_rows(s.state[k], &a.at_state[k], at + d, width_of(&s.w, k))
            call.forget_rows(s.state[k], a.reset, blocks_of(s, k))
        call.clear_pooled(d)
    run.team_seq.x, run.team_seq.x_step = call.seq[0].x, call.seq[0].x_step


cdef void take_rows_of_list(Call call, Request a, Py_ssize_t d) noexcept:
    """Have one direction read each row where it is."""
    cdef Sequence *s = &call.seq[d]
    cdef Py_ssize_t b
    cdef char *first = cnp.PyArray_BYTES((<list>a.x)[0])
    s.x, s.x_step = first, call.stride(d, &a.at_x)
    for b in range(s.rows):
        s.x_row[b] = cnp.PyArray_BYTES((<list>a.x)[call.row[b]]) - first
        if call.backwards(d):
            s.x_row[b] += max(0, call.length[b] - 1) * a.at_x.outer
        s.x_row[b] //= a.itemsize


cdef void give_states(Call call, Request a, Py_ssize_t depth) noexcept:
    """The final states of one layer."""
    cdef Sequence *s
    cdef Py_ssize_t d, k, at = depth * call.directions
    for d in range(call.directions):
        s = &call.seq[d]
        for k in range(s.w.states):
            call.give_rows(s.state[k], &a.at_new_state[k], at + d, width_of(&s.w, k), True)


cdef int give_outputs(Call call, Request a, View *y, bint sparse) except -1:
    """What is left to write once all steps are done: outputs by row, and zeros where none are."""
    cdef Sequence *s
    cdef Py_ssize_t d
    cdef View at = y[0]
    if a.pick <= EVERY:
        if a.starts is None and not sparse and call.entries < a.steps * a.rows:
            clear_unread(call, y)
        return 0
    at.outer, at.inner = a.w.outputs * a.itemsize, a.y_width * a.itemsize
    for d in range(call.directions):
        s = &call.seq[d]
        if a.pick == FINAL:
            call.give_rows(s.state[0], &at, d, a.w.outputs, True)
        else:
            call.give_rows(s.pooled, &at, d, a.w.outputs, False)
    return 0


cdef bint follows(list packed, Packed first, Py_ssize_t directions) except -1:
    """Whether a layer has states as the first has, and reads what one gives, or is the first."""
    cdef Packed one = packed_of(packed, 0)
    return (one.level == first.level and len(packed) == directions
            and one.w.cell == first.w.cell and one.w.hidden == first.w.hidden
            and one.w.outputs == first.w.outputs
            and (one is first or one.w.inputs == directions * first.w.outputs))
