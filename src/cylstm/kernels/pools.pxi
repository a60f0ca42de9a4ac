# Pools: a table of states, of which any rows are stepped together.
#
# A step copies the states of some rows at a time into a StepPlan, runs it and copies them back, so
# that what is worked on stays in cache; threads claim such units of rows. While a step is under
# way, without the GIL, its streams are marked as busy, and nobody else touches their rows of the
# table. A step is all or nothing, so it does not answer signals half way.

cdef enum:
    SLOT_BITS = 24  # of an id: the slot; above them, how many streams had been opened before
    MOST_THREADS = 256
    CLOSED = -1     # in place of an id
    NAMED_IDS = 8   # in a message

cdef extern from * nogil:
    """
    /* Rows of a pool that are stepped together: enough for every weight load to serve many, whole
     * tiles, and of no more memory than stays in cache. */
    #define UNIT_OF_POOL 60
    """
    const Py_ssize_t UNIT_OF_POOL

cdef cnp.int64_t streams_opened = 0  # in any pool of the process: no id comes twice

ctypedef struct PoolJob:
    Job job
    Team team
    StepRows *rows[MOST_THREADS]    # of each thread
    Py_ssize_t count                # of streams, as is the next
    Py_ssize_t unit                 # of those stepped together
    cnp.int32_t *slot               # (count)
    char *states                    # the table
    Py_ssize_t state_size           # bytes of a row, as are the next
    const char *x
    Py_ssize_t x_size
    char *y
    Py_ssize_t y_size
    const char *attention           # or NULL
    Py_ssize_t itemsize             # of a number of it


cdef void pool_work(Job *job, Py_ssize_t rank) noexcept nogil:
    """What each thread does: claim units until there are none left."""
    cdef PoolJob *j = <PoolJob *>job
    cdef StepRows *r = j.rows[rank]
    cdef Py_ssize_t first = team_claim(&j.team) * j.unit, n, i
    while first < j.count:
        n = min(j.unit, j.count - first)
        for i in range(n):
            load_row(r, i, j.states + j.slot[first + i] * j.state_size)
        step_rows(r, n, j.x + first * j.x_size, j.y + first * j.y_size,
                  j.attention + first * j.itemsize if j.attention != NULL else NULL)
        for i in range(n):
            store_row(r, i, j.states + j.slot[first + i] * j.state_size)
        first = team_claim(&j.team) * j.unit


@cython.final
@cython.auto_pickle(False)
cdef class PoolStep:
    """What one step of a pool needs in addition to the table: there is one for each at a time.

    Parameters
    ----------
    stack : Stack
    capacity : int
        Of the pool.
    """
    cdef PoolStep next      # of those that no step is using
    cdef Stack stack
    cdef list plans         # of one thread each
    cdef Arena arena
    cdef PoolJob *job
    cdef cnp.int32_t *slot  # (capacity)
    cdef Py_ssize_t unit

    def __init__(self, Stack stack not None, Py_ssize_t capacity):
        self.stack, self.arena, self.plans = stack, Arena(), []
        self.slot = <cnp.int32_t *>self.arena.room(capacity, sizeof(cnp.int32_t))
        self.job = <PoolJob *>self.arena.room(1, sizeof(PoolJob), True)
        self.unit = min(capacity, UNIT_OF_POOL)
        self.employ(1)

    cdef int employ(self, Py_ssize_t threads) except -1:
        """Have plans for so many threads."""
        cdef StepPlan plan
        while len(self.plans) < threads:
            plan = StepPlan(self.stack, self.unit, 1)
            self.job.rows[len(self.plans)] = &plan.rows
            self.plans.append(plan)
        return 0

    cdef Py_ssize_t divide(self, Py_ssize_t count, int threads) except -1:
        """Cut `count` rows into units; how many threads are to go through them."""
        cdef PoolJob *j = self.job
        j.count, j.unit = count, self.unit
        if threads == 1 or self.small(count):
            return 1
        # Several for each thread, so that one that is kept waiting holds up little.
        j.unit = max(MANY_ROWS, min(j.unit, ceil_of(count, CLAIMS * threads)))
        threads = min(threads, MOST_THREADS, ceil_of(count, j.unit))
        self.employ(threads)
        return threads

    cdef bint small(self, Py_ssize_t count) noexcept:
        """Whether the step is over sooner than the GIL, or work, is handed to another thread."""
        cdef StepPlan plan = self.plans[0]
        return plan.seconds * count < SERIAL_SECONDS * self.unit

    cdef void run(self, const char *x, char *y, attention, char *states,
                  Py_ssize_t threads) noexcept:
        """The work that has been divided."""
        cdef PoolJob *j = self.job
        cdef StepPlan plan = self.plans[0]
        cdef Py_ssize_t itemsize = plan.rows.level.itemsize
        j.job.work = pool_work
        j.slot, j.states, j.state_size = self.slot, states, plan.width * itemsize
        j.x, j.x_size, j.y, j.y_size = x, plan.inputs * itemsize, y, plan.outputs * itemsize
        j.attention = NULL if attention is None else cnp.PyArray_BYTES(attention)
        j.itemsize = itemsize
        team_init(&j.team)
        if self.small(j.count):
            pool_work(&j.job, 0)
            return
        with nogil:
            do_together(&j.job, threads - 1)


ctypedef struct Slot:
    cnp.int64_t id      # of the stream there; CLOSED
    double used         # when it was last used
    cnp.int32_t next    # of a closed slot: the one closed before it, or -1
    cnp.int32_t busy    # whether a step is under way


@cython.auto_pickle(False)
cdef class PoolBase:
    """The part of `cylstm.streams.StreamPool` that is compiled: the table, and steps.

    A subclass has `_checked_ids(ids)`, `_checked_frames(x, rows)`, `_checked_out(out, shape)` and
    `_checked_attention(attention, rows)`, which check what does not come as the kernels read it,
    and return what does.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    capacity : int
    clock : callable or None
        Seconds as a float; None is the system's monotonic clock.
    number : callable
        From `num_threads` to how many threads a step may use.
    """
    cdef readonly object layer
    cdef readonly Py_ssize_t capacity
    cdef object clock
    cdef object number
    cdef PoolStep spare         # the first of those that no step is using
    cdef Arena arena
    cdef char *states           # (capacity, width)
    cdef Slot *slots            # (capacity)
    cdef Py_ssize_t width       # elements of a state
    cdef Py_ssize_t itemsize
    cdef Py_ssize_t inputs
    cdef Py_ssize_t outputs
    cdef bint attends           # whether the cells read a number for each row beside x
    cdef Py_ssize_t opened      # streams that are open
    cdef Py_ssize_t reached     # slots that have ever been used: the first ones
    cdef cnp.int32_t free       # the slot closed last, or -1

    def __cinit__(self, *_, **__):
        self.free = -1

    def __init__(self, layer, Py_ssize_t capacity, clock, number):
        cdef PoolStep step
        cdef StepPlan plan
        if self.slots != NULL or not 1 <= capacity <= 1 << SLOT_BITS:
            raise ValueError(f"capacity: expected 1 to {1 << SLOT_BITS}, got {capacity}")
        step = PoolStep(layer._weights(False), capacity)
        plan = step.plans[0]
        self.layer, self.capacity, self.clock, self.number = layer, capacity, clock, number
        self.width, self.itemsize = plan.width, plan.rows.level.itemsize
        self.inputs, self.outputs, self.attends = plan.inputs, plan.outputs, plan.attends()
        self.arena = Arena()
        # Not cleared: the system gives memory when a slot is first used.
        self.states = <char *>self.arena.room(capacity, self.width * self.itemsize)
        self.slots = <Slot *>self.arena.room(capacity, sizeof(Slot))
        self.spare = step

    def __len__(self):
        """How many streams are open."""
        return self.opened

    def step(self, ids, x, out=None, *, attention=None, num_threads=None):
        """Feed one frame to each of some streams, and go on to their next states.

        A stream's outputs and states have the bits it would have alone. With `out` nothing is
        allocated, if `ids`, `x` and `out` are C-contiguous arrays of int64 and of the layer's
        dtype, `out` in memory of its own. A step is all or nothing, so that a signal's handler runs
        after it.

        Parameters
        ----------
        ids : sequence or array of int of shape (n,)
            Open streams, in any order, each once.
        x : array-like of shape (n, I)
            The frame of each; real numbers of any dtype, cast to the layer's.
        out : ndarray of shape (n, P), optional
            Where to write the outputs. It may share memory with `x`.
        attention : array-like of shape (n,)
            How much of each stream's update gate is used, 0 to 1: of an AUGRU, and only of one.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        ndarray of shape (n, P)
            Outputs in the order of `ids`; `out` if it is given.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit, or an id is not that of an open stream or comes twice. The
            message names the ids, and no stream has been stepped.
        RuntimeError
            Another thread is stepping one of the streams; the others have not been stepped.
        """
        cdef Py_ssize_t n
        cdef int dtype = type_of(self.itemsize)
        cdef double now = self.now()
        if not are_ids(ids):
            ids = self._checked_ids(ids)
            if not are_ids(ids):
                raise TypeError("ids: expected a vector of int64")
        n = cnp.PyArray_DIM(ids, 0)
        x = take_frames(self, x, 2, n, self.inputs, dtype)
        y = take_results(self, out, 2, n, self.outputs, dtype)
        x = apart_from(x, y)
        attention = take_attention(self, attention, n, self.attends, dtype)
        if attention is not None:
            attention = apart_from(attention, y)
        self.run(ids, n, x, y, attention, num_threads, now)
        return give_results(y, out)

    cdef int run(self, ids, Py_ssize_t n, x, y, attention, num_threads, double now) except -1:
        """Do what `step` says, of arrays as the kernels read them."""
        cdef PoolStep step = self.spare
        cdef int threads = 1
        cdef Py_ssize_t i
        if self.slots == NULL:
            raise TypeError("pool: expected one made by layer.pool(), got one without a layer")
        if step is not None:
            self.spare, step.next = step.next, None
        if step is None or step.stack is not self.layer._packed:
            self.spare = None
            step = PoolStep(self.layer._weights(False), self.capacity)
            self.check_sizes(step)
        try:
            if num_threads is not None or not step.small(n):
                threads = self.number(num_threads)
            self.enter(step, <const cnp.int64_t *>cnp.PyArray_DATA(ids), n)
            try:
                threads = step.divide(n, threads)
                step.run(cnp.PyArray_BYTES(x), cnp.PyArray_BYTES(y), attention, self.states,
                         threads)
                for i in range(n):
                    self.slots[step.slot[i]].used = now
            finally:
                for i in range(n):
                    self.slots[step.slot[i]].busy = False
        finally:
            step.next, self.spare = self.spare, step
        return 0

    cdef int check_sizes(self, PoolStep step) except -1:
        cdef StepPlan plan = step.plans[0]
        if (plan.width, plan.inputs, plan.outputs, plan.rows.level.itemsize) != (
                self.width, self.inputs, self.outputs, self.itemsize):
            raise ValueError("layer: expected the same sizes as when the pool was made")
        return 0

    cdef int enter(self, PoolStep step, const cnp.int64_t *ids, Py_ssize_t n) except -1:
        """Mark streams as busy: all of them, or none and raise."""
        cdef Py_ssize_t i, j, slot
        for i in range(n):
            slot = self.find(ids[i])
            if slot < 0 or self.slots[slot].busy:
                for j in range(i):
                    self.slots[step.slot[j]].busy = False
                self.refuse([ids[j] for j in range(n)])
            # At most `capacity` get here: no slot is free twice.
            self.slots[slot].busy, step.slot[i] = True, slot
        return 0

    cdef inline Py_ssize_t find(self, cnp.int64_t id) noexcept:
        """The slot of an open stream; -1 if there is none of this id."""
        cdef Py_ssize_t slot = id & ((1 << SLOT_BITS) - 1)
        return slot if id >= 0 and slot < self.reached and self.slots[slot].id == id else -1

    cdef int refuse(self, list ids) except -1:
        """Say which ids are wrong."""
        unknown = [i for i in ids if self.find(i) < 0]
        if unknown:
            raise ValueError(f"ids: expected open streams of this pool, got {some(unknown)}: "
                             "closed, or never opened")
        if len(set(ids)) < len(ids):
            twice = [i for i in dict.fromkeys(ids) if ids.count(i) > 1]
            raise ValueError(f"ids: expected each stream once, got {some(twice)} more than once")
        busy = [i for i in ids if self.slots[self.find(i)].busy]
        raise RuntimeError(f"ids: expected streams that no other thread is stepping, got "
                           f"{some(busy)}")

    cdef Py_ssize_t slot_of(self, id, bint also_busy=False) except -1:
        """The slot of one open stream, that no step is using unless `also_busy`."""
        cdef Py_ssize_t slot = -1
        if isinstance(id, bool) or not hasattr(id, "__index__"):
            raise TypeError(f"id: expected an integer, got {id!r}")
        if self._is_open(id):
            slot = self.find(id)
        if slot < 0:
            raise ValueError(f"id: expected an open stream of this pool, got {id}: closed, or "
                             "never opened")
        if self.slots[slot].busy and not also_busy:
            raise RuntimeError(f"id: expected a stream that no other thread is stepping, got {id}")
        return slot

    cdef double now(self) except? -1:
        return seconds() if self.clock is None else self.clock()

    def _now(self):
        """Return the time in seconds."""
        return self.now()

    def _is_open(self, id):
        """Whether a stream of this id is open."""
        return 0 <= id < 1 << 63 and self.find(id) >= 0

    def _open(self, initial):
        """Open a stream in state `initial`, (1, S) or None for zeros; -1 if there is no slot."""
        global streams_opened
        cdef double now = self.now()
        cdef char *data = NULL
        cdef Py_ssize_t slot = self.free
        if initial is not None:
            data = self.row_of(initial, False)
        if slot >= 0:
            self.free = self.slots[slot].next
        elif self.reached < self.capacity:
            slot = self.reached
            self.reached += 1
        else:
            return -1
        self.set_state(slot, data)
        self.slots[slot] = Slot(streams_opened << SLOT_BITS | slot, now, -1, False)
        streams_opened += 1
        self.opened += 1
        return self.slots[slot].id

    cdef char *row_of(self, state, bint written) except NULL:
        cdef char *data = ready(state, 2, 1, self.width, type_of(self.itemsize), written)
        if data == NULL:
            raise ValueError(f"state: expected shape {(1, self.width)}, got {state!r}")
        return data

    cdef void set_state(self, Py_ssize_t slot, const char *state) noexcept:
        cdef Py_ssize_t size = self.width * self.itemsize
        if state == NULL:
            memset(self.states + slot * size, 0, size)
        else:
            memcpy(self.states + slot * size, state, size)

    def _load(self, id, state):
        """Set the state of a stream: (1, S), or None for zeros."""
        cdef double now = self.now()
        cdef char *data = NULL
        if state is not None:
            data = self.row_of(state, False)
        cdef Py_ssize_t slot = self.slot_of(id)
        self.set_state(slot, data)
        self.slots[slot].used = now

    def _store(self, id, state):
        """Copy the state of a stream into an array of shape (1, S)."""
        cdef char *data = self.row_of(state, True)
        cdef Py_ssize_t size = self.width * self.itemsize
        memcpy(data, self.states + self.slot_of(id) * size, size)

    def _touch(self, id):
        """Note that a stream is used, be it in the middle of a step; return when."""
        cdef double now = self.now()
        self.slots[self.slot_of(id, True)].used = now
        return now

    def _close(self, id):
        """Close a stream that no step is using."""
        self.vacate(self.slot_of(id))

    cdef void vacate(self, Py_ssize_t slot) noexcept:
        self.slots[slot].id, self.slots[slot].next = CLOSED, self.free
        self.free = slot
        self.opened -= 1

    def idle(self, id):
        """Return how many seconds ago a stream was last used: opened, fed, or its state set.

        Parameters
        ----------
        id : int

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        """
        cdef double now = self.now()
        return now - self.slots[self.slot_of(id, True)].used

    def _close_idle(self, double seconds):
        """Close streams that have been idle for so long, and return their ids."""
        cdef double now = self.now()
        cdef Py_ssize_t slot
        cdef Slot *s
        closed = []
        for slot in range(self.reached):
            s = &self.slots[slot]
            if s.id != CLOSED and not s.busy and now - s.used >= seconds:
                closed.append(s.id)
                self.vacate(slot)
        return closed

    def _open_ids(self):
        """Return the ids of all open streams."""
        return [self.slots[slot].id for slot in range(self.reached)
                if self.slots[slot].id != CLOSED]

    def _after_fork(self):
        """In a child: other threads' steps will never end here, so their streams are closed."""
        cdef Py_ssize_t slot
        for slot in range(self.reached):
            if self.slots[slot].busy:
                self.slots[slot].busy = False
                self.vacate(slot)


cdef bint are_ids(ids) noexcept:
    return (cnp.PyArray_CheckExact(ids) and cnp.PyArray_NDIM(ids) == 1
            and cnp.PyArray_TYPE(ids) == cnp.NPY_INT64 and cnp.PyArray_IS_C_CONTIGUOUS(ids)
            and cnp.PyArray_ISBEHAVED_RO(ids))


cdef object some(list ids):
    """The first of some ids, for a message."""
    more = f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else ""
    return ", ".join(map(str, ids[:NAMED_IDS])) + more
