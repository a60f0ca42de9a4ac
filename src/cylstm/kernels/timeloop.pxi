# Time and threads: one parallel region per call.
#
# Forward: with enough rows, threads claim groups of rows and never meet. With few, all threads of a
# direction share the rows, own blocks of units (whose weights stay in their cache) and meet once
# per step. Backward goes through chunks of time: first the recurrence, split likewise, then the
# chunk's share of weight and input gradients, claimed piece by piece. The split never changes the
# order in which anything is added up.
#
# Where another process needs a processor, a team that meets would wait for a time slice at every
# step. The first to notice says so; the team's leader goes on alone, and for a while so do calls.

cdef extern from "Python.h" nogil:
    # Declared without error return: a pending exception is raised after the region.
    int PyErr_CheckSignals()

cdef enum:
    NEVER = 0x40000000

ctypedef struct Run:
    # Shared by the threads of one call.
    Sequence *seq
    Level *level
    Py_ssize_t directions
    Py_ssize_t groups       # of rows per direction, claimed; 0 if threads own blocks instead
    Py_ssize_t *bounds      # (groups + 1) first row of each group
    Py_ssize_t chunk_steps
    Py_ssize_t step0        # of this run, as are the next; the call may take several
    Py_ssize_t step1
    Team team[3]            # of each direction, and of all
    char *scratch           # (threads, scratch_size): private
    Py_ssize_t scratch_size
    Py_ssize_t entries      # room in a Part
    Py_ssize_t lines_size
    Py_ssize_t masked_size
    char *gates[2]          # slots of a direction whose threads own blocks: shared
    bint interrupted        # a signal has come
    bint crowded            # a thread was kept from running
    Py_ssize_t alone[2]     # meeting of a direction's team after which its leader is alone
    double patience         # seconds to wait for a thread that has its processor
    bint looked             # whether look_for_signals was called before
    double next_look        # time to ask for signals again, 0 for not known


ctypedef struct Member:
    # A thread's place in the team of one direction.
    Py_ssize_t direction
    Py_ssize_t rank
    Py_ssize_t size
    Py_ssize_t meetings


# Seconds (monotonic) until which all calls run on one thread, and for how many the next time.
cdef double crowded_until = 0
cdef double crowded_for = CROWDED_LEAST


cdef inline Py_ssize_t share(Py_ssize_t n, Py_ssize_t rank, Py_ssize_t size) noexcept nogil:
    """Where the share of one of `size` threads begins."""
    return n * rank // size


cdef void look_for_signals(Run *run) noexcept nogil:
    """Ten times a second, let Python see a Ctrl-C; a short run never asks for the time."""
    cdef double now
    if not run.looked:
        run.looked = True
        return
    now = seconds()
    if run.next_look == 0:
        run.next_look = now + 0.1
    if now < run.next_look:
        return
    with gil:
        if PyErr_CheckSignals() != 0:
            run.interrupted = True
    run.next_look = now + 0.1


cdef bint meet(Run *run, Member *me) noexcept nogil:
    """Wait for the rest of the team. False: leave the work to the leader, who is alone now."""
    if me.size == 1:
        return True
    me.meetings += 1
    if me.rank == 0 and (run.crowded or run.interrupted):
        run.alone[me.direction] = me.meetings
    if team_meet(&run.team[me.direction], me.size, run.patience):
        run.crowded = True
    if run.alone[me.direction] <= me.meetings:
        me.size = 1
    return me.size > 1 or me.rank == 0


cdef void set_up_part(Run *run, Part *p, Py_ssize_t thread) noexcept nogil:
    cdef char *at = run.scratch + thread * run.scratch_size
    p.a = <void **>at
    p.out = p.a + run.entries
    p.lines = p.out + run.entries
    p.masked = <char *>p.lines + run.lines_size
    p.panel = <char *>p.masked + run.masked_size
    p.gates = p.panel       # forward needs no panel, backward no slots of its own


cdef bint join(Run *run, Member *me, Py_ssize_t d, Py_ssize_t thread,
               Py_ssize_t threads) noexcept nogil:
    """Take a place in the team of direction `d`, if this thread has one there."""
    me.direction, me.rank, me.size, me.meetings = d, thread, threads, 0
    if run.directions == 2 and threads > 1:
        me.rank, me.size = thread // 2, (threads + 1 - d) // 2
        return thread % 2 == d
    return True


cdef void own_blocks(Sequence *s, Part *p, Member *me) noexcept nogil:
    p.block0 = share(s.w.blocks, me.rank, me.size)
    p.block1 = share(s.w.blocks, me.rank + 1, me.size)
    p.out0 = share(s.w.out_blocks, me.rank, me.size)
    p.out1 = share(s.w.out_blocks, me.rank + 1, me.size)


cdef void forward_part(Run *run, Py_ssize_t thread, Part *p, Member *me) noexcept nogil:
    """All steps of the part's rows and of the member's blocks."""
    cdef Sequence *s = &run.seq[me.direction]
    cdef Py_ssize_t step, phase
    p.step1 = run.step0
    while p.step1 < run.step1 and s.active[p.step1] > p.row0:
        p.step0 = p.step1
        p.step1 = min(run.step1, p.step0 + run.chunk_steps)
        if thread == 0:
            look_for_signals(run)
        if me.size == 1 and run.interrupted:
            return
        run.level.project(s, p)
        for step in range(p.step0, p.step1):
            for phase in range(1 + (s.w.w_2 != NULL)):
                run.level.forward_step(s, p, step, phase)
                if not meet(run, me):
                    return
                own_blocks(s, p, me)


cdef void forward_thread(Run *run, Py_ssize_t thread, Py_ssize_t threads) noexcept nogil:
    cdef Part p
    cdef Member me
    cdef Py_ssize_t item, d
    set_up_part(run, &p, thread)
    if run.groups:
        item = team_claim(&run.team[2])
        while item < run.groups * run.directions:
            join(run, &me, item % run.directions, 0, 1)
            p.row0 = run.bounds[item // run.directions]
            p.row1 = run.bounds[item // run.directions + 1]
            own_blocks(&run.seq[me.direction], &p, &me)
            forward_part(run, thread, &p, &me)
            item = team_claim(&run.team[2])
        return
    for d in range(run.directions):
        if join(run, &me, d, thread, threads):
            p.row0, p.row1 = 0, run.seq[d].active[0]
            p.gates = run.gates[d]
            own_blocks(&run.seq[d], &p, &me)
            forward_part(run, thread, &p, &me)


cdef void weights_and_inputs(Run *run, Part *p, Member *me, Py_ssize_t *claimed) noexcept nogil:
    """The chunk's share of the weight gradients by block, and of dx by entries."""
    cdef Sequence *s = &run.seq[me.direction]
    cdef Team *team = &run.team[me.direction]
    cdef Py_ssize_t entries = s.first[p.step1] - p.origin
    cdef Py_ssize_t items = s.w.blocks + (entries + DX_ENTRIES - 1) // DX_ENTRIES
    cdef Py_ssize_t item = team_claim(team) - claimed[0], entry
    while item < items:
        if item < s.w.blocks:
            p.block0, p.block1 = item, item + 1
            run.level.weight_gradient(s, p)
        else:
            entry = (item - s.w.blocks) * DX_ENTRIES
            run.level.input_gradient(s, p, entry, min(entries, entry + DX_ENTRIES))
        item = team_claim(team) - claimed[0]
    # Every thread of the team fails to claim exactly once.
    claimed[0] += items + me.size


cdef bint backward_recurrence(Run *run, Part *p, Member *me) noexcept nogil:
    """Gradients of all pre-activations of a chunk, and the rows they will be multiplied with."""
    cdef Sequence *s = &run.seq[me.direction]
    cdef Py_ssize_t step, rows = s.active[p.step0], step0 = p.step0, step1 = p.step1
    cdef Py_ssize_t phase, phases = 2 + (s.w.w_2 != NULL)
    cdef bint by_rows = me.size == 1 or rows >= 8 * me.size or s.w.norm != NONE
    p.row0, p.row1, p.block0, p.block1 = 0, rows, 0, s.w.blocks
    p.out0, p.out1 = 0, s.w.out_blocks
    if by_rows:
        p.row0, p.row1 = share(rows, me.rank, me.size), share(rows, me.rank + 1, me.size)
    else:
        own_blocks(s, p, me)
    for step in range(step1 - 1, step0 - 1, -1):
        for phase in range(phases):
            run.level.backward_step(s, p, step, phase)
            # The last phase leaves each thread what it needs itself.
            if not by_rows and phase < phases - 1:
                if not meet(run, me):
                    return False
                own_blocks(s, p, me)
    if not by_rows:
        p.step0 = step0 + share(step1 - step0, me.rank, me.size)
        p.step1 = step0 + share(step1 - step0, me.rank + 1, me.size)
    run.level.copy_rows(s, p)
    p.step0, p.step1 = step0, step1
    return True


cdef void backward_thread(Run *run, Py_ssize_t thread, Py_ssize_t threads) noexcept nogil:
    cdef Part p
    cdef Member me
    cdef Sequence *s
    cdef Py_ssize_t d, claimed
    set_up_part(run, &p, thread)
    for d in range(run.directions):
        if not join(run, &me, d, thread, threads):
            continue
        claimed = 0
        s = &run.seq[d]
        p.step1 = run.step1
        while p.step1 > run.step0:
            p.step0 = (p.step1 - 1) // run.chunk_steps * run.chunk_steps
            p.origin = s.first[p.step0]
            if thread == 0:
                look_for_signals(run)
            if me.size == 1 and run.interrupted:
                return
            if not backward_recurrence(run, &p, &me) or not meet(run, &me):
                return
            weights_and_inputs(run, &p, &me, &claimed)
            if not meet(run, &me):
                return
            p.step1 = p.step0


cdef void run_thread(Run *run, Py_ssize_t thread, Py_ssize_t threads,
                     bint is_forward) noexcept nogil:
    cdef FpMode mode = fp_flush()
    if is_forward:
        forward_thread(run, thread, threads)
    else:
        backward_thread(run, thread, threads)
    fp_restore(mode)


cdef int go(Run *run, Py_ssize_t threads, bint is_forward) except -1:
    """The parallel region."""
    cdef Py_ssize_t d
    for d in range(3):
        team_init(&run.team[d])
    run.interrupted = run.crowded = False
    run.alone[0] = run.alone[1] = NEVER
    run.looked, run.next_look = False, 0
    if threads == 1:
        with nogil:
            run_thread(run, 0, 1, is_forward)
    else:
        with nogil, parallel(num_threads=threads):
            run_thread(run, threadid(), omp_get_num_threads(), is_forward)
        note_crowd(run.crowded)
    if run.interrupted:
        raise_pending()
    return 0


cdef void note_crowd(bint crowded) noexcept:
    """Stay on one thread for a while, or forget a little of earlier crowds."""
    global crowded_until, crowded_for
    if crowded:
        crowded_until = seconds() + crowded_for
        crowded_for = min(CROWDED_MOST, 2 * crowded_for)
    else:
        crowded_for = max(CROWDED_LEAST, 0.95 * crowded_for)


cdef int raise_pending() except -1:
    return -1


cdef Py_ssize_t bound_groups(Run *run, Call call) except -1:
    """Cut the sorted rows into groups of about the same number of steps; rows of the largest."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t rows = s.active[0], row = 0, group, most = 0
    cdef double total = s.first[s.steps], before = 0
    run.bounds = <Py_ssize_t *>call.arena.room(run.groups + 1, sizeof(Py_ssize_t), True)
    for group in range(1, run.groups + 1):
        while row < rows and before < total * group / run.groups:
            before += call.length[row]
            row += 1
        run.bounds[group] = row
        most = max(most, row - run.bounds[group - 1])
    return max(1, most)


cdef void size_scratch(Run *run, Call call, Py_ssize_t rows) noexcept:
    """What a part needs besides slots or panel."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t vector = call.level.lanes * call.level.itemsize
    run.lines_size = 3 * s.w.blocks * vector if s.w.norm != NONE else 0
    run.masked_size = rows * s.w.out_blocks * vector if s.h_mask != NULL else 0
    run.scratch_size = (2 * run.entries * <Py_ssize_t>sizeof(void *) + run.lines_size
                        + run.masked_size)


cdef int plan_forward(Run *run, Call call, Py_ssize_t threads) except -1:
    """Split the work, and allocate what the threads need."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t row_size = (s.w.blocks * s.w.slots * call.level.lanes * call.level.itemsize)
    cdef Py_ssize_t rows = s.active[0], group_rows = max(1, rows), d, shared
    run.seq, run.level, run.directions = call.seq, call.level, call.directions
    run.groups = row_groups(call, threads)
    if run.groups:
        group_rows = bound_groups(run, call)
    run.chunk_steps = max(1, min(CHUNK_ENTRIES, CHUNK_BYTES // row_size) // group_rows)
    run.chunk_steps = min(run.chunk_steps, max(1, s.steps))
    run.entries = run.chunk_steps * group_rows
    size_scratch(run, call, group_rows)
    shared = 0 if s.tape != NULL else times(run.entries, row_size)
    if run.groups:
        run.scratch_size += shared
    run.scratch_size = (run.scratch_size + 127) & ~<Py_ssize_t>63
    run.scratch = <char *>call.arena.room(threads, run.scratch_size)
    if not run.groups:
        for d in range(run.directions):
            run.gates[d] = <char *>call.arena.room(1, shared)
    run.patience = PATIENCE + 1e-10 * call.work() / max(1, s.steps)
    return 0


cdef int plan_backward(Run *run, Call call, Py_ssize_t threads) except -1:
    """Likewise."""
    cdef Sequence *s = &call.seq[0]
    run.seq, run.level, run.directions = call.seq, call.level, call.directions
    run.chunk_steps = chunk_of(s.rows)
    run.entries = max(CHUNK_ENTRIES, s.rows)
    size_scratch(run, call, s.rows)
    run.scratch_size += run.entries * 4 * call.level.lanes * call.level.itemsize
    run.scratch_size = (run.scratch_size + 127) & ~<Py_ssize_t>63
    run.scratch = <char *>call.arena.room(threads, run.scratch_size)
    run.patience = PATIENCE + 1e-10 * call.work() * run.chunk_steps / max(1, s.steps)
    return 0
