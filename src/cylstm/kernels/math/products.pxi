# The products over many rows that the register tile makes up, and the steps made of them.
#
# One order of summation (tile.h), whatever the split into tiles, slices, chunks, rows or threads:
# that is the whole of the bit contract.

cdef extern from *:
    """
    static const CYLSTM_REAL one = 1, zeros[4 * CYLSTM_LANES_BYTES] = {0};
    """
    const real one
    const real *zeros


cdef void product(const real **a, Py_ssize_t a_step, real **out, Py_ssize_t out_start,
                  Py_ssize_t out_block, Py_ssize_t rows, const Matrix *w, Py_ssize_t first,
                  Py_ssize_t blocks, const real *init, Py_ssize_t init_block,
                  bint out_far=False) noexcept nogil:
    """out[row, block] = init[block] + sum_k a[row, k] w[first + block, k], (gates, lanes) each.

    Without `init` it adds to what is in `out`.
    """
    cdef Py_ssize_t block = 0, at_once, tiles, row, count, i
    cdef Tile t
    t.depth, t.a_step, t.w_step, t.w_block = w.depth, a_step, w.step, w.stride
    t.out_block, t.init, t.init_block, t.out_far = out_block, NULL, init_block, out_far
    while block < blocks:
        at_once = tile_blocks(rows, w.gates, blocks - block, w.depth)
        tiles = tile_rows(w.gates, at_once)
        tiles = (rows + tiles - 1) // tiles
        t.w = w.data + (first + block) * w.stride
        t.out_start = out_start + block * out_block
        if init != NULL:
            t.init = init + block * init_block
        row = 0
        for i in range(tiles, 0, -1):
            count = (rows - row + i - 1) // i
            t.a, t.out = a + row, out + row
            run_tile(count, w.gates, at_once, &t)
            row += count
        block += at_once


cdef inline Py_ssize_t rows_at(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """How many of the part's rows are still running."""
    return max(0, min(p.row1, s.active[step]) - p.row0)


cdef inline real *gates_at(const Sequence *s, const Part *p, Py_ssize_t step,
                           Py_ssize_t row) noexcept nogil:
    """The slots of one row at one step: in the tape, or in the part's own scratch."""
    cdef Py_ssize_t size = s.w.blocks * s.w.slots * LANES
    if s.tape != NULL:
        return <real *>s.tape + (s.first[step] - s.first[s.base] + row) * size
    return <real *>p.gates + ((step - p.step0) * (p.row1 - p.row0) + row - p.row0) * size


cdef inline real *masked_row(const Sequence *s, const Part *p, Py_ssize_t row) noexcept nogil:
    """Room for a row of h times its mask."""
    return <real *>p.masked + (row - p.row0) * s.w.out_blocks * LANES


cdef void project(const Sequence *s, const Part *p) noexcept nogil:
    """Slots of the part's steps, rows and blocks: bias + W_ih x; a norm's bias comes later."""
    cdef Py_ssize_t size = s.w.slots * LANES, bias_size = s.w.summed * LANES
    cdef Py_ssize_t step, row, n = 0, i, j, at
    cdef Py_ssize_t start = s.w.normed * LANES if s.w.norm == OF_PRODUCTS else 0
    cdef bint biased = s.w.norm == NONE
    cdef const real *init = <real *>s.w.bias + p.block0 * bias_size
    for step in range(p.step0, p.step1):
        for row in range(p.row0, p.row0 + rows_at(s, p, step)):
            p.a[n] = <real *>s.x + s.x_row[row] + when(s, step, row) * s.x_step
            p.out[n] = gates_at(s, p, step, row)
            n += 1
    if n == 0:
        return
    product(<const real **>p.a, 1, <real **>p.out, p.block0 * size + start, size, n, &s.w.w_ih,
            p.block0, p.block1 - p.block0, init if biased else zeros, bias_size if biased else 0)
    # What only the recurrent product writes to starts from its bias alone.
    for j in range(p.block0, p.block1 if biased and s.w.summed > s.w.gates else p.block0):
        at = s.w.gates * LANES
        for i in range(n):
            vstore(<real *>p.out[i] + j * size + at,
                   vload(<real *>s.w.bias + j * bias_size + at))
    if s.w.norm == OF_PRODUCTS:
        norm_inputs(s, p)


cdef inline void first_product(const Sequence *s, const Part *p, Py_ssize_t step,
                               bint plain) noexcept nogil:
    """Add U h to the slots and apply the cell, up to the second product if there is one."""
    cdef Py_ssize_t gates = s.w.h_gates
    cdef Py_ssize_t n = rows_at(s, p, step), i, j, k, done = 0, block, count, head = 0
    cdef Py_ssize_t at_once = max(1, p.block1 - p.block0)
    cdef Blocks at = Blocks(s, p, step, p.row0, p.row0 + n, 0, 0)
    for i in range(n):
        p.a[i] = state(s, step, p.row0 + i, 0)
        p.out[i] = gates_at(s, p, step, p.row0 + i)
        if not plain and s.h_mask != NULL:
            p.a[i] = masked_row(s, p, p.row0 + i)
            for j in range(s.w.out_blocks):
                vstore(<real *>p.a[i] + j * LANES, fed(s, step, p.row0 + i, j))
    if not plain and s.w.norm != NONE:
        norm_step(s, p, step, n)
        return
    if s.w.h_products:
        at_once = tile_blocks(n, gates, p.block1 - p.block0, s.w.depth)
    while n > 0 and done < p.block1 - p.block0:
        count = min(at_once, p.block1 - p.block0 - done)
        # Every other step goes backwards, to find in cache the weights the last one ended with.
        block = p.block1 - done - count if step & 1 else p.block0 + done
        if s.w.heads > 1:
            head = see_head(s, p, n, step & 1, head, &block, &count)
        for k in range(s.w.h_products):
            product(<const real **>p.a, 1, <real **>p.out,
                    (block * s.w.slots + s.w.h_slot + k) * LANES, s.w.slots * LANES, n, &s.w.w_hh,
                    k * s.w.blocks + block, count, NULL, 0)
        at.block0, at.block1 = block, block + count
        s.w.cell.forward(&at, plain)
        done += count


cdef Py_ssize_t see_head(const Sequence *s, const Part *p, Py_ssize_t n, bint backwards,
                         Py_ssize_t seen_head, Py_ssize_t *block, Py_ssize_t *count) noexcept nogil:
    """Keep to blocks of one head and move p.a to what that sees of h; returns which head."""
    cdef Py_ssize_t of_head = s.w.blocks // s.w.heads, i, end = block[0] + count[0]
    cdef Py_ssize_t head = (end - 1 if backwards else block[0]) // of_head
    block[0] = max(block[0], head * of_head)
    count[0] = min(end, (head + 1) * of_head) - block[0]
    for i in range(n):
        p.a[i] = <real *>p.a[i] + (head - seen_head) * s.w.depth
    return head


cdef void second_product(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """The projection to h, or the last gate's recurrent part, of r h."""
    cdef Py_ssize_t n = rows_at(s, p, step), i, j
    cdef bint projects = s.w.projects
    cdef Py_ssize_t out_block = LANES if projects else s.w.slots * LANES
    cdef const real *init = zeros if projects else NULL
    cdef Blocks at = Blocks(s, p, step, p.row0, p.row0 + n, p.out0, p.out1)
    for i in range(n):
        p.a[i] = second(s, p.row0 + i, 0)
        p.out[i] = state(s, step + 1, p.row0 + i, 0) if projects \
            else gates_at(s, p, step, p.row0 + i)
    if n > 0:
        product(<const real **>p.a, 1, <real **>p.out, p.out0 * out_block, out_block, n, &s.w.w_2,
                p.out0, p.out1 - p.out0, init, 0)
    if not projects:
        s.w.cell.finish(&at, False)
        return
    for i in range(n):
        for j in range(p.out0, p.out1):
            show(s, step, p.row0 + i, j, vload(<real *>p.out[i] + j * out_block), False)


cdef void forward_step(const Sequence *s, const Part *p, Py_ssize_t step,
                       Py_ssize_t phase) noexcept nogil:
    """The state after `step`; the team meets between phases."""
    if phase:
        second_product(s, p, step)
    elif s.plain:
        first_product(s, p, step, True)
    else:
        first_product(s, p, step, False)


cdef void publish(const Sequence *s, const Sequence *team, const Part *p,
                  Py_ssize_t step) noexcept nogil:
    """Give the caller the outputs of a step that a team has made in memory of its own."""
    cdef Py_ssize_t row, block
    for row in range(p.row0, p.row0 + rows_at(s, p, step)):
        for block in range(s.w.out_blocks):
            put(s, step, row, block, vload(state(team, step + 1, row, block)))


cdef inline Py_ssize_t entry_of(const Sequence *s, const Part *p, Py_ssize_t step,
                                Py_ssize_t row) noexcept nogil:
    """Index of a (step, row) pair in the arrays of a chunk."""
    return s.first[step] - p.origin + row


cdef inline void cell_backward(const Sequence *s, const Part *p, Py_ssize_t step,
                               bint plain) noexcept nogil:
    """Gradients of the pre-activations of `step`."""
    cdef Py_ssize_t n = rows_at(s, p, step), row, last
    cdef Blocks at = Blocks(s, p, step, p.row0, p.row0 + n, p.block0, p.block1)
    s.w.cell.backward(&at, plain)
    for row in range(p.row0, p.row0 + n if s.w.hidden < p.block1 * LANES else p.row0):
        last = entry_of(s, p, step, row) * s.w.blocks + p.block1 - 1
        clear_padding(s, <real *>s.d_x + last * s.w.gates * LANES, s.w.gates, p.block1 - 1)
        clear_padding(s, <real *>s.d_h + last * s.d_h_gates * LANES, s.d_h_gates, p.block1 - 1)


cdef void second_output_backward(const Sequence *s, const Part *p,
                                 Py_ssize_t step) noexcept nogil:
    """Gradient of the second product's result."""
    cdef Py_ssize_t n = rows_at(s, p, step), row, block, size
    cdef Blocks at = Blocks(s, p, step, p.row0, p.row0 + n, p.out0, p.out1)
    cdef real *d
    if not s.w.projects:
        s.w.cell.finish_backward(&at, False)
    for row in range(p.row0, p.row0 + n):
        for block in range(p.out0, p.out1):
            d = <real *>s.d_2 + (entry_of(s, p, step, row) * s.w.out_blocks + block) * LANES
            if s.w.projects:
                vstore(d, seen(s, step, row, block, False))
            size = s.w.outputs - block * LANES
            if size < LANES:
                vstore(d, vload_part(d, size))


cdef void second_input_backward(const Sequence *s, const Part *p,
                                Py_ssize_t step) noexcept nogil:
    """Gradient of what the second product multiplies."""
    cdef Py_ssize_t depth = s.w.out_blocks * LANES
    cdef Py_ssize_t n = rows_at(s, p, step), i
    for i in range(n):
        p.a[i] = <real *>s.d_2 + entry_of(s, p, step, p.row0 + i) * depth
        p.out[i] = d_second(s, p.row0 + i, 0)
    if n > 0:
        product(<const real **>p.a, 1, <real **>p.out, p.block0 * LANES, LANES, n, &s.w.w_2_t,
                p.block0, p.block1 - p.block0, zeros, 0)


cdef void state_backward(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """dh += d_h U: the gradient of the state before `step`."""
    cdef Py_ssize_t depth = s.w.blocks * s.d_h_gates * LANES // s.w.heads
    cdef Py_ssize_t out_blocks = s.w.out_blocks // s.w.heads, size = depth * s.w.heads
    cdef Py_ssize_t n = rows_at(s, p, step), i, j, head, out0, out1
    cdef Matrix of_head = s.w.w_hh_t
    cdef const real *init = NULL
    cdef real *carry
    if n == 0 or s.w.h_products == 0:
        return
    if s.h_mask != NULL:
        init = zeros
    for i in range(n):
        p.out[i] = carried_h(s, p.row0 + i, 0) if s.h_mask == NULL \
            else masked_row(s, p, p.row0 + i)
    for head in range(p.out0 // out_blocks, (p.out1 + out_blocks - 1) // out_blocks):
        out0, out1 = max(p.out0, head * out_blocks), min(p.out1, (head + 1) * out_blocks)
        for i in range(n):
            p.a[i] = <real *>s.d_h + entry_of(s, p, step, p.row0 + i) * size + head * depth
        of_head.data, of_head.depth = s.w.w_hh_t.data + head * depth * of_head.step, depth
        product(<const real **>p.a, 1, <real **>p.out, out0 * LANES, LANES, n, &of_head,
                out0 - head * out_blocks, out1 - out0, init, 0)
    for i in range(n if s.h_mask != NULL else 0):
        for j in range(p.out0, p.out1):
            carry = carried_h(s, p.row0 + i, j)
            vstore(carry, vload(carry)
                   + masked(s, p.row0 + i, j, vload(<real *>p.out[i] + j * LANES)))


cdef void backward_step(const Sequence *s, const Part *p, Py_ssize_t step,
                        Py_ssize_t phase) noexcept nogil:
    """One step of backward, to the state before `step`; the team meets between phases."""
    if s.w.w_2.data != NULL:
        if phase == 0:
            second_output_backward(s, p, step)
            return
        if phase == 1:
            second_input_backward(s, p, step)
        phase -= 1
    if phase:
        state_backward(s, p, step)
    elif s.plain:
        cell_backward(s, p, step, True)
    elif s.w.norm != NONE:
        norm_backward(s, p, step)
    else:
        cell_backward(s, p, step, False)


cdef void copy_rows(const Sequence *s, const Part *p) noexcept nogil:
    """Rows of x and of the state, gathered in tape order for the weight gradients."""
    cdef Py_ssize_t step, row, entry, j
    cdef const real *x
    for step in range(p.step0, p.step1):
        for row in range(p.row0, p.row0 + rows_at(s, p, step)):
            entry = entry_of(s, p, step, row)
            x = <real *>s.x + s.x_row[row] + when(s, step, row) * s.x_step
            for j in range(s.w.in_blocks):
                vstore(copied(s, s.x_copy, entry, j),
                       vload_part(x + j * LANES, s.w.inputs - j * LANES))
            for j in range(s.w.out_blocks if s.w.h_products else 0):
                vstore(copied(s, s.h_copy, entry, j), fed(s, step, row, j))


cdef void outer(const Sequence *s, const Part *p, Py_ssize_t entries, Py_ssize_t gates,
                Py_ssize_t units, void *rows, Py_ssize_t first, Py_ssize_t depth, real *dw,
                Py_ssize_t turn, Py_ssize_t hidden) noexcept nogil:
    """dw[gate, unit] += sum over entries of panel[entry, gate, unit] rows[entry].

    Of rows it reads `depth` elements from block `first` on.
    """
    cdef Py_ssize_t blocks = (depth + LANES - 1) // LANES, slot, unit, n = 0, block = 0, count
    cdef Matrix w = Matrix(NULL, entries, 1, SLAB * sizeof(vec), sizeof(vec))
    cdef const real *init = first_sums(s, p)
    for slot in range(gates):
        for unit in range(min(units, LANES)):
            p.a[n] = <real *>p.panel + slot * LANES + unit
            p.out[n] = dw + natural_row(hidden, gates, turn, unit, slot) * blocks * LANES
            n += 1
    while block < blocks:
        count = min(SLAB - (first + block) % SLAB, blocks - block)
        w.data = <char *>copied(s, rows, 0, first + block)
        product(<const real **>p.a, gates * LANES, <real **>p.out, block * LANES, LANES, n, &w, 0,
                count, init, 0, init == NULL)  # the sums are large
        block += count


cdef inline const real *first_sums(const Sequence *s, const Part *p) noexcept nogil:
    """What sums over entries start from: 0 in the first chunk, which is the last in time."""
    return zeros if s.active[p.step1] == 0 and p.chunk_row0 == 0 else NULL


cdef void bias_gradient(const Sequence *s, const Part *p, Py_ssize_t entries, Py_ssize_t gates,
                        real *db) noexcept nogil:
    """db += sum over entries of the panel: a bias is a weight whose input is always 1."""
    cdef Matrix w = Matrix(<char *>p.panel, entries, gates, gates * sizeof(vec), 0)
    p.a[0], p.out[0] = <real *>&one, db
    product(<const real **>p.a, 0, <real **>p.out, 0, 0, 1, &w, 0, 1, first_sums(s, p), 0)


cdef void fill_panel(const Part *p, const real *d, Py_ssize_t stride, Py_ssize_t vectors,
                     Py_ssize_t entries) noexcept nogil:
    """One block's gradients of all entries, side by side; `stride` in vectors."""
    cdef Py_ssize_t entry
    for entry in range(entries):
        memcpy(<real *>p.panel + entry * vectors * LANES, d + entry * stride * LANES,
               vectors * LANES * sizeof(real))


cdef void weight_gradient(const Sequence *s, const Part *p) noexcept nogil:
    """Add the chunk's contribution to the packed gradients of the part's blocks."""
    cdef Py_ssize_t block
    for block in range(p.block0, p.block1):
        input_weight_gradient(s, p, block, p.entries)
        recurrent_weight_gradient(s, p, block, p.entries)
        if s.w.singles:
            single_gradient(s, p, block)


cdef void input_weight_gradient(const Sequence *s, const Part *p, Py_ssize_t block,
                                Py_ssize_t entries) noexcept nogil:
    cdef Py_ssize_t gates = s.w.gates, width = s.w.in_blocks * LANES, unit = block * LANES
    fill_panel(p, <real *>s.d_x + unit * gates, s.w.blocks * gates, gates, entries)
    bias_gradient(s, p, entries, gates, <real *>s.db_ih + unit * gates)
    outer(s, p, entries, gates, s.w.hidden - unit, s.x_copy, 0, s.w.inputs,
          <real *>s.dw_ih + unit * width, s.w.turn, s.w.hidden)


cdef void recurrent_weight_gradient(const Sequence *s, const Part *p, Py_ssize_t block,
                                    Py_ssize_t entries) noexcept nogil:
    """Add gradients of U, product by product as in forward, and of the second product's weights."""
    cdef Py_ssize_t gates = s.w.h_gates, unit = block * LANES, k
    cdef Py_ssize_t width = (s.w.depth + LANES - 1) // LANES * LANES
    cdef Py_ssize_t first = block * s.w.heads // s.w.blocks * (width // LANES)  # of its head
    for k in range(s.w.h_products):
        if s.d_h != s.d_x:
            fill_panel(p, <real *>s.d_h + (block * s.d_h_gates + k) * LANES,
                       s.w.blocks * s.d_h_gates, gates, entries)
        if s.db_hh != NULL:
            bias_gradient(s, p, entries, gates, <real *>s.db_hh + unit * gates)
        outer(s, p, entries, gates, s.w.hidden - unit, s.h_copy, first, s.w.depth,
              <real *>s.dw_hh + (k * s.w.hidden + unit) * width, 0, s.w.hidden)
    if s.w.w_2.data != NULL and block < s.w.out_blocks:
        fill_panel(p, <real *>s.d_2 + unit, s.w.out_blocks, 1, entries)
        outer(s, p, entries, 1, s.w.outputs - unit, s.second_copy, 0, s.w.hidden,
              <real *>s.dw_2 + unit * s.w.blocks * LANES, 0, 0)


cdef void single_gradient(const Sequence *s, const Part *p, Py_ssize_t block) noexcept nogil:
    """Add the chunk's sums for single-unit weights, row by row, and set them to 0."""
    cdef Py_ssize_t row, which
    cdef real *at
    cdef real *total
    for row in range(p.chunk_row0, p.chunk_row1):
        for which in range(s.w.singles):
            at = <real *>s.d_singles + ((row * s.w.blocks + block) * s.w.singles + which) * LANES
            total = <real *>s.d_single + (block * s.w.singles + which) * LANES
            vstore(total, vload(total) + vload(at))
            vstore(at, vset(0))


cdef void input_gradient(const Sequence *s, const Part *p, Py_ssize_t entry0,
                         Py_ssize_t entry1) noexcept nogil:
    """dx = d_x W_ih for some entries of the chunk."""
    cdef Py_ssize_t depth = s.w.blocks * s.w.gates * LANES, width = s.w.in_blocks * LANES
    cdef Py_ssize_t n = 0, step = p.step0, row, entry
    for entry in range(entry0, entry1):
        p.a[n] = <real *>s.d_x + entry * depth
        p.out[n] = <real *>s.dx_copy + entry * width
        n += 1
    product(<const real **>p.a, 1, <real **>p.out, 0, LANES, n, &s.w.w_ih_t, 0, s.w.in_blocks,
            zeros, 0)
    for entry in range(entry0, entry1):
        while s.first[step + 1] - p.origin <= entry:
            step += 1
        row = entry - (s.first[step] - p.origin)
        memcpy(<real *>s.dx + s.dx_row[row] + when(s, step, row) * s.dx_step,
               <real *>s.dx_copy + entry * width, s.w.inputs * sizeof(real))
        if s.w.cell.attends:
            (<real *>s.d_attention)[s.d_attention_row[row]
                                    + when(s, step, row) * s.d_attention_step] = row_sum(
                <real *>s.d_scaled + entry * s.w.blocks * LANES, LANES, NULL, 0, 0, STRAIGHT, 1,
                s.w.hidden)
