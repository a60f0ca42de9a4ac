# Time and threads: one job per call.
#
# Forward: with enough rows, threads go through groups of rows, stint by stint, and never meet. With
# few, all threads of a direction share the rows, own blocks of units (whose weights stay in their
# cache) and meet once per step. Backward goes through chunks of time: first the recurrence, split
# likewise, then the chunk's share of weight and input gradients, claimed piece by piece. The split
# never changes the order in which anything is added up.
#
# Where another process needs a processor, a team that meets would wait for a time slice whenever a
# thread loses its own. In inference the team works in memory that nobody else looks at, and its
# leader, which alone gives the caller anything, goes on without a thread that is missing. Where all
# have to write what is kept (the tape, gradients), the first to notice says so, the leader goes on
# alone once all have come, and for a while calls stay on one thread.

cdef extern from "Python.h" nogil:
    # Declared without error return: a pending exception is raised after the region.
    int PyErr_CheckSignals()

cdef enum:
    NEVER = 0x40000000

ctypedef struct Run:
    # Shared by the threads of one call.
    Job job
    bint is_forward
    Sequence *seq
    Level *level
    Py_ssize_t vector       # bytes
    Py_ssize_t directions
    Py_ssize_t groups       # of rows per direction, claimed; 0 if threads own blocks instead
    Py_ssize_t *bounds      # (groups + 1) first row of each group
    Piece *pieces           # (groups * directions)
    Py_ssize_t stint_steps
    Py_ssize_t least_rows   # backward: fewer a thread share rows and own blocks
    Py_ssize_t chunk_steps
    Py_ssize_t step0        # of this run, as are the next; the call may take several
    Py_ssize_t step1
    Team team[2]            # of each direction
    char *scratch           # (threads, scratch_size): private
    Py_ssize_t scratch_size
    Py_ssize_t entries      # room in a Part
    Py_ssize_t lines_size
    Py_ssize_t masked_size
    char *gates[2]          # slots of a direction whose threads own blocks: shared
    bint private            # whether such a team, of the only direction, has these of its own:
    Sequence team_seq
    char *team_gates
    bint left_behind        # a thread that did not come
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


cdef void own_blocks(Sequence *s, Part *p, Member *me) noexcept nogil:
    p.block0 = share(s.w.blocks, me.rank, me.size)
    p.block1 = share(s.w.blocks, me.rank + 1, me.size)
    p.out0 = share(s.w.out_blocks, me.rank, me.size)
    p.out1 = share(s.w.out_blocks, me.rank + 1, me.size)


cdef Meeting meet(Run *run, Sequence *s, Part *p, Member *me) noexcept nogil:
    """Wait for the rest of the team: MET, or GIVEN_UP by the leader, or DISMISSED by it.

    A leader that is alone from here on has met, and has all blocks.
    """
    cdef Meeting how
    if me.size == 1:
        return MET
    me.meetings += 1
    if me.rank == 0 and (run.crowded or run.interrupted):
        run.alone[me.direction] = me.meetings
    how = team_meet(&run.team[me.direction], me.size, run.patience, run.private and me.rank == 0)
    if how == GIVEN_UP or how == DISMISSED:
        return how
    if how == LATE and not run.private:
        run.crowded = True
    if run.alone[me.direction] <= me.meetings:
        if me.rank > 0:
            return DISMISSED
        me.size = 1
        own_blocks(s, p, me)
    return MET


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


cdef void forward_part(Run *run, Py_ssize_t thread, Part *p, Member *me, Py_ssize_t step0,
                       Py_ssize_t step1) noexcept nogil:
    """Some steps of the part's rows and of the member's blocks."""
    cdef Sequence *own = &run.seq[me.direction]
    cdef Sequence *s = own
    cdef Py_ssize_t step
    cdef Meeting how
    if run.private and me.size > 1:
        s, p.gates = &run.team_seq, run.team_gates
    p.step1 = step0
    while p.step1 < step1 and s.active[p.step1] > p.row0:
        p.step0 = p.step1
        p.step1 = min(step1, p.step0 + run.chunk_steps)
        if thread == 0:
            look_for_signals(run)
        if me.size == 1 and run.interrupted:
            return
        run.level.project(s, p)
        for step in range(p.step0, p.step1):
            how = forward_phases(run, s, p, me, step)
            if how == DISMISSED:
                return
            if how == GIVEN_UP:
                # Once more from this step on, in memory that a latecomer does not know.
                s, p.gates, me.size = own, run.gates[0], 1
                run.left_behind = True
                copy_states(&run.team_seq, own, run.vector)
                own_blocks(s, p, me)
                p.step1 = step
                break
            if s != own and me.rank == 0:
                run.level.publish(own, s, p, step)
    if s != own and me.rank == 0:
        copy_states(s, own, run.vector)


cdef Meeting forward_phases(Run *run, Sequence *s, Part *p, Member *me,
                            Py_ssize_t step) noexcept nogil:
    """One step, after each of whose phases the team meets."""
    cdef Py_ssize_t phase
    cdef Meeting how
    for phase in range(1 + (s.w.w_2 != NULL)):
        run.level.forward_step(s, p, step, phase)
        how = meet(run, s, p, me)
        if how != MET:
            return how
    return MET


cdef void copy_states(Sequence *s, Sequence *to, Py_ssize_t vector) noexcept nogil:
    """Both slots of all rows, as inference keeps them; `vector` in bytes."""
    memcpy(to.h, s.h, 2 * s.rows * s.w.out_blocks * vector)
    if s.c != NULL:
        memcpy(to.c, s.c, 2 * s.rows * s.w.blocks * vector)


cdef void forward_groups(Run *run, Py_ssize_t thread, Part *p) noexcept nogil:
    cdef Py_ssize_t steps = run.step1 - run.step0, pieces = run.groups * run.directions
    cdef Py_ssize_t stints = (steps + run.stint_steps - 1) // run.stint_steps
    cdef Py_ssize_t item = take_piece(run.pieces, pieces, stints), step
    cdef Member me
    while item >= 0:
        join(run, &me, item % run.directions, 0, 1)
        p.row0 = run.bounds[item // run.directions]
        p.row1 = run.bounds[item // run.directions + 1]
        own_blocks(&run.seq[me.direction], p, &me)
        step = run.step0 + stint_of(&run.pieces[item]) * run.stint_steps
        forward_part(run, thread, p, &me, step, min(run.step1, step + run.stint_steps))
        leave_piece(&run.pieces[item])
        item = take_piece(run.pieces, pieces, stints)


cdef void forward_thread(Run *run, Py_ssize_t thread) noexcept nogil:
    cdef Part p
    cdef Member me
    cdef Py_ssize_t d, threads
    set_up_part(run, &p, thread)
    if run.groups:
        forward_groups(run, thread, &p)
        return
    threads = assembled(&run.job)
    for d in range(run.directions):
        if join(run, &me, d, thread, threads):
            p.row0, p.row1 = 0, run.seq[d].active[0]
            p.gates = run.gates[d]
            own_blocks(&run.seq[d], &p, &me)
            forward_part(run, thread, &p, &me, run.step0, run.step1)


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
    cdef bint by_rows = me.size == 1 or rows >= run.least_rows * me.size or s.w.norm != NONE
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
                if meet(run, s, p, me) != MET:
                    return False
    if not by_rows:
        p.step0 = step0 + share(step1 - step0, me.rank, me.size)
        p.step1 = step0 + share(step1 - step0, me.rank + 1, me.size)
    run.level.copy_rows(s, p)
    p.step0, p.step1 = step0, step1
    return True


cdef void backward_thread(Run *run, Py_ssize_t thread) noexcept nogil:
    cdef Part p
    cdef Member me
    cdef Sequence *s
    cdef Py_ssize_t d, claimed, threads = assembled(&run.job)
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
            if not backward_recurrence(run, &p, &me) or meet(run, s, &p, &me) != MET:
                return
            weights_and_inputs(run, &p, &me, &claimed)
            if meet(run, s, &p, &me) != MET:
                return
            p.step1 = p.step0


cdef void work(Job *job, Py_ssize_t rank) noexcept nogil:
    """What each thread does."""
    cdef Run *run = <Run *>job
    cdef FpMode mode = fp_flush()
    if run.is_forward:
        forward_thread(run, rank)
    else:
        backward_thread(run, rank)
    fp_restore(mode)


cdef int go(Run *run, Call call, Py_ssize_t threads) except -1:
    """The work of a call, or of one of its windows, by at most so many threads."""
    global n_left_behind
    cdef Py_ssize_t d, expected
    cdef bint all_gone
    for d in range(2):
        team_init(&run.team[d])
    run.interrupted = run.crowded = run.left_behind = False
    run.alone[0] = run.alone[1] = NEVER
    run.looked, run.next_look = False, 0
    run.job.work = work
    if run.groups:
        memset(run.pieces, 0, run.groups * run.directions * sizeof(Piece))
    if run.private:
        copy_states(&run.seq[0], &run.team_seq, run.vector)
    with nogil:
        expected = hire(&run.job, threads - 1)
        if not run.is_forward or run.groups == 0:
            assemble(&run.job, expected)
        work(&run.job, 0)
        all_gone = dismiss(&run.job, run.left_behind)
    n_left_behind += run.left_behind
    call.job = &run.job
    if threads > 1:
        note_crowd(run.crowded)
        keep_while_used(call, all_gone)
    if run.interrupted:
        raise_pending()
    return 0


# Calls that a helper may still be at, whose memory must stay.
cdef list left_behind = []
cdef object left_behind_lock = allocate_lock()
cdef Py_ssize_t n_left_behind = 0


cdef int keep_while_used(Call call, bint all_gone) except -1:
    """Keep what a helper still uses; forget what none does any more."""
    cdef Call other
    if all_gone and not left_behind:
        return 0
    with left_behind_lock:
        if not all_gone:
            left_behind.append(call)
        left_behind[:] = [other for other in left_behind if not all_left(other.job)]
    return 0


cdef void note_crowd(bint crowded) noexcept:
    """Stay on one thread for a while, or forget a little of earlier crowds."""
    global crowded_until, crowded_for
    if crowded:
        crowded_until = seconds() + crowded_for
        crowded_for = min(CROWDED_MOST, 2 * crowded_for)
    else:
        crowded_for = max(CROWDED_LEAST, 0.5 * crowded_for)


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


cdef Run *new_run(Call call, bint is_forward) except NULL:
    """In the call's memory, which outlives a helper that is left behind."""
    cdef Run *run = <Run *>call.arena.room(1, sizeof(Run), True)
    run.seq, run.level, run.directions = call.seq, call.level, call.directions
    run.is_forward, run.vector = is_forward, call.level.lanes * call.level.itemsize
    return run


cdef Run *plan_forward(Call call, Py_ssize_t threads) except NULL:
    """Split the work, and allocate what the threads need."""
    cdef Run *run = new_run(call, True)
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t row_size = (s.w.blocks * s.w.slots * call.level.lanes * call.level.itemsize)
    cdef Py_ssize_t rows = s.active[0], group_rows = max(1, rows), d, shared
    run.groups = row_groups(call, threads)
    if run.groups:
        group_rows = bound_groups(run, call)
        run.pieces = <Piece *>call.arena.room(run.groups * run.directions, sizeof(Piece))
    run.chunk_steps = max(1, min(CHUNK_ENTRIES, CHUNK_BYTES // row_size) // group_rows)
    run.chunk_steps = min(run.chunk_steps, max(1, s.steps))
    run.entries = run.chunk_steps * group_rows
    run.stint_steps = max(1, s.steps)
    if threads > 1:
        run.stint_steps = (s.steps // STINTS // run.chunk_steps + 1) * run.chunk_steps
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
    run.private = (run.groups == 0 and run.directions == 1 and s.tape == NULL and s.pick == ALL
                   and threads > 1)
    if run.private:
        run.patience += SHORT_PATIENCE - PATIENCE
        run.team_gates = <char *>call.arena.room(1, shared)
        run.team_seq = s[0]
        run.team_seq.y = NULL
        call.make_states(&run.team_seq, 2)
    return run


cdef Run *plan_backward(Call call, Py_ssize_t threads) except NULL:
    """Likewise."""
    cdef Run *run = new_run(call, False)
    cdef Sequence *s = &call.seq[0]
    run.chunk_steps = chunk_of(s.rows)
    run.least_rows = least_rows(call)
    run.entries = max(CHUNK_ENTRIES, s.rows)
    size_scratch(run, call, s.rows)
    run.scratch_size += run.entries * 4 * call.level.lanes * call.level.itemsize
    run.scratch_size = (run.scratch_size + 127) & ~<Py_ssize_t>63
    run.scratch = <char *>call.arena.room(threads, run.scratch_size)
    run.patience = PATIENCE + 1e-10 * call.work() * run.chunk_steps / max(1, s.steps)
    return run
