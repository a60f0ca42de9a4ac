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


include "memory.pxi"


cdef Level *level_of(capsule) except NULL:
    return <Level *>PyCapsule_GetPointer(capsule, "cylstm.Level")


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


cdef Packed packed_of(list weights, Py_ssize_t d):
    """The weights of one of the 1 or 2 directions."""
    if weights is None or not 1 <= len(weights) <= 2:
        raise ValueError("weights: expected a list of 1 or 2 directions")
    cdef Packed packed = weights[d]
    if packed is None or packed.level == NULL:
        raise ValueError(f"weights: expected Packed ones, got {packed!r}")
    return packed


cdef int expect(str name, values, Py_ssize_t count) except -1:
    """Check the number of arrays: unchecked indexing follows."""
    if values is None or len(values) != count:
        raise ValueError(f"{name}: expected {count} of them, got {values!r}")
    return 0


include "call.pxi"


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


def forward(list weights, cnp.ndarray x not None, y, tuple initial, lengths, bint taped,
            int threads):
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
    cdef Packed packed = packed_of(weights, 0)
    cdef Py_ssize_t itemsize = packed.level.itemsize, hidden = packed.w.hidden, d, b, t
    cdef Py_ssize_t directions = len(weights)
    cdef Sequence *s
    expect("initial", initial, 2 if packed.w.cell == LSTM else 1)
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


def backward(Call tape not None, dy, tuple dfinal, list dx, list gradients, int threads):
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
    cdef Py_ssize_t d
    cdef Sequence *s
    if tape.level == NULL or tape.seq[0].tape == NULL:
        raise ValueError("tape: expected a call that kept one")
    expect("dfinal", dfinal, 2 if tape.seq[0].c != NULL else 1)
    expect("dx", dx, tape.directions)
    expect("gradients", gradients, tape.directions)
    cdef Call call = tape.again(dy, dx)
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
    cdef Packed packed = packed_of(weights, 0)
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
