# Layer normalisation (Ba, Kiros and Hinton 2016): LN(v) = (v - mean) / sqrt(variance + epsilon),
# times a weight per unit. A row is normalised by one thread, which has all of its blocks.
#
#   of products (Haste)   LN(W x) + LN(U h) + b, each over all gates; LSTM: h = o tanh(LN(c) + b_c)
#   of gates (TFLite)     LN(W x + U h + p c) + b, every gate by itself
#
# Sums over a row have one order on all levels: into 64 bytes of partial sums, which are then added
# up in order.

cdef extern from *:
    """
    enum { PARTIAL = 64 / sizeof(CYLSTM_REAL), PARTIAL_VECTORS = 64 / CYLSTM_LANES_BYTES };
    """
    const Py_ssize_t PARTIAL
    const Py_ssize_t PARTIAL_VECTORS

cdef enum:
    STRAIGHT, SQUARED, TIMES


cdef real row_sum(const real *v, Py_ssize_t stride, const real *w, Py_ssize_t w_stride,
                  real shift, int what, Py_ssize_t gates, Py_ssize_t hidden) noexcept nogil:
    """Sum over gates and units of v, (v - shift)^2 or v w; strides from block to block."""
    cdef vec sums[4]
    cdef vec a
    cdef real parts[16]
    cdef real total = 0
    cdef Py_ssize_t block, k
    for k in range(PARTIAL_VECTORS):
        sums[k] = vset(0)
    for block in range((hidden + LANES - 1) // LANES):
        for k in range(gates):
            a = vload(v + block * stride + k * LANES)
            if what == SQUARED:
                a = a - vset(shift)
                a = a * a
            elif what == TIMES:
                a = a * vload(w + block * w_stride + k * LANES)
            sums[block % PARTIAL_VECTORS] = (sums[block % PARTIAL_VECTORS]
                                             + vfirst(a, hidden - block * LANES))
    for k in range(PARTIAL_VECTORS):
        vstore(parts + k * LANES, sums[k])
    for k in range(PARTIAL):
        total += parts[k]
    return total


cdef real row_mean(const real *v, Py_ssize_t stride, const real *w, Py_ssize_t w_stride,
                   real shift, int what, Py_ssize_t gates, Py_ssize_t hidden) noexcept nogil:
    return row_sum(v, stride, w, w_stride, shift, what, gates, hidden) / <real>(gates * hidden)


cdef real normalise(real *v, Py_ssize_t stride, real *into, Py_ssize_t into_stride,
                    Py_ssize_t gates, Py_ssize_t hidden, Norm norm) noexcept nogil:
    """Normalise a row; returns 1 / standard deviation."""
    cdef real mean = row_mean(v, stride, NULL, 0, 0, STRAIGHT, gates, hidden)
    cdef real variance = row_mean(v, stride, NULL, 0, mean, SQUARED, gates, hidden)
    # Haste's and TFLite's own constants.
    cdef real scale = 1 / sqrt(variance + <real>(1e-5 if norm == OF_PRODUCTS else 1e-8))
    cdef Py_ssize_t block, k
    for block in range((hidden + LANES - 1) // LANES):
        for k in range(gates):
            vstore(into + block * into_stride + k * LANES,
                   (vload(v + block * stride + k * LANES) - vset(mean)) * vset(scale))
    return scale


cdef void normalise_backward(real *d, Py_ssize_t d_stride, const real *normed, Py_ssize_t stride,
                             real scale, Py_ssize_t gates, Py_ssize_t hidden) noexcept nogil:
    """Turn the gradient of a normalised row into the gradient of the row, in place."""
    cdef real mean = row_mean(d, d_stride, NULL, 0, 0, STRAIGHT, gates, hidden)
    cdef real along = row_mean(d, d_stride, normed, stride, 0, TIMES, gates, hidden)
    cdef Py_ssize_t block, k
    cdef real *at
    for block in range((hidden + LANES - 1) // LANES):
        for k in range(gates):
            at = d + block * d_stride + k * LANES
            vstore(at, vset(scale)
                   * (vload(at) - vset(mean)
                      - vload(normed + block * stride + k * LANES) * vset(along)))


cdef inline real *scales_at(const Sequence *s, Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """1 / standard deviation of a row's norms at a step, on the tape."""
    return <real *>s.scales + (s.first[step] - s.first[s.base] + row) * 4


cdef inline real *line(const Sequence *s, const Part *p, Py_ssize_t which) noexcept nogil:
    """Room for a vector per block."""
    return <real *>p.lines + which * s.w.blocks * LANES


cdef void norm_row(const Sequence *s, real *v, real *into, Py_ssize_t gates, Py_ssize_t which,
                   Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """Normalise slots `v` of a row; keep the scale on the tape."""
    cdef Py_ssize_t stride = s.w.slots * LANES
    cdef real scale = normalise(v, stride, into, stride, gates, s.w.hidden, s.w.norm)
    if s.scales != NULL:
        scales_at(s, step, row)[which] = scale


cdef void norm_inputs(const Sequence *s, const Part *p) noexcept nogil:
    """LN(W x) of a chunk, in place."""
    cdef Py_ssize_t step, row
    cdef real *v
    for step in range(p.step0, p.step1):
        for row in range(p.row0, p.row0 + rows_at(s, p, step)):
            v = gates_at(s, p, step, row) + s.w.normed * LANES
            norm_row(s, v, v, s.w.gates, 0, step, row)


cdef void norm_step(const Sequence *s, const Part *p, Py_ssize_t step,
                    Py_ssize_t n) noexcept nogil:
    """U h, the norms and the cell, for rows whose h and slots are in p.a and p.out."""
    cdef Py_ssize_t i
    cdef Py_ssize_t slot = s.w.normed + s.w.gates if s.w.norm == OF_PRODUCTS else 0
    cdef const real *init = zeros if s.w.norm == OF_PRODUCTS else NULL
    cdef Blocks at = Blocks(s, p, step, 0, 0, 0, s.w.blocks)
    cdef real *z
    if n > 0:
        product(<const real **>p.a, 1, <real **>p.out, slot * LANES, s.w.slots * LANES, n,
                &s.w.w_hh, 0, s.w.blocks, init, 0)
    for i in range(n):
        z = <real *>p.out[i]
        if s.w.norm == OF_PRODUCTS:
            norm_row(s, z + slot * LANES, z + slot * LANES, s.w.gates, 1, step, p.row0 + i)
            add_products(s, z)
        if s.w.cell.normed != NULL:
            s.w.cell.normed(s, p, z, step, p.row0 + i)
        else:
            at.row0, at.row1 = p.row0 + i, p.row0 + i + 1
            s.w.cell.forward(&at, False)


cdef void add_products(const Sequence *s, real *z) noexcept nogil:
    """Pre-activations of a row: both normalised products, each times its weight, and the bias."""
    cdef Py_ssize_t size = s.w.slots * LANES, block, k
    cdef real *at
    for block in range(s.w.blocks):
        at = z + block * size
        for k in range(s.w.summed):
            vstore(at + k * LANES, single(s, s.w.norm_bias + k, block))
        for k in range(s.w.gates):
            vstore(at + k * LANES,
                   vfma(vload(at + (s.w.normed + k) * LANES), single(s, s.w.norm_x + k, block),
                        vload(at + k * LANES)))
        for k in range(s.w.gates):
            vstore(at + (s.w.h_slot + k) * LANES,
                   vfma(vload(at + (s.w.normed + s.w.gates + k) * LANES),
                        single(s, s.w.norm_h + k, block), vload(at + (s.w.h_slot + k) * LANES)))


cdef inline vec shown_cell(const Sequence *s, vec normed, Py_ssize_t block) noexcept nogil:
    return vfma(normed, single(s, s.w.norm_c, block), single(s, s.w.norm_c + 1, block))


cdef void norm_gate(const Sequence *s, const real *c, Py_ssize_t c_stride, Py_ssize_t which,
                    real *z, Py_ssize_t slot, Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """One gate's sum, with peephole `which` (or -1) of c, normalised; then its weight and bias."""
    cdef Py_ssize_t size = s.w.slots * LANES, block
    cdef real *at
    for block in range(s.w.blocks if which >= 0 else 0):
        at = z + block * size + slot * LANES
        vstore(at, vfma(single(s, s.w.peephole + which, block), vload(c + block * c_stride),
                        vload(at)))
    norm_row(s, z + slot * LANES, z + (s.w.normed + slot) * LANES, 1, slot, step, row)
    for block in range(s.w.blocks):
        at = z + block * size
        vstore(at + slot * LANES,
               vfma(vload(at + (s.w.normed + slot) * LANES), single(s, s.w.norm_x + slot, block),
                    single(s, s.w.norm_bias + slot, block)))


cdef inline Py_ssize_t peephole_of(const Sequence *s, Py_ssize_t slot) noexcept nogil:
    """Which of the peepholes a slot has, -1 for none."""
    if s.w.peephole < 0 or slot == s.w.gates - 2:
        return -1
    return slot if slot < s.w.gates - 2 else slot - 1


cdef void lstm_normed(const Sequence *s, const Part *p, void *slots, Py_ssize_t step,
                      Py_ssize_t row) noexcept nogil:
    """One row of an LSTM. The output gate comes last: it may see the new cell state."""
    cdef Py_ssize_t last = s.w.gates - 1, size = s.w.slots * LANES, slot, block
    cdef bint of_gates = s.w.norm == OF_GATES
    cdef real *z = <real *>slots
    cdef vec c, shown
    for slot in range(last if of_gates else 0):
        norm_gate(s, other_state(s, 1, step, row, 0), LANES, peephole_of(s, slot), z, slot, step,
                  row)
    for block in range(s.w.blocks):
        vstore(line(s, p, 0) + block * LANES,
               lstm_input(s, z + block * size, step, row, block, False))
    if of_gates:
        norm_gate(s, line(s, p, 0), LANES, peephole_of(s, last), z, last, step, row)
    else:
        normalise(line(s, p, 0), LANES, line(s, p, 1), LANES, 1, s.w.hidden, s.w.norm)
    for block in range(s.w.blocks):
        c = shown = vload(line(s, p, 0) + block * LANES)
        if not of_gates:
            shown = shown_cell(s, vload(line(s, p, 1) + block * LANES), block)
        lstm_output(s, z + block * size, step, row, block, c, shown, False)


cdef void norm_backward(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """Gradients of both products of `step`."""
    cdef Py_ssize_t n = rows_at(s, p, step), row, block, entry
    cdef Blocks at = Blocks(s, p, step, 0, 0, 0, s.w.blocks)
    cdef real *z
    cdef real *d_x
    cdef real *d_h
    cdef real *d_single
    for row in range(p.row0, p.row0 + n):
        entry = entry_of(s, p, step, row)
        z = gates_at(s, p, step, row)
        d_x = <real *>s.d_x + entry * s.w.blocks * s.w.gates * LANES
        d_h = <real *>s.d_h + entry * s.w.blocks * s.d_h_gates * LANES
        d_single = <real *>s.d_singles + row * s.w.blocks * s.w.singles * LANES
        if s.w.cell.normed_backward != NULL:
            s.w.cell.normed_backward(s, p, z, d_x, d_single, step, row, entry)
        else:
            at.row0, at.row1 = row, row + 1
            s.w.cell.backward(&at, False)
        if s.w.norm == OF_PRODUCTS:
            norm_products_backward(s, z, d_x, d_h, d_single, scales_at(s, step, row))
        for block in range(s.w.blocks):
            if s.w.hidden < (block + 1) * LANES:
                clear_padding(s, d_x + block * s.w.gates * LANES, s.w.gates, block)
                clear_padding(s, d_h + block * s.d_h_gates * LANES, s.d_h_gates, block)


cdef void lstm_normed_backward(const Sequence *s, const Part *p, const void *slots, void *d_slots,
                               void *terms, Py_ssize_t step, Py_ssize_t row,
                               Py_ssize_t entry) noexcept nogil:
    """Gradients of the gates' arguments; with a norm of gates, of the sums before the norm."""
    cdef const real *z = <const real *>slots
    cdef real *d_x = <real *>d_slots
    cdef real *d_single = <real *>terms
    cdef Py_ssize_t size = s.w.slots * LANES, d_size = s.w.gates * LANES
    cdef Py_ssize_t n_size = s.w.singles * LANES, block, slot, last = s.w.gates - 1
    cdef real *c = line(s, p, 0)
    cdef real *normed = line(s, p, 1)
    cdef real *dc = line(s, p, 2)
    cdef real *carry
    cdef real scale = 0
    cdef vec shown, d
    for block in range(s.w.blocks):
        vstore(c + block * LANES, lstm_new_state(s, z + block * size, step, row, block, False))
    if s.w.norm == OF_PRODUCTS:
        scale = normalise(c, LANES, normed, LANES, 1, s.w.hidden, s.w.norm)
    for block in range(s.w.blocks):
        shown = vload(c + block * LANES)
        if s.w.norm == OF_PRODUCTS:
            shown = shown_cell(s, vload(normed + block * LANES), block)
        d = lstm_seen(s, z + block * size, step, row, block, entry, shown, False)
        d = lstm_output_backward(s, z + block * size, d_x + block * d_size, d, shown, False)
        if s.w.norm == OF_PRODUCTS:
            add_to(d_single + block * n_size + s.w.norm_c * LANES,
                   d * vload(normed + block * LANES))
            add_to(d_single + block * n_size + (s.w.norm_c + 1) * LANES, d)
            d = d * single(s, s.w.norm_c, block)
        vstore(dc + block * LANES, d)
    if s.w.norm == OF_PRODUCTS:
        normalise_backward(dc, LANES, normed, LANES, scale, 1, s.w.hidden)
    else:
        norm_gate_backward(s, c, z, d_x, d_single, dc, LANES, last, step, row)
    for block in range(s.w.blocks):
        lstm_input_backward(s, z + block * size, d_x + block * d_size, d_single + block * n_size,
                            step, row, block, vload(c + block * LANES), vload(dc + block * LANES),
                            False)
    for slot in range(last if s.w.norm == OF_GATES else 0):
        norm_gate_backward(s, other_state(s, 1, step, row, 0), z, d_x, d_single,
                           carried(s, 1, row, 0), LANES, slot, step, row)


cdef void norm_gate_backward(const Sequence *s, const real *c, const real *z, real *d_x,
                             real *d_single, real *dc, Py_ssize_t c_stride, Py_ssize_t slot,
                             Py_ssize_t step, Py_ssize_t row) noexcept nogil:
    """Gradient of one gate's sum, and of c through the gate's peephole."""
    cdef Py_ssize_t size = s.w.slots * LANES, d_size = s.w.gates * LANES
    cdef Py_ssize_t n_size = s.w.singles * LANES, block, which = peephole_of(s, slot)
    cdef real *terms
    cdef vec d
    for block in range(s.w.blocks):
        terms = d_single + block * n_size
        d = vload(d_x + block * d_size + slot * LANES)
        add_to(terms + (s.w.norm_bias + slot) * LANES, d)
        add_to(terms + (s.w.norm_x + slot) * LANES,
               d * vload(z + block * size + (s.w.normed + slot) * LANES))
        vstore(d_x + block * d_size + slot * LANES, d * single(s, s.w.norm_x + slot, block))
    normalise_backward(d_x + slot * LANES, d_size, z + (s.w.normed + slot) * LANES, size,
                       scales_at(s, step, row)[slot], 1, s.w.hidden)
    for block in range(s.w.blocks if which >= 0 else 0):
        d = vload(d_x + block * d_size + slot * LANES)
        add_to(d_single + block * n_size + (s.w.peephole + which) * LANES,
               d * vload(c + block * c_stride))
        vstore(dc + block * c_stride,
               vfma(single(s, s.w.peephole + which, block), d, vload(dc + block * c_stride)))


cdef void norm_products_backward(const Sequence *s, const real *z, real *d_x, real *d_h,
                                 real *d_single, const real *scales) noexcept nogil:
    """Turn the gradients of both norms' sums into gradients of both products."""
    cdef Py_ssize_t gates = s.w.gates, size = s.w.slots * LANES, block, k
    cdef real *terms
    cdef real *x
    cdef real *h
    cdef const real *at
    for block in range(s.w.blocks):
        terms = d_single + block * s.w.singles * LANES
        x = d_x + block * gates * LANES
        h = d_h + block * gates * LANES
        at = z + block * size + s.w.normed * LANES
        if s.w.summed == gates:     # both products have the same slots
            memcpy(h, x, gates * LANES * sizeof(real))
        for k in range(gates):
            add_to(terms + (s.w.norm_bias + k) * LANES, vload(x + k * LANES))
        # What only the recurrent product writes to has a bias of its own, as a GRU's u.
        for k in range(gates, s.w.summed):
            add_to(terms + (s.w.norm_bias + k) * LANES, vload(h + (gates - 1) * LANES))
        for k in range(gates):
            add_to(terms + (s.w.norm_x + k) * LANES, vload(x + k * LANES) * vload(at + k * LANES))
            vstore(x + k * LANES, vload(x + k * LANES) * single(s, s.w.norm_x + k, block))
        at += gates * LANES
        for k in range(gates):
            add_to(terms + (s.w.norm_h + k) * LANES, vload(h + k * LANES) * vload(at + k * LANES))
            vstore(h + k * LANES, vload(h + k * LANES) * single(s, s.w.norm_h + k, block))
    at = z + s.w.normed * LANES
    normalise_backward(d_x, gates * LANES, at, size, scales[0], gates, s.w.hidden)
    normalise_backward(d_h, gates * LANES, at + gates * LANES, size, scales[1], gates,
                       s.w.hidden)
