# Where a row's states, outputs and masks are, and what is done to a state on its way.

cdef inline real *state(const Sequence *s, Py_ssize_t step, Py_ssize_t row,
                        Py_ssize_t block) noexcept nogil:
    """A row's block of h before `step`."""
    return <real *>s.state[0] + ((s.state_at[step] + row) * s.w.out_blocks + block) * LANES


cdef inline real *other_state(const Sequence *s, Py_ssize_t k, Py_ssize_t step, Py_ssize_t row,
                              Py_ssize_t block) noexcept nogil:
    """A row's block of another state, such as an LSTM's c, 1, before `step`."""
    return <real *>s.state[k] + ((s.state_at[step] + row) * s.w.blocks + block) * LANES


cdef inline real *carried_h(const Sequence *s, Py_ssize_t row, Py_ssize_t block) noexcept nogil:
    return <real *>s.d_state[0] + (row * s.w.out_blocks + block) * LANES


cdef inline real *carried(const Sequence *s, Py_ssize_t k, Py_ssize_t row,
                          Py_ssize_t block) noexcept nogil:
    return <real *>s.d_state[k] + (row * s.w.blocks + block) * LANES


cdef inline real *second(const Sequence *s, Py_ssize_t row, Py_ssize_t block) noexcept nogil:
    """What the second product of a step reads."""
    return <real *>s.second + (row * s.w.blocks + block) * LANES


cdef inline real *d_second(const Sequence *s, Py_ssize_t row, Py_ssize_t block) noexcept nogil:
    return <real *>s.d_second + (row * s.w.blocks + block) * LANES


cdef inline real *copied(const Sequence *s, void *copy, Py_ssize_t entry,
                         Py_ssize_t block) noexcept nogil:
    """A block of one of the copies that weight gradients are made of."""
    return <real *>copy + ((block // SLAB * s.entries + entry) * SLAB + block % SLAB) * LANES


cdef inline vec single(const Sequence *s, Py_ssize_t which, Py_ssize_t block) noexcept nogil:
    """The block of a single-unit weight, such as a peephole."""
    return vload(<real *>s.w.single + (block * s.w.singles + which) * LANES)


cdef inline void add_to(real *at, vec v) noexcept nogil:
    """Add to the gradient of a single-unit weight."""
    vstore(at, vload(at) + v)


cdef inline vec masked(const Sequence *s, Py_ssize_t row, Py_ssize_t block,
                       vec v) noexcept nogil:
    """Recurrent dropout: the same factors at every step (Gal and Ghahramani 2016)."""
    if s.h_mask == NULL:
        return v
    return v * vload(<real *>s.h_mask + (row * s.w.out_blocks + block) * LANES)


cdef inline vec fed(const Sequence *s, Py_ssize_t step, Py_ssize_t row,
                    Py_ssize_t block) noexcept nogil:
    """The hidden state as the recurrent weights see it."""
    return masked(s, row, block, vload(state(s, step, row, block)))


cdef inline Py_ssize_t when(const Sequence *s, Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """How many strides from its start a row's step is."""
    return step if s.time == NULL else s.time[s.first[step] + row]


cdef inline Py_ssize_t time_of(const Sequence *s, Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """The step as the caller counts it."""
    if s.time == NULL and s.w.reverse:
        return s.length[row] - 1 - step
    return when(s, step, row)


cdef inline vec attention(const Sequence *s, Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """The number that comes with a row's step."""
    return vset((<real *>s.attention)[s.attention_row[row] + when(s, step, row) * s.attention_step])


# Zoneout (Krueger et al. 2017): h_t = k h_{t-1} + (1 - k) h, k random in training, otherwise its
# mean.

cdef inline vec zone_of_h(const Sequence *s, Py_ssize_t step, Py_ssize_t row,
                          Py_ssize_t block) noexcept nogil:
    if s.zone_h == NULL:
        return vset(s.w.zone)
    return vload_part(<real *>s.zone_h + s.zone_h_row[row] + when(s, step, row) * s.zone_h_step
                      + block * LANES, s.w.outputs - block * LANES)


cdef inline vec zone_of_c(const Sequence *s, Py_ssize_t step, Py_ssize_t row,
                          Py_ssize_t block) noexcept nogil:
    if s.zone_c == NULL:
        return vset(s.w.zone_c)
    return vload_part(<real *>s.zone_c + s.zone_c_row[row] + when(s, step, row) * s.zone_c_step
                      + block * LANES, s.w.hidden - block * LANES)


cdef inline bint zones_h(const Sequence *s, bint plain) noexcept nogil:
    return not plain and (s.zone_h != NULL or s.w.zone > 0)


cdef inline bint zones_c(const Sequence *s, bint plain) noexcept nogil:
    return not plain and (s.zone_c != NULL or s.w.zone_c > 0)


# Outputs: all of them, or those the caller picks

cdef inline bint last(const Sequence *s, Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """Whether this is the row's last step in time."""
    return step == (0 if s.w.reverse else s.length[row] - 1)


cdef void pick(const Sequence *s, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
               vec h) noexcept nogil:
    """Write an output or make it part of one."""
    cdef Py_ssize_t size = s.w.outputs - block * LANES, time
    cdef real *at
    if s.pick == EVERY:
        time = time_of(s, step, row) + 1
        if s.y != NULL and time % s.every == 0:
            vstore_part(<real *>s.y + s.y_row[row] + (time // s.every - 1) * s.y_step
                        + block * LANES, h, size)
        return
    if s.pooled == NULL:
        return
    at = <real *>s.pooled + (row * s.w.out_blocks + block) * LANES
    if s.pick == LAST:
        if last(s, step, row):
            vstore(at, h)
        return
    if s.pick == MEAN:
        add_to_mean(s, at, step, row, block, h)
        return
    if step > 0:
        h = vmax(vload(at), h)
    vstore(at, h)


cdef inline void add_to_mean(const Sequence *s, real *at, Py_ssize_t step, Py_ssize_t row,
                             Py_ssize_t block, vec h) noexcept nogil:
    """Add with compensation of rounding (Kahan), so that sums of any length are as accurate."""
    cdef real *rest = <real *>s.pooled_rest + (row * s.w.out_blocks + block) * LANES
    cdef vec before = vload(at), more = h + vload(rest), total = before + more
    cdef vec part = total - before
    vstore(rest, (before - (total - part)) + (more - part))
    if step == s.length[row] - 1:
        total = (total + vload(rest)) / vset(s.length[row])
    vstore(at, total)


cdef vec picked(const Sequence *s, Py_ssize_t step, Py_ssize_t row,
                Py_ssize_t block) noexcept nogil:
    """Gradient of this step's output: the caller's, or what picking outputs makes of it."""
    cdef Py_ssize_t size = s.w.outputs - block * LANES, time
    cdef real *at
    cdef vec d, h
    if s.pick == EVERY:
        time = time_of(s, step, row) + 1
        if s.dy == NULL or time % s.every:
            return vset(0)
        return vload_part(<real *>s.dy + s.dy_row[row] + (time // s.every - 1) * s.dy_step
                          + block * LANES, size)
    if s.d_pooled == NULL or (s.pick == LAST and not last(s, step, row)):
        return vset(0)
    at = <real *>s.d_pooled + (row * s.w.out_blocks + block) * LANES
    d = vload(at)
    if s.pick == MEAN:
        return d / vset(s.length[row])
    if s.pick == MAX:
        # The last step to reach the maximum takes all of it.
        h = vload(state(s, step + 1, row, block))
        h = vunequal(h, vload(<real *>s.best + (row * s.w.out_blocks + block) * LANES), d)
        vstore(at, h)
        return d - h
    return d


cdef inline void show(const Sequence *s, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                      vec h, bint plain) noexcept nogil:
    """The new hidden state, to the next step and to the caller."""
    if zones_h(s, plain):
        h = vmix(zone_of_h(s, step, row, block), h, vload(state(s, step, row, block)))
    vstore(state(s, step + 1, row, block), h)
    if not plain and s.pick != ALL:
        pick(s, step, row, block, h)
    elif s.y != NULL:
        put(s, step, row, block, h)


cdef inline void put(const Sequence *s, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                     vec h) noexcept nogil:
    vstore_part(<real *>s.y + s.y_row[row] + when(s, step, row) * s.y_step + block * LANES, h,
                s.w.outputs - block * LANES)


cdef inline vec seen(const Sequence *s, Py_ssize_t step, Py_ssize_t row, Py_ssize_t block,
                     bint plain) noexcept nogil:
    """The gradient of the new hidden state, from the next step and from the caller.

    Leaves in dh what zoneout lets pass to the state before.
    """
    cdef real *carry = carried_h(s, row, block)
    cdef vec dh = vload(carry), bypass = vset(0)
    if not plain and s.pick != ALL:
        dh = dh + picked(s, step, row, block)
    elif s.dy != NULL:
        dh = dh + vload_part(<real *>s.dy + s.dy_row[row] + when(s, step, row) * s.dy_step
                             + block * LANES, s.w.outputs - block * LANES)
    if zones_h(s, plain):
        bypass = zone_of_h(s, step, row, block) * dh
        dh = dh - bypass
    vstore(carry, bypass)
    return dh


cdef void clear_padding(const Sequence *s, real *d_gates, Py_ssize_t gates,
                        Py_ssize_t block) noexcept nogil:
    """Make lanes beyond the last unit zero: infinite inputs times zero weights made them NaN."""
    cdef Py_ssize_t slot
    for slot in range(gates):
        vstore(d_gates + slot * LANES,
               vload_part(d_gates + slot * LANES, s.w.hidden - block * LANES))
