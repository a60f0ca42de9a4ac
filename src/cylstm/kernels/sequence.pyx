"""The native entry of all layers: packed weights, one call over time, its threads, its tape.

`Packed` holds the weights of one direction as the level wants them. A `Call` is one pass of one
layer over a batch; kept, it is the tape of that pass. Sizes are checked again here, in 64-bit
arithmetic, whatever the Python face has checked before.
"""

cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport (
    PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext,
)
from cython.parallel cimport parallel, threadid
from libc.string cimport memcpy, memset
from cylstm.kernels.layout cimport GRU, LSTM, RNN_RELU, RNN_TANH, Level, Part, Sequence, Weights

cnp.import_array()

cdef extern from "machine.h" nogil:
    ctypedef struct Team:
        pass
    ctypedef unsigned FpMode
    const bint HAS_OPENMP
    int omp_get_max_threads()
    int omp_get_num_threads()
    bint cpu_has_avx2()
    bint cpu_has_avx512()
    bint cpu_has_neon()
    FpMode fp_flush()
    void fp_restore(FpMode before)
    void team_init(Team *team)
    bint team_meet(Team *team, Py_ssize_t size, double patience)
    Py_ssize_t team_claim(Team *team)
    double seconds()
    void *allocate(size_t *size)
    void release(void *block, size_t size)
    void watch_forks()
    bint was_forked()

cdef extern from * nogil:
    """
    /* Pre-activations of a chunk stay in the second-level cache beside the weights in use. */
    #define CHUNK_BYTES (256 * 1024)
    /* (step, row) pairs of one chunk: enough for every weight load to serve many of them. */
    #define CHUNK_ENTRIES 256
    /* Rows one thread takes at a time, so that scratch does not grow with the batch. */
    #define GROUP_ROWS 64
    /* Entries of dx claimed at a time. */
    #define DX_ENTRIES 48
    /* Work, in multiply-adds, below which waking a second thread costs more than it saves, and that
     * of one step below which meeting after it does. */
    #define SERIAL_WORK 500000
    #define SERIAL_STEP 100000
    /* Seconds, beyond what the work itself may take, before a missing thread counts as kept from
     * running, and how long calls then stay on one thread: long enough to pay for the next try. */
    #define PATIENCE 300e-6
    #define CROWDED_SECONDS 50e-3
    /* One block holds all small pieces of a short call. */
    #define SMALL_BLOCK 16384
    """
    const Py_ssize_t CHUNK_BYTES
    const Py_ssize_t CHUNK_ENTRIES
    const Py_ssize_t GROUP_ROWS
    const Py_ssize_t DX_ENTRIES
    const Py_ssize_t SERIAL_WORK
    const Py_ssize_t SERIAL_STEP
    const Py_ssize_t SMALL_BLOCK
    const double PATIENCE
    const double CROWDED_SECONDS
    bint __builtin_mul_overflow(Py_ssize_t a, Py_ssize_t b, Py_ssize_t *product)

watch_forks()

OPENMP = bool(HAS_OPENMP)
CELLS = {"rnn_tanh": RNN_TANH, "rnn_relu": RNN_RELU, "gru": GRU, "lstm": LSTM}


def cpu_levels():
    """Instruction sets this machine can run, best first."""
    found = []
    if cpu_has_avx512():
        found.append("avx512")
    if cpu_has_avx2():
        found.append("avx2")
    if cpu_has_neon():
        found.append("neon")
    return [*found, "base"]


def openmp_max_threads():
    """Return the OpenMP runtime's own limit, which threadpoolctl and OMP_NUM_THREADS set."""
    return omp_get_max_threads()


cdef Py_ssize_t times(Py_ssize_t a, Py_ssize_t b) except -1:
    cdef Py_ssize_t product
    if a < 0 or b < 0 or __builtin_mul_overflow(a, b, &product):
        raise ValueError(f"array too large: {a} x {b} does not fit in memory")
    return product


@cython.final
@cython.auto_pickle(False)
cdef class Arena:
    """Memory in cache lines of its own, freed with its owner; small pieces share a block."""
    cdef list blocks
    cdef char *free_from
    cdef Py_ssize_t free_size
    cdef Py_ssize_t total   # bytes of all blocks

    def __cinit__(self):
        self.blocks = []
        self.free_size = self.total = 0

    cdef void *room(self, Py_ssize_t count, Py_ssize_t size, bint zero=False) except NULL:
        """`count` times `size` bytes."""
        cdef Py_ssize_t needed = (times(count, size) + 127) & ~<Py_ssize_t>63
        cdef void *piece
        cdef size_t size_got = max(needed, SMALL_BLOCK)
        if needed > self.free_size:
            self.free_size = 0
            self.free_from = <char *>allocate(&size_got)
            if self.free_from == NULL:
                raise MemoryError(f"cannot allocate {needed} bytes")
            block = PyCapsule_New(self.free_from, "cylstm.block", free_block)
            PyCapsule_SetContext(block, <void *>size_got)
            self.blocks.append(block)
            self.free_size = size_got
            self.total += max(needed, SMALL_BLOCK)
        piece = self.free_from
        self.free_from += needed
        self.free_size -= needed
        if zero:
            memset(piece, 0, needed)
        return piece


cdef void free_block(object capsule) noexcept:
    release(PyCapsule_GetPointer(capsule, "cylstm.block"), <size_t>PyCapsule_GetContext(capsule))


cdef Level *level_of(capsule) except NULL:
    return <Level *>PyCapsule_GetPointer(capsule, "cylstm.Level")


ctypedef struct View:
    # A (d0, d1, d2) array with contiguous last axis; strides in bytes.
    char *data
    Py_ssize_t outer
    Py_ssize_t inner


cdef int look(View *view, array, Py_ssize_t itemsize, Py_ssize_t d0, Py_ssize_t d1, Py_ssize_t d2,
              str name, bint written=False) except -1:
    """Check one array of this shape, and say where it is."""
    if not isinstance(array, cnp.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(array).__name__}")
    cdef cnp.ndarray a = array
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(a)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
    cdef int typenum = cnp.NPY_FLOAT32 if itemsize == 4 else cnp.NPY_FLOAT64
    if (cnp.PyArray_NDIM(a) != 3 or shape[0] != d0 or shape[1] != d1 or shape[2] != d2
            or cnp.PyArray_TYPE(a) != typenum
            or not cnp.PyArray_ISALIGNED(a) or not cnp.PyArray_ISNOTSWAPPED(a)
            or (d0 * d1 > 0 and d2 > 1 and strides[2] != itemsize)
            or strides[0] % itemsize or strides[1] % itemsize
            or (written and not cnp.PyArray_ISWRITEABLE(a))):
        raise ValueError(
            f"{name}: expected shape {(d0, d1, d2)}, {'' if not written else 'writeable, '}"
            f"{itemsize}-byte floats, last axis contiguous; got {array.shape} {array.dtype}"
        )
    view.data = <char *>cnp.PyArray_DATA(a)
    view.outer, view.inner = strides[0], strides[1]
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class Packed:
    """Weights of one direction of one layer, packed for one level.

    Parameters
    ----------
    table : capsule
        The level's kernels.
    cell : str
        A key of `CELLS`.
    w_ih : ndarray of shape (1, G * H, I)
    w_hh : ndarray of shape (1, G * H, H)
    bias : ndarray of shape (1, 1, S * H)
        In slot order; see layout.pxd.
    backward : bool
        Also pack the transposes that backward needs.
    """
    cdef Weights w
    cdef Level *level
    cdef object table
    cdef Arena arena
    cdef readonly bint backward

    def __init__(self, table, str cell, w_ih, w_hh, bias, bint backward):
        cdef Level *level = level_of(table)
        cdef Weights *w = &self.w
        cdef Py_ssize_t lanes = level.lanes, turn
        cdef View ih, hh, b
        self.table, self.level, self.arena, self.backward = table, level, Arena(), backward
        w.cell = CELLS[cell]
        w.gates = 4 if w.cell == LSTM else 3 if w.cell == GRU else 1
        w.slots = 4 if w.cell == GRU else w.gates
        w.h_slot = 1 if w.cell == GRU else 0
        w.hidden, w.inputs = w_hh.shape[2], w_ih.shape[2]
        w.blocks = (w.hidden + lanes - 1) // lanes
        w.in_blocks = (w.inputs + lanes - 1) // lanes
        turn = 2 if w.cell == GRU else 0
        look(&ih, w_ih, level.itemsize, 1, times(w.gates, w.hidden), w.inputs, "w_ih")
        look(&hh, w_hh, level.itemsize, 1, times(w.gates, w.hidden), w.hidden, "w_hh")
        look(&b, bias, level.itemsize, 1, 1, times(w.slots, w.hidden), "bias")
        if (w.inputs > 1 and ih.inner != w.inputs * level.itemsize) \
                or (w.hidden > 1 and hh.inner != w.hidden * level.itemsize):
            raise ValueError("w_ih, w_hh: expected contiguous arrays")
        w.w_ih = self.room(w.blocks * w.gates, w.inputs)
        level.pack(ih.data, w.hidden, w.inputs, w.gates, turn, w.w_ih)
        w.w_hh = self.room(w.blocks * w.gates, w.hidden)
        level.pack(hh.data, w.hidden, w.hidden, w.gates, 0, w.w_hh)
        w.bias = self.room(w.blocks * w.slots, 1)
        level.pack(b.data, w.hidden, 1, w.slots, 0, w.bias)
        if backward:
            w.w_ih_t = self.room(w.in_blocks * lanes, w.blocks * w.gates)
            level.pack_transposed(ih.data, w.hidden, w.inputs, w.gates, turn, w.w_ih_t)
            w.w_hh_t = self.room(w.blocks * lanes, w.blocks * w.gates)
            level.pack_transposed(hh.data, w.hidden, w.hidden, w.gates, 0, w.w_hh_t)

    cdef void *room(self, Py_ssize_t vectors, Py_ssize_t count) except NULL:
        """Zeroed memory for vectors * count vectors."""
        return self.arena.room(times(vectors, count), self.level.lanes * self.level.itemsize, True)


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

    def __init__(self, list weights, cnp.ndarray x, cnp.ndarray y, lengths, bint taped):
        cdef Packed packed = weights[0]
        cdef Py_ssize_t itemsize = packed.level.itemsize, d, width, slots
        cdef Sequence *s
        cdef View x_view, y_view
        self.weights, self.directions, self.level = weights, len(weights), packed.level
        self.x, self.arena = x, Arena()
        if not 1 <= self.directions <= 2:
            raise ValueError(f"weights: expected 1 or 2 directions, got {self.directions}")
        cdef Py_ssize_t steps = cnp.PyArray_DIM(x, 0), rows = cnp.PyArray_DIM(x, 1)
        look(&x_view, x, itemsize, steps, rows, packed.w.inputs, "x")
        look(&y_view, y, itemsize, steps, rows, self.directions * packed.w.hidden, "y", True)
        for d in range(self.directions):
            s = &self.seq[d]
            packed = weights[d]
            s.w = packed.w
            s.steps, s.rows = steps, rows
            s.x, s.y = x_view.data, y_view.data + d * s.w.hidden * itemsize
            if packed.level != self.level or s.w.inputs != self.seq[0].w.inputs \
                    or s.w.hidden != self.seq[0].w.hidden or (taped and not packed.backward):
                raise ValueError("weights: both directions must be packed alike")
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
        slots = slots.transpose(0, 2, 1, 3).reshape(entries, s.w.slots, -1)[:, :, :n]
        return slots, None if c is None else c[:, :n], h[:, :n], where[:, 0], where[:, 1]

    cdef Py_ssize_t work(self):
        """Multiply-adds of one forward pass, saturating."""
        cdef Weights *w = &self.seq[0].w
        cdef double n = (<double>self.directions * self.seq[0].first[self.seq[0].steps]
                         * w.gates * w.hidden * (w.inputs + w.hidden))
        return <Py_ssize_t>min(n, 1e18)


cdef Py_ssize_t row_groups(Call call, Py_ssize_t threads):
    """Groups of rows for threads to claim; 0 if they had better share rows and own blocks."""
    cdef Py_ssize_t rows = call.seq[0].active[0]
    cdef Py_ssize_t groups = max(1, (rows + GROUP_ROWS - 1) // GROUP_ROWS)
    if groups * call.directions >= threads:
        return groups
    return min(rows // 8, threads)


cdef int team_size(Call call, int threads):
    """Threads worth waking: one for small work, and while others need the processors."""
    cdef Py_ssize_t work = call.work()
    if not HAS_OPENMP or threads == 1 or work < SERIAL_WORK or was_forked():
        return 1
    if row_groups(call, threads) == 0 and work < SERIAL_STEP * call.seq[0].steps:
        return 1
    return 1 if seconds() < crowded_until else threads


include "timeloop.pxi"


cdef cnp.ndarray empty(Py_ssize_t d0, Py_ssize_t d1, Py_ssize_t d2, Py_ssize_t itemsize):
    cdef cnp.npy_intp shape[3]
    shape[0], shape[1], shape[2] = d0, d1, d2
    return cnp.PyArray_SimpleNew(3, shape, cnp.NPY_FLOAT32 if itemsize == 4 else cnp.NPY_FLOAT64)


def forward(list weights, cnp.ndarray x, y, tuple initial, lengths, bint taped, int threads):
    """Run one layer over a batch.

    Parameters
    ----------
    weights : list of Packed
        One per direction.
    x : ndarray of shape (T, B, I)
    y : ndarray of shape (T, B, D * H) or None
        OUT; None makes one.
    initial : tuple of (ndarray of shape (D, B, H) or None)
        h, and c for an LSTM.
    lengths : ndarray of int64 of shape (B,) or None
    taped : bool
        Keep what `backward` needs.
    threads : int

    Returns
    -------
    y : ndarray of shape (T, B, D * H)
    final : tuple of ndarray of shape (D, B, H)
        As `initial`.
    call : Call
        The tape if `taped`; otherwise of no further use.
    """
    cdef Packed packed = weights[0]
    cdef Py_ssize_t itemsize = packed.level.itemsize, hidden = packed.w.hidden, d, b, t
    cdef Py_ssize_t directions = len(weights)
    cdef Sequence *s
    if cnp.PyArray_NDIM(x) != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {x.ndim} dimensions")
    cdef Py_ssize_t steps = cnp.PyArray_DIM(x, 0), rows = cnp.PyArray_DIM(x, 1)
    if y is None:
        y = empty(steps, rows, directions * hidden, itemsize)
    cdef Call call = Call(weights, x, y, lengths, taped)
    for d in range(directions):
        s = &call.seq[d]
        call.copy_rows_in(d, s.h, initial[0], "initial h")
        if s.c != NULL:
            call.copy_rows_in(d, s.c, initial[1], "initial c")
    cdef Run run
    cdef int team = team_size(call, threads)
    if steps > 0 and rows > 0:
        plan_forward(&run, call, team)
        go(&run, team, True)
    h = empty(directions, rows, hidden, itemsize)
    c = empty(directions, rows, hidden, itemsize) if call.seq[0].c != NULL else None
    for d in range(directions):
        s = &call.seq[d]
        call.copy_rows_out(d, s.h, h, "final h", s.ring)
        if c is not None:
            call.copy_rows_out(d, s.c, c, "final c", s.ring)
    if lengths is not None:
        s = &call.seq[0]
        for b in range(rows):
            for t in range(call.length[b], steps):
                memset(<char *>s.y + (s.y_row[b] + t * s.y_step) * itemsize, 0,
                       directions * hidden * itemsize)
    return y, ((h,) if c is None else (h, c)), call


def backward(Call tape, dy, tuple dfinal, list dx, list gradients, int threads):
    """Propagate gradients through one pass of one layer.

    Parameters
    ----------
    tape : Call
        From `forward` with ``taped=True``; unchanged.
    dy : ndarray of shape (T, B, D * H) or None
    dfinal : tuple of (ndarray of shape (D, B, H) or None)
        Gradient of the final h, and c for an LSTM.
    dx : list of ndarray of shape (T, B, I)
        OUT, one per direction; steps beyond a row's length are not written.
    gradients : list of (dw_ih, dw_hh, db_ih, db_hh)
        IN/OUT, one tuple per direction, of shapes (1, G * H, I), (1, G * H, H) and twice
        (1, 1, G * H); added to. The biases' may be None.
    threads : int

    Returns
    -------
    tuple of ndarray of shape (D, B, H)
        Gradient of the initial h, and c for an LSTM.
    """
    cdef Call call = tape.again(dy, dx)
    cdef Py_ssize_t d
    cdef Sequence *s
    for d in range(call.directions):
        s = &call.seq[d]
        call.copy_rows_in(d, s.dh, dfinal[0], "final dh")
        if s.c != NULL:
            call.copy_rows_in(d, s.dc, dfinal[1], "final dc")
    cdef Run run
    cdef int team = team_size(call, threads)
    s = &call.seq[0]
    if s.steps > 0 and s.rows > 0:
        plan_backward(&run, call, team)
        go(&run, team, False)
    dh = empty(call.directions, s.rows, s.w.hidden, call.level.itemsize)
    dc = empty(call.directions, s.rows, s.w.hidden, call.level.itemsize) if s.c != NULL else None
    for d in range(call.directions):
        s = &call.seq[d]
        call.copy_rows_out(d, s.dh, dh, "initial dh", 0)
        if dc is not None:
            call.copy_rows_out(d, s.dc, dc, "initial dc", 0)
        call.add_gradients(d, gradients[d])
    return (dh,) if dc is None else (dh, dc)


def workspace(list weights, Py_ssize_t steps, Py_ssize_t rows, bint taped, int threads):
    """Bytes that `forward`, and after it `backward`, allocate beside what they return.

    Found by allocating them, untouched.

    Returns
    -------
    forward, backward : int
        The first lives as long as the tape if `taped`; the second is 0 unless `taped`.
    """
    cdef Packed packed = weights[0]
    cdef Py_ssize_t itemsize = packed.level.itemsize
    x = empty(steps, rows, packed.w.inputs, itemsize)
    cdef Call back, call = Call(
        weights, x, empty(steps, rows, len(weights) * packed.w.hidden, itemsize), None, taped)
    cdef Run run
    plan_forward(&run, call, threads)
    if not taped:
        return call.arena.total, 0
    back = call.again(None, [x] * call.directions)
    plan_backward(&run, back, threads)
    return call.arena.total, back.arena.total


def activation(table, bint is_tanh, x):
    """Sigmoid or tanh of a (1, 1, n) array by the cells' own code.

    Parameters
    ----------
    table : capsule
    is_tanh : bool
    x : ndarray of shape (1, 1, n)

    Returns
    -------
    ndarray of shape (1, 1, n)
    """
    cdef Level *level = level_of(table)
    cdef View given, made
    y = x.copy()
    look(&given, x, level.itemsize, 1, 1, x.shape[2], "x")
    look(&made, y, level.itemsize, 1, 1, x.shape[2], "y", True)
    level.activation(is_tanh, given.data, made.data, x.shape[2])
    return y
