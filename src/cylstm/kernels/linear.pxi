# Linear and Embedding: parameters read where they are, dense products, rows looked up.

from numpy import require as np_require

cdef extern from "threads/guard.h" nogil:
    ctypedef struct Guard:
        pass
    void begin_read(Guard *guard)
    void end_read(Guard *guard)
    void begin_write(Guard *guard)
    void end_write(Guard *guard)
    void guard_watch_forks()

cdef extern from * nogil:
    """
    /* Rows that a thread takes at a time: they pass by one panel of weights after the other. */
    #define UNIT_ROWS 1920
    /* Units for each thread, so that one that is kept waiting holds up little, and the least. */
    #define UNITS 4
    #define LEAST_UNIT_ROWS 48
    #define LEAST_PANEL 64
    /* Multiply-adds of a unit, so that a pause need not wait long. */
    #define UNIT_PRODUCTS 1500000000
    """
    const Py_ssize_t UNIT_ROWS
    const Py_ssize_t UNITS
    const Py_ssize_t LEAST_UNIT_ROWS
    const Py_ssize_t LEAST_PANEL
    const Py_ssize_t UNIT_PRODUCTS

guard_watch_forks()


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class Storage:
    """A module's parameters: calls read them where they are, `write` changes them there.

    Parameters
    ----------
    values : ndarray of shape (N,), float32 or float64
        C-contiguous; changed by `write` only from now on.
    """
    cdef Guard guard
    cdef cnp.ndarray values
    cdef void *current  # the Snapshot of these values, if anybody still has it

    def __cinit__(self, cnp.ndarray values not None):
        if not cnp.PyArray_ISCARRAY(values) or values.ndim != 1:
            raise ValueError("values: expected a writeable, contiguous vector")
        self.values = values
        self.current = NULL
        memset(&self.guard, 0, sizeof(Guard))

    def snapshot(self):
        """Return the parameters as they are now, and will remain in the snapshot."""
        cdef Snapshot made = Snapshot.__new__(Snapshot)
        if self.current != NULL:
            return <Snapshot>self.current
        made.storage, made.values, made.data = self, self.values, cnp.PyArray_BYTES(self.values)
        self.current = <void *>made
        return made

    def write(self, list changes):
        """Change parameters when no call reads them; what has a snapshot is copied before.

        Parameters
        ----------
        changes : list of tuple of (view, new)
            C-contiguous arrays of one dtype and size; views of `values`.
        """
        cdef Py_ssize_t n = len(changes), i
        cdef cnp.ndarray view, new
        cdef Snapshot kept
        for view, new in changes:
            if (not cnp.PyArray_ISCARRAY(view) or not cnp.PyArray_ISCARRAY_RO(new)
                    or view.nbytes != new.nbytes
                    or cnp.PyArray_TYPE(view) != cnp.PyArray_TYPE(self.values)
                    or cnp.PyArray_TYPE(new) != cnp.PyArray_TYPE(self.values)):
                raise ValueError("changes: expected contiguous arrays of one dtype and size")
        with nogil:
            begin_write(&self.guard)
        # With the GIL, so that no fork happens half way; nothing below runs Python code.
        try:
            if self.current != NULL:
                kept = <Snapshot>self.current
                new = cnp.PyArray_NewCopy(self.values, cnp.NPY_CORDER)
                kept.values, kept.data = new, cnp.PyArray_BYTES(new)
                self.current = NULL
            for i in range(n):
                view, new = changes[i]
                memcpy(cnp.PyArray_DATA(view), cnp.PyArray_DATA(new), new.nbytes)
        finally:
            end_write(&self.guard)


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class Snapshot:
    """Parameters as they were at one moment: in their storage until that changes, then a copy."""
    cdef Storage storage
    cdef cnp.ndarray values
    cdef char *data     # of values; to be read between begin_read and end_read

    def __dealloc__(self):
        if self.storage is not None and self.storage.current == <void *>self:
            self.storage.current = NULL

    cdef int holds(self, Py_ssize_t start, Py_ssize_t rows, Py_ssize_t columns,
                   Py_ssize_t itemsize) except -1:
        if (cnp.PyArray_TYPE(self.values) != type_of(itemsize) or start < 0
                or times(rows, columns) > cnp.PyArray_SIZE(self.values) - start):
            raise ValueError(
                f"weights: expected {rows} x {columns} numbers of {itemsize} bytes from {start} "
                f"on, got {cnp.PyArray_SIZE(self.values)} of {self.values.itemsize}"
            )
        return 0

    def copy(self):
        """Return a copy of all parameters, as one vector."""
        cdef cnp.ndarray out = cnp.PyArray_EMPTY(
            1, cnp.PyArray_DIMS(self.values), cnp.PyArray_TYPE(self.values), 0)
        cdef char *into = cnp.PyArray_BYTES(out)
        cdef size_t size = out.nbytes
        with nogil:
            begin_read(&self.storage.guard)
            memcpy(into, self.data, size)
            end_read(&self.storage.guard)
        return out

    def __reduce__(self):
        return snapshot_of, (self.copy(),)

    def lookup(self, cnp.ndarray ids not None, cnp.ndarray y not None):
        """Copy rows of the first parameter.

        Parameters
        ----------
        ids : ndarray of intp of shape (n,)
            Checked by the caller, and nobody else's.
        y : ndarray of shape (n, width)
            OUT, C-contiguous.
        """
        cdef Py_ssize_t n = len(ids), i, row, width, most
        cdef const Py_ssize_t *of = <const Py_ssize_t *>cnp.PyArray_DATA(ids)
        cdef char *into = cnp.PyArray_BYTES(y)
        width = y.shape[1]
        row = times(width, y.itemsize)
        most = cnp.PyArray_SIZE(self.values) // width
        if (cnp.PyArray_TYPE(ids) != cnp.NPY_INTP or not cnp.PyArray_ISCARRAY_RO(ids)
                or cnp.PyArray_TYPE(y) != cnp.PyArray_TYPE(self.values)
                or not cnp.PyArray_ISCARRAY(y) or y.shape[0] != n):
            raise ValueError("ids, y: expected contiguous arrays that fit")
        for i in range(n):
            if not 0 <= of[i] < most:
                raise ValueError(f"ids: expected integers from 0 to {most - 1}, got {of[i]}")
        with nogil:
            begin_read(&self.storage.guard)
            for i in range(n):
                memcpy(into + i * row, self.data + of[i] * row, row)
            end_read(&self.storage.guard)


def snapshot_of(values):
    """Return a snapshot of a vector that nobody changes, as pickled tapes have."""
    return Storage(np_require(values, requirements=["C", "A", "W"])).snapshot()


ctypedef struct DenseJob:
    Job job
    Team team
    Dense d
    Level *level
    void (*unit)(const Dense *d, Py_ssize_t unit, void *panel) noexcept nogil
    Py_ssize_t units
    char *panels            # one for each thread
    Py_ssize_t panel_bytes
    size_t all_bytes
    Clock clock             # the leader's
    Flag paused             # whether all threads are to leave


cdef void dense_work(Job *job, Py_ssize_t rank) noexcept nogil:
    """What each thread does: claim units until there are none left, or a pause is made."""
    cdef DenseJob *j = <DenseJob *>job
    cdef FpMode mode = fp_flush()
    cdef Py_ssize_t unit
    while not flag_of(&j.paused):
        unit = team_claim(&j.team)
        if unit >= j.units:
            break
        j.unit(&j.d, unit, j.panels + rank * j.panel_bytes)
        if rank == 0 and time_to_look(&j.clock):
            raise_flag(&j.paused)
    fp_restore(mode)


cdef int plan_dense(DenseJob *j, Py_ssize_t *threads) except -1:
    """Cut the product into units, make room for panels; one thread where more would not pay."""
    cdef Dense *d = &j.d
    cdef Py_ssize_t itemsize = j.level.itemsize, most, terms, outputs
    cdef bint dots = j.unit == j.level.dense
    cdef double read = <double>d.depth * d.outputs * itemsize
    j.job.work = dense_work
    j.clock.next_look = -1
    if not HAS_OPENMP or max(read * d.rows / 4 / MULTIPLY_ADDS,
                             read / WEIGHT_BYTES) < SERIAL_SECONDS:
        threads[0] = 1
    most = PANEL if dots else TERM_BYTES // itemsize
    d.unit_rows, d.panel = ceil_of(d.rows, ceil_of(d.rows, UNIT_ROWS)), most
    if threads[0] > 1 and count_units(d) < UNITS * threads[0]:
        if d.rows >= LEAST_UNIT_ROWS * threads[0]:
            d.unit_rows = min(UNIT_ROWS, max(LEAST_UNIT_ROWS, ceil_of(d.rows, UNITS * threads[0])))
        else:
            d.panel = max(LEAST_PANEL, min(most, ceil_of(d.outputs, UNITS * threads[0])))
    j.units = count_units(d)
    threads[0] = min(threads[0], j.units)
    # Room for whole vectors of a panel of weights, or of a few rows; of a product, for both.
    terms = min(TERM_BYTES // itemsize if dots else TERMS, d.depth)
    outputs = whole(min(d.panel, d.outputs))
    if dots:
        outputs = max(outputs, whole(min(d.unit_rows, PACKED_ROWS)))
    else:
        outputs += whole(d.unit_rows)
    j.panel_bytes = outputs * whole(terms) * itemsize
    j.all_bytes = j.panel_bytes * threads[0]
    j.panels = <char *>allocate(&j.all_bytes)
    if j.panels == NULL:
        raise MemoryError(f"cannot allocate {j.all_bytes} bytes")
    return 0


cdef inline Py_ssize_t whole(Py_ssize_t n) noexcept:
    """Rounded up to the lanes of the widest vectors."""
    return (n + 15) & ~<Py_ssize_t>15


cdef inline Py_ssize_t ceil_of(Py_ssize_t a, Py_ssize_t b) noexcept:
    return (a + b - 1) // b


cdef Py_ssize_t count_units(Dense *d) noexcept:
    d.panels = ceil_of(d.outputs, d.panel)
    return ceil_of(d.rows, d.unit_rows) * d.panels


cdef int run_dense(DenseJob *j, Py_ssize_t threads, Snapshot weight, Snapshot bias=None,
                   Py_ssize_t bias_at=0) except -1:
    """Make the product, term after term in slices whose units take no long time.

    A long one pauses ten times a second for Python's signal handlers. In a pause no thread is in
    the job and nobody reads the parameters, as a handler may assign them: snapshots stay the same.
    """
    cdef Dense *d = &j.d
    cdef Py_ssize_t most = TERM_BYTES // j.level.itemsize if j.unit == j.level.dense else TERMS
    cdef bint again
    most *= max(1, UNIT_PRODUCTS // (most * min(d.panel, d.outputs) * d.unit_rows))
    try:
        while d.term1 < d.depth:
            d.term0, d.term1 = d.term1, min(d.depth, d.term1 + most)
            team_init(&j.team)
            again = True
            while again:
                lower_flag(&j.paused)
                with nogil:
                    read_parameters(j, weight, bias, bias_at)
                    do_together(&j.job, threads - 1)
                    read_parameters_no_more(weight, bias)
                again = flag_of(&j.paused)
                if again:
                    PyErr_CheckSignals()
    finally:
        release(j.panels, j.all_bytes)
    return 0


cdef void read_parameters(DenseJob *j, Snapshot weight, Snapshot bias,
                          Py_ssize_t bias_at) noexcept nogil:
    """Where they are now, for as long as nobody may change them."""
    if weight is None:
        return
    begin_read(&weight.storage.guard)
    j.d.w = weight.data
    if bias is None:
        return
    if bias.storage is not weight.storage:  # of a layer that reads this one's, never vice versa
        begin_read(&bias.storage.guard)
    j.d.bias = bias.data + bias_at * j.level.itemsize


cdef void read_parameters_no_more(Snapshot weight, Snapshot bias) noexcept nogil:
    if weight is None:
        return
    if bias is not None and bias.storage is not weight.storage:
        end_read(&bias.storage.guard)
    end_read(&weight.storage.guard)


cdef int look_matrix(View *view, array, Py_ssize_t itemsize, str name, Py_ssize_t rows,
                     Py_ssize_t columns, bint written=False) except -1:
    """Check a matrix of this shape; one that is written must be contiguous."""
    look(view, array[None], itemsize, 1, rows, columns, name, written)
    if written and rows > 1 and view.inner != columns * itemsize:
        raise ValueError(f"{name}: expected a contiguous array, got strides {array.strides}")
    return 0


def linear(table, x, Snapshot weight not None, Snapshot bias, Py_ssize_t bias_at, sums, y, f,
           int threads):
    """Compute f(x W' + b), every row with the bits it has alone.

    Parameters
    ----------
    table : capsule
    x : ndarray of shape (rows, depth)
        Last axis contiguous.
    weight : Snapshot
        Begins with W, (outputs, depth).
    bias : Snapshot or None
        b, (outputs,), from element `bias_at` on. Of the storage of `weight`, or another one.
    sums : ndarray of shape (rows, outputs)
        OUT, C-contiguous, what f is applied to.
    y : ndarray of shape (rows, outputs) or None
        OUT; may be `sums`. None without f.
    f : tuple or None
        Key of `ACTIVATIONS`, alpha, beta.
    threads : int
    """
    cdef DenseJob j
    cdef Dense *d = &j.d
    cdef View view
    cdef Py_ssize_t count = threads, itemsize
    memset(&j, 0, sizeof(DenseJob))
    j.level = level_of(table)
    j.unit = j.level.dense
    itemsize = j.level.itemsize
    d.rows, d.depth, d.outputs, d.x_step = x.shape[0], x.shape[1], sums.shape[1], 1
    look_matrix(&view, x, itemsize, "x", d.rows, d.depth)
    d.x, d.x_row = view.data, view.inner // itemsize
    look_matrix(&view, sums, itemsize, "sums", d.rows, d.outputs, True)
    d.sums = view.data
    if f is not None:
        look_matrix(&view, y, itemsize, "y", d.rows, d.outputs, True)
        d.y = view.data
        d.f = Activation(ACTIVATIONS[f[0]], f[1], f[2])
    weight.holds(0, d.outputs, d.depth, itemsize)
    if bias is not None:
        bias.holds(bias_at, 1, d.outputs, itemsize)
    if d.rows == 0:
        return
    d.w_row = d.depth
    plan_dense(&j, &count)
    run_dense(&j, count, weight, bias, bias_at)


cdef int describe_product(DenseJob *j, table, dy, out, Py_ssize_t out_rows) except -1:
    """Set up a gradient: dy times a matrix that the caller adds, into `out` of so many rows."""
    cdef Dense *d = &j.d
    cdef View view
    memset(j, 0, sizeof(DenseJob))
    j.level = level_of(table)
    j.unit = j.level.multiply
    d.rows, d.depth, d.outputs, d.x_step = dy.shape[0], dy.shape[1], out.shape[1], 1
    look_matrix(&view, dy, j.level.itemsize, "dy", d.rows, d.depth)
    d.x, d.x_row = view.data, view.inner // j.level.itemsize
    look_matrix(&view, out, j.level.itemsize, "out", out_rows, d.outputs, True)
    d.sums = view.data
    return 0


def linear_dx(table, dy, Snapshot weight not None, dx, int threads):
    """Compute dx := dy W.

    Parameters
    ----------
    table : capsule
    dy : ndarray of shape (rows, outputs)
        Last axis contiguous.
    weight : Snapshot
        Begins with W, (outputs, inputs).
    dx : ndarray of shape (rows, inputs)
        OUT, C-contiguous.
    threads : int
    """
    cdef DenseJob j
    cdef Py_ssize_t count = threads
    describe_product(&j, table, dy, dx, dy.shape[0])
    weight.holds(0, j.d.depth, j.d.outputs, j.level.itemsize)
    if j.d.rows == 0:
        return
    j.d.w_row = j.d.outputs
    plan_dense(&j, &count)
    run_dense(&j, count, weight)


def linear_dw(table, dy, x, dw, int threads):
    """Compute dW := dW + dy' x.

    Parameters
    ----------
    table : capsule
    dy : ndarray of shape (rows, outputs)
        Last axis contiguous, as of `x`.
    x : ndarray of shape (rows, inputs)
    dw : ndarray of shape (outputs, inputs)
        IN, OUT, C-contiguous.
    threads : int
    """
    cdef DenseJob j
    cdef View view
    cdef Py_ssize_t count = threads
    describe_product(&j, table, dy, dw, dy.shape[1])
    look_matrix(&view, x, j.level.itemsize, "x", j.d.rows, j.d.outputs)
    if j.d.rows == 0:
        return
    # By the transpose of dy: its outputs are the rows.
    j.d.rows, j.d.depth = j.d.depth, j.d.rows
    j.d.x_row, j.d.x_step = 1, j.d.x_row
    j.d.w, j.d.w_row, j.d.add = view.data, view.inner // j.level.itemsize, True
    plan_dense(&j, &count)
    run_dense(&j, count, None)


def d_activation(table, f, x, dy):
    """Return the gradient of x from dy, that of f(x); contiguous arrays of one shape."""
    cdef Level *level = level_of(table)
    cdef Activation act = Activation(ACTIVATIONS[f[0]], f[1], f[2])
    cdef View views[3]
    cdef Py_ssize_t n = x.size
    dx = x.copy()
    for i, (name, array) in enumerate((("x", x), ("dy", dy), ("dx", dx))):
        look(&views[i], array.reshape(1, 1, n), level.itemsize, 1, 1, n, name)
    with nogil:
        level.d_activation(&act, views[0].data, views[1].data, views[2].data, n)
    return dx
