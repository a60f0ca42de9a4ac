"""The native entry of all layers: packed weights, one call over time, its threads, its tape.

`Packed` holds the weights of one direction as the level wants them. A `Call` is one pass of one
layer over a batch; kept, it is the tape of that pass. Sizes are checked again here, in 64-bit
arithmetic, whatever the Python face has checked before.
"""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport (
    PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.string cimport memcpy, memset, strcmp
from cylstm.kernels.layout cimport (
    ALL, EVERY, FINAL, LAST, MAX, MEAN, NONE, OF_GATES, OF_PRODUCTS, PACKED_ROWS, PANEL, SLAB,
    STATES, TERM_BYTES, TERMS, Activation, CellKernels, Dense, Level, Matrix, Part, Pick, Sequence,
    Weights,
)

cnp.import_array()

cdef extern from "threads/machine.h" nogil:
    ctypedef unsigned FpMode
    const bint HAS_OPENMP
    int omp_get_max_threads()
    unsigned cpu_features()
    const int ISA_COUNT
    const char **isa_names
    const unsigned *isa_needs
    FpMode fp_flush()
    void fp_restore(FpMode before)
    double seconds()
    bint in_main_thread()
    int affinity_cpus()

cdef extern from "threads/memory.h" nogil:
    const bint EXACT_MEMORY
    void *allocate(size_t *size)
    void release(void *block, size_t size)

cdef extern from "threads/chaos.h" nogil:
    const bint HAS_CHAOS
    const int CHAOS_POINTS
    void set_chaos "chaos"(unsigned long seed)
    const char *chaos_name(int point)
    long chaos_count(int point)

cdef extern from "threads/team.h" nogil:
    ctypedef enum JobState:
        IDLE
        RUNNING
        ABANDONED
    ctypedef struct Job:
        void (*work)(Job *job, Py_ssize_t rank) noexcept nogil
        JobState state
    void job_begin(Job *job, void *owner)
    Py_ssize_t hire(Job *job, Py_ssize_t wanted)
    void assemble(Job *job, Py_ssize_t expected)
    Py_ssize_t assembled(Job *job, Py_ssize_t rank)
    void cancel(Job *job)
    bint all_left(Job *job)
    bint dismiss(Job *job)
    void do_together(Job *job, Py_ssize_t helpers)
    void *job_reap()
    void pause_or_yield(Py_ssize_t spins)
    ctypedef struct Flag:
        pass
    bint flag_of(Flag *flag)
    void raise_flag(Flag *flag)
    void lower_flag(Flag *flag)
    ctypedef struct Claim:
        pass
    bint take_claim(Claim *claim)
    void drop_claim(Claim *claim)
    ctypedef struct Shared:
        pass
    Py_ssize_t told(Shared *at)
    void tell(Shared *at, Py_ssize_t value)
    ctypedef struct Piece:
        pass
    const Py_ssize_t ALL_TAKEN
    Py_ssize_t take_piece(Piece *pieces, Py_ssize_t n, Py_ssize_t end, Flag *paused)
    Py_ssize_t piece_step(Piece *piece)
    void leave_piece(Piece *piece, Py_ssize_t step)
    ctypedef struct Team:
        pass
    ctypedef enum Meeting:
        MET
        LATE
        GIVEN_UP
        DISMISSED
    void team_init(Team *team)
    Meeting team_meet(Team *team, Py_ssize_t size, double patience, bint give_up)
    Py_ssize_t team_claim(Team *team)
    bint is_crowded()
    void note_crowd(bint crowded)
    void watch_forks()

cdef extern from "math/activations.h":
    int SIGMOID, TANH, RELU, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, HARD_SIGMOID
    int ELU, SOFTSIGN, SOFTPLUS

cdef extern from * nogil:
    """
    /* Pre-activations of a chunk stay in the second-level cache with the weights in use. */
    #define CHUNK_BYTES (256 * 1024)
    /* (step, row) pairs of one chunk: enough for every weight load to serve many of them. */
    #define CHUNK_ENTRIES 256
    /* Rows of one step that make a chunk where there are more: whole partial sums of the tile, so
     * that cutting does not change the order of any sum. */
    #define CHUNK_ROWS (3 * 96)
    /* Rows one thread takes at a time, so that scratch does not grow with the batch. */
    #define GROUP_ROWS 64
    /* Rows that a thread takes at least: a tile's height, more if weights are far away. */
    #define FEW_ROWS 4
    #define MANY_ROWS 8
    #define NEAR_BYTES (512 * 1024)
    /* Groups for each thread, if there are rows enough, and parts of their time. */
    #define CLAIMS 2
    #define STINTS 8
    /* Entries of dx claimed at a time. */
    #define DX_ENTRIES 48
    /* Seconds of work below which waking a second thread costs more than it saves, as estimated by
     * these rates (float32 multiply-adds, bytes of weights; a second); and the multiply-adds of one
     * step below which meeting after it does. */
    #define SERIAL_SECONDS 9e-6
    #define MULTIPLY_ADDS 110e9
    #define WEIGHT_BYTES 150e9
    #define SERIAL_STEP 100000
    /* Seconds, beyond what the work itself may take, before a missing thread counts as kept from
     * running; and before a leader that can do without a thread goes on alone. */
    #define PATIENCE 300e-6
    #define SHORT_PATIENCE 20e-6
    /* How often Python's signal handlers may run: in the test build in short calls, too. */
    #ifdef CYLSTM_CHAOS
    #define SIGNAL_SECONDS 2e-3
    #else
    #define SIGNAL_SECONDS 0.1
    #endif
    /* One block holds all small pieces of a short call. */
    #define SMALL_BLOCK 16384
    /* Memory of a layer's last call that may be kept to run it again. */
    #define AGAIN_BYTES (256 * 1024)
    """
    const Py_ssize_t CHUNK_BYTES
    const Py_ssize_t CHUNK_ENTRIES
    const Py_ssize_t CHUNK_ROWS
    const Py_ssize_t GROUP_ROWS
    const Py_ssize_t FEW_ROWS
    const Py_ssize_t MANY_ROWS
    const Py_ssize_t NEAR_BYTES
    const Py_ssize_t CLAIMS
    const Py_ssize_t STINTS
    const Py_ssize_t DX_ENTRIES
    const double SERIAL_SECONDS
    const double MULTIPLY_ADDS
    const double WEIGHT_BYTES
    const Py_ssize_t SERIAL_STEP
    const Py_ssize_t SMALL_BLOCK
    const Py_ssize_t AGAIN_BYTES
    const double PATIENCE
    const double SHORT_PATIENCE
    const double SIGNAL_SECONDS
    bint __builtin_mul_overflow(Py_ssize_t a, Py_ssize_t b, Py_ssize_t *product)

watch_forks()

OPENMP = bool(HAS_OPENMP)
ACTIVATIONS = {
    "sigmoid": SIGMOID, "tanh": TANH, "relu": RELU, "affine": AFFINE, "leakyrelu": LEAKY_RELU,
    "thresholdedrelu": THRESHOLDED_RELU, "scaledtanh": SCALED_TANH, "hardsigmoid": HARD_SIGMOID,
    "elu": ELU, "softsign": SOFTSIGN, "softplus": SOFTPLUS,
}


#: Instruction sets that kernels may be built for, best first.
LEVELS = tuple(isa_names[i].decode() for i in range(ISA_COUNT))


def cpu_levels():
    """Instruction sets this machine can run, best first."""
    cdef unsigned features = cpu_features()
    return [LEVELS[i] for i in range(ISA_COUNT) if features & isa_needs[i] == isa_needs[i]]


def openmp_max_threads():
    """Return the OpenMP runtime's own limit, which threadpoolctl and OMP_NUM_THREADS set."""
    return omp_get_max_threads()


def processors(int quota, int limit):
    """Return how many processors the calling thread may use, at most `quota` and `limit`."""
    cdef int allowed = affinity_cpus()
    if allowed > 0:
        limit = min(limit, allowed)
    return max(1, min(quota, limit))


if HAS_CHAOS:
    def chaos(unsigned long seed):
        """Delay hand-overs between threads as the seed says, 0: not at all; how often each came."""
        set_chaos(seed)
        return {chaos_name(point).decode(): chaos_count(point) for point in range(CHAOS_POINTS)}


include "memory.pxi"


cdef Level *level_of(capsule) except NULL:
    return <Level *>PyCapsule_GetPointer(capsule, "cylstm.Level")


include "math/packed.pxi"


cdef int expect(str name, values, Py_ssize_t count) except -1:
    """Check the number of arrays: unchecked indexing follows."""
    if values is None or len(values) != count:
        raise ValueError(f"{name}: expected {count} of them, got {values!r}")
    return 0


include "call.pxi"


cdef Py_ssize_t least_rows(Call call) noexcept:
    """Rows that a thread's walk through all recurrent weights must serve to pay."""
    cdef Weights *w = &call.seq[0].w
    return FEW_ROWS if (<double>w.gates * w.hidden * w.depth * call.level.itemsize
                        <= NEAR_BYTES) else MANY_ROWS


cdef Py_ssize_t row_groups(Call call, Py_ssize_t threads):
    """Groups of rows for threads to claim; 0 if they had better share rows and own blocks."""
    cdef Py_ssize_t rows = call.running, directions = call.directions
    cdef Py_ssize_t groups = max(1, (rows + GROUP_ROWS - 1) // GROUP_ROWS)
    if threads == 1:
        return groups
    if call.seq[0].w.norm != NONE:
        return max(groups, min(rows, threads))  # a norm needs whole rows
    # Several for each thread, so that one that is kept waiting holds up little.
    groups = max(groups, min(rows // MANY_ROWS, CLAIMS * threads // directions))
    if groups * directions < threads <= rows // least_rows(call) * directions:
        groups = threads // directions
    return groups if groups * directions >= threads else 0


cdef double estimate(Call call) noexcept:
    """Seconds a forward pass takes one thread at least."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t itemsize = call.level.itemsize
    cdef double read = (<double>call.directions * s.w.gates * s.w.hidden * itemsize
                        * (s.w.inputs + s.steps * s.w.depth))
    return max(call.work() * (itemsize / 4.0) / MULTIPLY_ADDS, read / WEIGHT_BYTES)


cdef int team_size(Call call, int threads):
    """Threads worth waking: one for small work, and while others need the processors."""
    if not HAS_OPENMP or threads == 1 or estimate(call) < SERIAL_SECONDS:
        return 1
    if row_groups(call, threads) == 0 and call.work() < SERIAL_STEP * call.seq[0].steps:
        return 1
    return 1 if is_crowded() else threads


include "timeloop.pxi"


def forward(list weights, cnp.ndarray x not None, y, tuple initial, lengths, bint taped,
            int threads, extras=None):
    """Run one layer over a batch.

    Parameters
    ----------
    weights : list of Packed
        One per direction.
    x : ndarray of shape (T, B, I)
    y : ndarray of shape (T, B, D * P) or None
        OUT; None makes one. With `extras` it may be shorter; made by the caller then.
    initial : tuple of (ndarray of shape (D, B, P or H) or None)
        One of each state: h, and c for an LSTM.
    lengths : ndarray of int64 of shape (B,) or None
    taped : bool
        Keep what `backward` needs.
    threads : int
    extras : cylstm.cells.Extras or None
        Masks and which outputs are wanted.

    Returns
    -------
    y : ndarray
        Of shape (D, B, P) if pooled over time.
    final : tuple of ndarray of shape (D, B, P or H)
        As `initial`.
    call : Call
        The tape if `taped`; otherwise of no further use.
    """
    cdef Packed packed = packed_of(weights, 0)
    cdef Py_ssize_t itemsize = packed.level.itemsize, d, k
    cdef Py_ssize_t directions = len(weights), outputs = packed.w.outputs
    cdef Sequence *s
    cdef View view
    expect("initial", initial, packed.w.states)
    cdef Call call = Call(weights, x, lengths, taped, extras)
    s = &call.seq[0]
    cdef Py_ssize_t frames = cnp.PyArray_DIM(x, 0), width = cnp.PyArray_DIM(x, 1)
    cdef bint by_step = s.pick <= EVERY, sparse = y is None and 2 * call.entries < frames * width
    if by_step:
        if y is None:
            y = (zeros(frames, width, directions * outputs, itemsize) if sparse
                 else empty(frames, width, directions * outputs, itemsize))
        call.look_outputs(y, "y", True, &view)
    for d in range(directions):
        s = &call.seq[d]
        if by_step:
            call.take_outputs(d, &view, &s.y, s.y_row, &s.y_step)
        for k in range(s.w.states):
            call.copy_rows_in(d, s.state[k], initial[k], width_of(&s.w, k), "initial state")
    run_forward(call, threads)
    final = call.empty_states()
    if s.pooled != NULL:
        y = empty(directions, s.rows, outputs, itemsize)
    for d in range(directions):
        s = &call.seq[d]
        for k in range(s.w.states):
            call.copy_rows_out(d, s.state[k], final[k], width_of(&s.w, k), "final state", True)
        if s.pooled != NULL:
            call.copy_rows_out(d, s.pooled, y, outputs, "y", False)
    if s.pick == FINAL:
        y = final[0].copy()
    elif by_step and not call.whole and not sparse and call.start == NULL:
        clear_unread(call, &view)
    return y, final, call


cdef int run_forward(Call call, int threads) except -1:
    """All steps; with checkpoints in windows, saving the states before each."""
    cdef Run *run
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t step = 0
    cdef int team = team_size(call, threads)
    cdef Clock clock = Clock(-1)
    if s.steps == 0 or s.rows == 0:
        return 0
    run = new_run(call)
    plan_forward(run, call, team)
    call.team = team
    while step < s.steps:
        run.step0, run.step1 = step, s.steps
        if call.window:
            call.checkpoint(step, False)
            run.step1 = min(s.steps, step + call.window)
        go(run, call, team, &clock)
        step = run.step1
    return 0


cdef int clear_unread(Call call, View *y) except -1:
    """Outputs of steps that are not read are 0: one sweep through them in order of memory."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t width = call.directions * s.w.outputs * call.level.itemsize, i, j, b, t
    cdef Py_ssize_t every = s.every if s.pick == EVERY else 1, outputs = s.steps // every
    cdef bint rows_first = y.inner > y.outer, unread
    cdef const cnp.uint8_t[:, ::1] valid
    cdef Arena scratch = Arena()
    cdef Py_ssize_t *length = <Py_ssize_t *>scratch.room(s.rows, sizeof(Py_ssize_t))
    cdef char *at
    cdef char *begin = y.data
    cdef char *end = y.data
    mask = call.mask
    if mask is not None:
        valid = mask
    for b in range(s.rows):
        length[call.row[b]] = call.length[b]
    for i in range(s.rows if rows_first else outputs):
        for j in range(outputs if rows_first else s.rows):
            b, t = (i, j) if rows_first else (j, i)
            unread = (t + 1) * every > length[b] if mask is None \
                else not valid[(t + 1) * every - 1, b]
            if not unread:
                continue
            at = y.data + t * y.outer + b * y.inner
            if at != end:
                memset(begin, 0, end - begin)
                begin = at
            end = at + width
    memset(begin, 0, end - begin)
    return 0


def backward(Call tape not None, dy, tuple dfinal, list dx, int threads, double clip_step=0,
             list d_attention=None):
    """Propagate gradients through one pass of one layer.

    Parameters
    ----------
    tape : Call
        From `forward` with ``taped=True``; unchanged.
    dy : ndarray shaped as y, or None
    dfinal : tuple of (ndarray of shape (D, B, P or H) or None)
        Gradient of each final state.
    dx : list of ndarray shaped as x
        OUT, one per direction; steps that were not read are not written.
    threads : int
    clip_step : float
        Bound of the gradients of pre-activations at every step; 0 is none.
    d_attention : list of ndarray of shape (T, B, 1), if the cell reads attention
        OUT, one per direction; steps that were not read are not written.

    Returns
    -------
    dinitial : tuple of ndarray of shape (D, B, P or H)
        Gradient of each initial state.
    call : Call
        Gradients of the weights, for `add_gradients`.
    """
    cdef Py_ssize_t d, k
    cdef Sequence *s = &tape.seq[0]
    cdef View view
    if tape.level == NULL or tape.arena is None or (s.tape == NULL and tape.window == 0):
        raise ValueError("tape: expected a call that kept one")
    expect("dfinal", dfinal, s.w.states)
    expect("dx", dx, tape.directions)
    if s.w.cell.attends:
        expect("d_attention", d_attention, tape.directions)
    if s.pick == FINAL and dy is not None:
        look(&view, dy, tape.level.itemsize, tape.directions, s.rows, s.w.outputs, "dy")
        dfinal = (dy if dfinal[0] is None else dfinal[0] + dy, *dfinal[1:])
    cdef Call call = tape.again(dy, dx, clip_step, d_attention)
    for d in range(call.directions):
        s = &call.seq[d]
        for k in range(s.w.states):
            call.copy_rows_in(d, s.d_state[k], dfinal[k], width_of(&s.w, k), "final dstate")
    run_backward(call, threads)
    dinitial = call.empty_states()
    for d in range(call.directions):
        s = &call.seq[d]
        for k in range(s.w.states):
            call.copy_rows_out(d, s.d_state[k], dinitial[k], width_of(&s.w, k), "initial dstate",
                               False)
    call.arena = None   # only the sums are needed from here on
    return dinitial, call


def add_gradients(list calls, list gradients):
    """Add the gradients that calls of `backward` have found: all of them or none.

    Parameters
    ----------
    calls : list of Call
    gradients : list of list of (dw_ih, dw_hh, db_ih, db_hh, dw_hr, d_single)
        IN/OUT, for each call one tuple per direction, shaped as what `Packed` takes, except for
        biases: (1, 1, G * H) each; added to. Biases may be None, and what the cell does not have.
    """
    cdef Call call
    cdef Py_ssize_t i, d
    cdef bint look_only
    expect("gradients", gradients, len(calls))
    for look_only in (True, False):
        for i in range(len(calls)):
            call = calls[i]
            if call is None or call.sums is None:
                raise ValueError(f"calls: expected those of backward, got {call!r}")
            expect("gradients", gradients[i], call.directions)
            # Without a single step nothing has been summed.
            for d in range(call.directions):
                call.add_gradients(d, gradients[i][d],
                                   look_only or call.entries == 0)


cdef int run_backward(Call call, int threads) except -1:
    """All steps; with checkpoints window by window, each run forward once more."""
    cdef Run *run
    cdef Run *forward_run = NULL
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t window = call.window if call.window else max(1, s.steps), step, d
    cdef int team = team_size(call, threads)
    cdef Clock clock = Clock(-1)
    if s.steps == 0 or s.rows == 0:
        return 0
    if call.window:
        forward_run = new_run(call)
        plan_forward(forward_run, call, team)
    run = new_run(call)
    plan_backward(run, call, team)
    step = s.steps
    while step > 0:
        step = (step - 1) // window * window
        run.step0, run.step1 = step, min(s.steps, step + window)
        if call.window:
            for d in range(call.directions):
                call.place_states(d, step, run.step1, True)
            call.checkpoint(step, True)
            forward_run.step0, forward_run.step1 = run.step0, run.step1
            go(forward_run, call, team, &clock)
        go(run, call, team, &clock)
    return 0


include "request.pxi"
include "plans.pxi"
include "streams.pxi"
include "linear.pxi"
include "pools.pxi"


def workspace(list weights, Py_ssize_t steps, Py_ssize_t rows, bint taped, int threads,
              extras=None):
    """Bytes that `forward`, and after it `backward`, allocate in addition to what they return.

    Found by planning the calls without allocating anything.

    Returns
    -------
    forward, backward, gradients : int
        The first lives as long as the tape if `taped`; the others are 0 unless `taped`, and the
        last lives until `add_gradients`.
    """
    cdef Run run
    cdef Call back, call = counted_call(weights, steps, rows, taped, extras)
    count_plan(&run, call, threads, True)
    if not taped:
        return call.arena.total, 0, 0
    back = call.again(None, [None] * call.directions, 0, None)
    for _ in range(back.directions):
        back.arena.room(max(1, rows), sizeof(Py_ssize_t))    # where rows are in dx
    if back.window:
        count_plan(&run, back, threads, True)
    count_plan(&run, back, threads, False)
    return call.arena.total, back.arena.total, back.sums.total


cdef int count_plan(Run *run, Call call, int threads, bint is_forward) except -1:
    """Count the memory of one run."""
    call.arena.room(1, sizeof(Run))
    memset(run, 0, sizeof(Run))
    if is_forward:
        plan_forward(run, call, threads)
    else:
        plan_backward(run, call, threads)
    return 0


def activation(table, tuple kind, x):
    """Apply an activation to a (1, 1, n) array by the cells' own code.

    Parameters
    ----------
    table : capsule
    kind : tuple
        Key of `ACTIVATIONS`, alpha, beta.
    x : ndarray of shape (1, 1, n)

    Returns
    -------
    ndarray of shape (1, 1, n)
    """
    cdef Level *level = level_of(table)
    cdef View given, made
    cdef Activation act = Activation(ACTIVATIONS[kind[0]], kind[1], kind[2])
    y = x.copy()
    look(&given, x, level.itemsize, 1, 1, x.shape[2], "x")
    look(&made, y, level.itemsize, 1, 1, x.shape[2], "y", True)
    level.activation(&act, given.data, made.data, x.shape[2])
    return y
