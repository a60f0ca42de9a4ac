# Time and threads: one job per call.
#
# Forward: with enough rows, threads go through groups of rows, stint by stint, and never meet. With
# few, all threads of a direction share the rows, own blocks of units (whose weights stay in their
# cache) and meet once per step. Backward goes through chunks of time: first the recurrence, split
# the same way, then the chunk's part of weight and input gradients, claimed piece by piece. The
# split never changes the order in which anything is added up.
#
# Where another process needs a processor, a team that meets would wait for a time slice whenever a
# thread loses its own. In inference the team works in memory that nobody else looks at, and its
# leader, which alone gives the caller anything, goes on without a thread that is missing. Where all
# have to write what is kept (the tape, gradients), the first to notice says so, the leader goes on
# alone once all have come, and for a while calls stay on one thread.
#
# A long run pauses ten times a second: its leader says so at the start of a chunk or while it waits
# for others to finish, all threads leave at the end of theirs, the leader lets Python's signal
# handlers run, and hires again. So nobody is in the job when a handler raises, forks or calls the
# layer. team.h has the protocol.

cdef enum:
    NEVER = 0x7fffffffffffffff

ctypedef struct Clock:
    # When the leader of a call looks for signals again: 0 for not known, -1 for never asked.
    double next_look

ctypedef struct Run:
    # Shared by the threads of one call. Helpers only read what was written while the job was IDLE,
    # but for what is `Shared` or a `Flag`.
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
    Py_ssize_t begin[2]     # where each direction's team goes on: step; backward: chunks done
    Py_ssize_t reached[2]   # up to where it has come, written by its leader alone
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
    bint left_behind        # a thread that did not come; for the leader
    Flag paused             # whether all threads are to leave
    Shared crowded          # whether a thread was kept from running
    Shared alone[2]         # meeting of a direction's team after which its leader is alone
    Shared stop[2]          # step, or number of chunks, after which all leave
    double patience         # seconds to wait for a thread that has its processor
    Clock *clock            # the leader's


ctypedef struct Member:
    # A thread's place in the team of one direction.
    Py_ssize_t direction
    Py_ssize_t rank
    Py_ssize_t size
    Py_ssize_t meetings


cdef inline Py_ssize_t share(Py_ssize_t n, Py_ssize_t rank, Py_ssize_t size) noexcept nogil:
    """First of the elements that one of `size` threads gets of n."""
    return n * rank // size


cdef bint time_to_look(Clock *clock) noexcept nogil:
    """Ten times a second a leader asks for a pause; a short run never asks for the time.

    Only in Python's main thread, since the others run no signal handlers.
    """
    cdef double now
    if clock.next_look < 0:
        clock.next_look = 0
        return False
    now = seconds()
    if clock.next_look == 0:
        clock.next_look = now + SIGNAL_SECONDS
    if now < clock.next_look:
        return False
    clock.next_look = now + SIGNAL_SECONDS
    return in_main_thread()


cdef void look_at_clock(Run *run) noexcept nogil:
    """The leader of a run asks for a pause when it is time."""
    if time_to_look(run.clock):
        raise_flag(&run.paused)


cdef void start_chunk(Run *run, Py_ssize_t thread, Member *me, Py_ssize_t end) noexcept nogil:
    """Where a pause is asked for, the whole team makes one at the end of this chunk."""
    if thread == 0:
        look_at_clock(run)
    if me.rank == 0 and flag_of(&run.paused):
        tell(&run.stop[me.direction], end)


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
    if me.rank == 0 and told(&run.crowded):
        tell(&run.alone[me.direction], me.meetings)
    how = team_meet(&run.team[me.direction], me.size, run.patience, run.private and me.rank == 0)
    if how == GIVEN_UP or how == DISMISSED:
        return how
    if how == LATE and not run.private:
        tell(&run.crowded, True)
    if told(&run.alone[me.direction]) <= me.meetings:
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


cdef Py_ssize_t forward_part(Run *run, Py_ssize_t thread, Part *p, Member *me, Py_ssize_t step0,
                             Py_ssize_t step1) noexcept nogil:
    """Some steps of the part's rows and of the member's blocks; up to where."""
    cdef Sequence *own = &run.seq[me.direction]
    cdef Sequence *s = own
    cdef Py_ssize_t step
    cdef Meeting how
    if run.private and me.size > 1:
        s, p.gates = &run.team_seq, run.team_gates
    p.step1 = step0
    while p.step1 < step1 and s.active[p.step1] > p.row0:
        if p.step1 >= told(&run.stop[me.direction]) or (run.groups and flag_of(&run.paused)):
            step1 = p.step1
            break
        p.step0 = p.step1
        p.step1 = min(step1, p.step0 + run.chunk_steps)
        start_chunk(run, thread, me, p.step1)
        run.level.project(s, p)
        for step in range(p.step0, p.step1):
            how = forward_phases(run, s, p, me, step)
            if how == DISMISSED:
                return step
            if how == GIVEN_UP:
                # Once more from this step on, in memory that a latecomer does not know.
                s, p.gates, me.size = own, run.gates[0], 1
                run.left_behind = True
                copy_states(&run.team_seq, own, run.vector, step)
                own_blocks(s, p, me)
                p.step1 = step
                break
            if s != own and me.rank == 0:
                run.level.publish(own, s, p, step)
    if s != own and me.rank == 0:
        copy_states(s, own, run.vector, step1)
    return step1


cdef Meeting forward_phases(Run *run, Sequence *s, Part *p, Member *me,
                            Py_ssize_t step) noexcept nogil:
    """One step, after each of whose phases the team meets."""
    cdef Py_ssize_t phase
    cdef Meeting how
    for phase in range(1 + (s.w.w_2.data != NULL)):
        run.level.forward_step(s, p, step, phase)
        how = meet(run, s, p, me)
        if how != MET:
            return how
    return MET


cdef void copy_states(Sequence *s, Sequence *to, Py_ssize_t vector,
                      Py_ssize_t step) noexcept nogil:
    """States before `step`, and of rows that have ended before; `vector` in bytes.

    The place of states after `step` is not read where a latecomer may be writing.
    """
    copy_place(s, to, vector, s.state_at[step], 0)
    copy_place(s, to, vector, s.rows - s.state_at[step], s.active[step])


cdef void copy_place(Sequence *s, Sequence *to, Py_ssize_t vector, Py_ssize_t place,
                     Py_ssize_t row) noexcept nogil:
    """States of the rows from `row` on in one of the two places."""
    cdef Py_ssize_t size, count = s.rows - row, k
    place += row
    for k in range(s.w.states):
        size = blocks_of(s, k) * vector
        memcpy(<char *>to.state[k] + place * size, <char *>s.state[k] + place * size, count * size)


cdef Py_ssize_t next_piece(Run *run, Py_ssize_t thread, Py_ssize_t pieces) noexcept nogil:
    """A piece that no other thread is at, maybe after waiting for one; negative after the last."""
    cdef Py_ssize_t item, spins = 0
    while True:
        item = take_piece(run.pieces, pieces, run.step1, &run.paused)
        if item != ALL_TAKEN:
            return item
        if thread == 0:
            look_at_clock(run)
        pause_or_yield(spins)
        spins += 1


cdef void forward_groups(Run *run, Py_ssize_t thread, Part *p) noexcept nogil:
    """Go through the pieces of work that no other thread is at, stint by stint."""
    cdef Py_ssize_t pieces = run.groups * run.directions, step, end
    cdef Py_ssize_t item = next_piece(run, thread, pieces)
    cdef Member me
    while item >= 0:
        join(run, &me, item % run.directions, 0, 1)
        p.row0 = run.bounds[item // run.directions]
        p.row1 = run.bounds[item // run.directions + 1]
        own_blocks(&run.seq[me.direction], p, &me)
        step = piece_step(&run.pieces[item])
        end = step + run.stint_steps - (step - run.step0) % run.stint_steps
        step = forward_part(run, thread, p, &me, step, min(run.step1, end))
        leave_piece(&run.pieces[item], step)
        item = next_piece(run, thread, pieces)


cdef void forward_thread(Run *run, Py_ssize_t thread) noexcept nogil:
    """What one thread does of a forward run."""
    cdef Part p
    cdef Member me
    cdef Py_ssize_t d, threads, step
    set_up_part(run, &p, thread)
    if run.groups:
        forward_groups(run, thread, &p)
        return
    threads = assembled(&run.job, thread)
    for d in range(run.directions):
        if join(run, &me, d, thread, threads):
            p.row0, p.row1 = 0, run.seq[d].active[0]
            p.gates = run.gates[d]
            own_blocks(&run.seq[d], &p, &me)
            step = forward_part(run, thread, &p, &me, run.reached[d] if me.rank == 0
                                else run.begin[d], run.step1)
            if me.rank == 0:
                run.reached[d] = step


cdef void weights_and_inputs(Run *run, Part *p, Member *me, Py_ssize_t *claimed) noexcept nogil:
    """The chunk's part of the weight gradients, by block, and of dx, by entries."""
    cdef Sequence *s = &run.seq[me.direction]
    cdef Team *team = &run.team[me.direction]
    cdef Py_ssize_t items = s.w.blocks + (p.entries + DX_ENTRIES - 1) // DX_ENTRIES
    cdef Py_ssize_t item = team_claim(team) - claimed[0], entry
    while item < items:
        if item < s.w.blocks:
            p.block0, p.block1 = item, item + 1
            run.level.weight_gradient(s, p)
        else:
            entry = (item - s.w.blocks) * DX_ENTRIES
            run.level.input_gradient(s, p, entry, min(p.entries, entry + DX_ENTRIES))
        item = team_claim(team) - claimed[0]
    # Every thread of the team fails to claim exactly once.
    claimed[0] += items + me.size


cdef bint backward_recurrence(Run *run, Part *p, Member *me) noexcept nogil:
    """Gradients of all pre-activations of a chunk, and the rows they will be multiplied with."""
    cdef Sequence *s = &run.seq[me.direction]
    cdef Py_ssize_t step, rows = p.chunk_row1 - p.chunk_row0
    cdef Py_ssize_t step0 = p.step0, step1 = p.step1
    cdef Py_ssize_t phase, phases = 2 + (s.w.w_2.data != NULL)
    cdef bint by_rows = me.size == 1 or rows >= run.least_rows * me.size or s.w.norm != NONE
    p.row0, p.row1, p.block0, p.block1 = p.chunk_row0, p.chunk_row1, 0, s.w.blocks
    p.out0, p.out1 = 0, s.w.out_blocks
    if by_rows:
        p.row0 = p.chunk_row0 + share(rows, me.rank, me.size)
        p.row1 = p.chunk_row0 + share(rows, me.rank + 1, me.size)
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
    """What one thread does of a backward run."""
    cdef Member me
    cdef Py_ssize_t d, threads = assembled(&run.job, thread)
    for d in range(run.directions):
        if join(run, &me, d, thread, threads):
            backward_direction(run, thread, &me)


cdef void backward_direction(Run *run, Py_ssize_t thread, Member *me) noexcept nogil:
    """Chunk by chunk, from the last step down; of a step with many rows, from its first row up."""
    cdef Part p
    cdef Sequence *s = &run.seq[me.direction]
    cdef Py_ssize_t claimed = 0, chunk = 0, rows
    set_up_part(run, &p, thread)
    p.step1 = run.step1
    while p.step1 > run.step0:
        p.step0 = (p.step1 - 1) // run.chunk_steps * run.chunk_steps
        rows, p.chunk_row1 = s.active[p.step0], 0
        while p.chunk_row1 < rows:
            p.chunk_row0 = p.chunk_row1
            p.chunk_row1 = rows if rows <= CHUNK_ENTRIES else min(rows, p.chunk_row0 + CHUNK_ROWS)
            chunk += 1
            if chunk <= run.begin[me.direction]:
                continue
            if chunk > told(&run.stop[me.direction]):
                return
            p.origin = s.first[p.step0] + p.chunk_row0
            p.entries = p.chunk_row1 - p.chunk_row0 if rows > CHUNK_ENTRIES \
                else s.first[p.step1] - p.origin
            start_chunk(run, thread, me, chunk)
            if not backward_recurrence(run, &p, me) or meet(run, s, &p, me) != MET:
                return
            weights_and_inputs(run, &p, me, &claimed)
            if meet(run, s, &p, me) != MET:
                return
            if me.rank == 0:
                run.reached[me.direction] = chunk
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


cdef int go(Run *run, Call call, Py_ssize_t threads, Clock *clock) except -1:
    """The work of a call, or of one of its windows, by at most so many threads."""
    cdef Py_ssize_t d
    for d in range(2):
        run.reached[d] = run.step0 if run.is_forward else 0
    for d in range(run.groups * run.directions):
        leave_piece(&run.pieces[d], run.step0)
    run.job.work = work
    run.clock = clock
    call.job = &run.job
    while True:
        go_on(run, call, threads)
        if not flag_of(&run.paused):
            break
        PyErr_CheckSignals()
    if threads > 1:
        note_crowd(told(&run.crowded))
    return 0


cdef void go_on(Run *run, Call call, Py_ssize_t threads) noexcept:
    """Work until all is done or a pause is made. Nothing in it can fail: see team.h."""
    cdef Py_ssize_t d, expected = 0
    cdef bint all_gone = True, several = False
    lower_flag(&run.paused)
    for d in range(2):
        tell(&run.stop[d], NEVER)
    if run.job.state == IDLE:
        start_teams(run)
        several = threads > 1
        job_begin(&run.job, <void *>call)
        if several:
            Py_INCREF(call)
    with nogil:
        if several:
            expected = hire(&run.job, threads - 1)
        if several and (not run.is_forward or run.groups == 0):
            assemble(&run.job, expected)
        work(&run.job, 0)
        if run.job.state == RUNNING:
            if not run.left_behind:
                wait_for_helpers(run)
            all_gone = dismiss(&run.job)
    if several and all_gone:
        Py_DECREF(call)
    free_abandoned()


cdef void wait_for_helpers(Run *run) noexcept nogil:
    """Until those that have begun have left: they may have much to do, so signals are minded."""
    cdef Py_ssize_t spins = 0
    cancel(&run.job)
    while not all_left(&run.job):
        look_at_clock(run)
        pause_or_yield(spins)
        spins += 1


cdef void start_teams(Run *run) noexcept:
    """What helpers read and count, while there are none."""
    cdef Py_ssize_t d
    run.left_behind = False
    tell(&run.crowded, False)
    for d in range(2):
        team_init(&run.team[d])
        tell(&run.alone[d], NEVER)
        run.begin[d] = run.reached[d]
    if run.private:
        copy_states(&run.seq[0], &run.team_seq, run.vector, run.reached[0])


cdef void free_abandoned() noexcept:
    """Let go of calls that were left to a helper which has left since."""
    cdef void *owner = job_reap()
    while owner != NULL:
        Py_DECREF(<object>owner)    # may run any code, and come back here
        owner = job_reap()


cdef Py_ssize_t bound_groups(Run *run, Call call) except -1:
    """Cut the sorted rows into groups of about the same number of steps; rows of the largest."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t rows = call.running, row = 0, start, group, most = 0
    cdef double total = call.entries, before = 0
    run.bounds = <Py_ssize_t *>call.arena.room(run.groups + 1, sizeof(Py_ssize_t), True)
    for group in range(1, run.groups + 1):
        start = row
        while row < rows and before < total * group / run.groups:
            before += s.steps if call.whole else call.length[row]
            row += 1
        if run.bounds != NULL:
            run.bounds[group] = row
        most = max(most, row - start)
    return max(1, most)


cdef void size_scratch(Run *run, Call call, Py_ssize_t rows) noexcept:
    """Pointers of a part other than slots and panel."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t vector = call.level.lanes * call.level.itemsize
    run.lines_size = 3 * s.w.blocks * vector if s.w.norm != NONE else 0
    run.masked_size = rows * s.w.out_blocks * vector if s.h_mask != NULL else 0
    run.scratch_size = (2 * run.entries * <Py_ssize_t>sizeof(void *) + run.lines_size
                        + run.masked_size)


cdef Run *new_run(Call call) except NULL:
    """In the call's memory, which outlives a helper that is left behind."""
    return <Run *>call.arena.room(1, sizeof(Run), True)


cdef void begin_plan(Run *run, Call call, bint is_forward) noexcept:
    """What every run is told of its call."""
    run.seq, run.level, run.directions = call.seq, call.level, call.directions
    run.is_forward, run.vector = is_forward, call.level.lanes * call.level.itemsize


cdef int plan_forward(Run *run, Call call, Py_ssize_t threads) except -1:
    """Split the work of a forward run, and allocate what its threads need."""
    cdef Sequence *s = &call.seq[0]
    cdef Py_ssize_t row_size = (s.w.blocks * s.w.slots * call.level.lanes * call.level.itemsize)
    cdef Py_ssize_t rows = call.running, group_rows = max(1, rows), d, shared
    begin_plan(run, call, True)
    run.groups = row_groups(call, threads)
    if run.groups:
        group_rows = bound_groups(run, call)
        run.pieces = <Piece *>call.arena.room(run.groups * run.directions, sizeof(Piece), True)
    run.chunk_steps = max(1, min(CHUNK_ENTRIES, CHUNK_BYTES // row_size) // group_rows)
    run.chunk_steps = min(run.chunk_steps, max(1, s.steps))
    run.entries = run.chunk_steps * group_rows
    run.stint_steps = max(1, s.steps)
    if threads > 1:
        run.stint_steps = (s.steps // STINTS // run.chunk_steps + 1) * run.chunk_steps
    size_scratch(run, call, group_rows)
    shared = 0 if call.taped else times(run.entries, row_size)
    if run.groups:
        run.scratch_size += shared
    run.scratch_size = (run.scratch_size + 127) & ~<Py_ssize_t>63
    run.scratch = <char *>call.arena.room(threads, run.scratch_size)
    if not run.groups:
        for d in range(run.directions):
            run.gates[d] = <char *>call.arena.room(1, shared)
    run.patience = PATIENCE + 1e-10 * call.work() / max(1, s.steps)
    # Not in windows of a call: a helper left behind in one may still be there in the next.
    run.private = (run.groups == 0 and run.directions == 1 and not call.taped
                   and s.pick == ALL and threads > 1 and call.window == 0)
    if run.private:
        run.patience += SHORT_PATIENCE - PATIENCE
        run.team_gates = <char *>call.arena.room(1, shared)
        run.team_seq = s[0]
        run.team_seq.y = NULL
        call.make_states(&run.team_seq, 2 * s.rows)
    return 0


cdef int plan_backward(Run *run, Call call, Py_ssize_t threads) except -1:
    """Split the work of a backward run, and allocate what its threads need."""
    cdef Sequence *s = &call.seq[0]
    begin_plan(run, call, False)
    run.chunk_steps = chunk_of(s.rows)
    run.least_rows = least_rows(call)
    run.entries = chunk_entries(s.rows)
    size_scratch(run, call, min(s.rows, run.entries))
    run.scratch_size += run.entries * 4 * call.level.lanes * call.level.itemsize
    run.scratch_size = (run.scratch_size + 127) & ~<Py_ssize_t>63
    run.scratch = <char *>call.arena.room(threads, run.scratch_size)
    run.patience = PATIENCE + 1e-10 * call.work() * run.chunk_steps / max(1, s.steps)
    return 0
