# Packing, and the products over many rows that the register tile makes up.
#
# One order of summation (tile.h), whatever the split into tiles, slices, chunks, rows or threads:
# that is the whole of the bit contract.

cdef extern from *:
    """
    /* Rows of a weight gradient listed at once. */
    #define LISTED 64
    static const CYLSTM_REAL one = 1, zeros[4 * CYLSTM_LANES_BYTES] = {0};
    """
    const Py_ssize_t LISTED
    const real one
    const real *zeros


cdef void product(const real **a, Py_ssize_t a_step, real **out, Py_ssize_t out_start,
                  Py_ssize_t out_block, Py_ssize_t rows, Py_ssize_t depth, const real *w,
                  Py_ssize_t w_block, Py_ssize_t gates, Py_ssize_t blocks,
                  const real *init=NULL, Py_ssize_t init_block=0) noexcept nogil:
    """out[row, block] = init[block] + sum_k a[row, k] w[block, k], (gates, lanes) outputs each.

    Without `init` it adds to what is in `out`.
    """
    cdef Py_ssize_t w_step = gates * LANES
    cdef Py_ssize_t block = 0, at_once, tiles, row, count, i
    cdef Tile t
    t.depth, t.a_step, t.w_step, t.w_block = depth, a_step, gates * LANES, w_block
    t.out_block, t.init, t.init_block = out_block, NULL, init_block
    while block < blocks:
        at_once = tile_blocks(rows, gates, blocks - block)
        tiles = tile_rows(gates, at_once)
        tiles = (rows + tiles - 1) // tiles
        t.w = w + block * w_block
        t.out_start = out_start + block * out_block
        if init != NULL:
            t.init = init + block * init_block
        row = 0
        for i in range(tiles, 0, -1):
            count = (rows - row + i - 1) // i
            t.a, t.out = a + row, out + row
            run_tile(count, gates, at_once, &t)
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
        return <real *>s.tape + (s.first[step] + row) * size
    return <real *>p.gates + ((step - p.step0) * (p.row1 - p.row0) + row - p.row0) * size


cdef void project(const Sequence *s, const Part *p) noexcept nogil:
    """Slots of the part's steps, rows and blocks: bias + W_ih x."""
    cdef Py_ssize_t size = s.w.slots * LANES, step, row, n = 0, i, j, at
    for step in range(p.step0, p.step1):
        for row in range(p.row0, p.row0 + rows_at(s, p, step)):
            p.a[n] = <real *>s.x + s.x_row[row] + step * s.x_step
            p.out[n] = gates_at(s, p, step, row)
            n += 1
    if n == 0:
        return
    product(<const real **>p.a, 1, <real **>p.out, p.block0 * size, size, n, s.w.inputs,
            <real *>s.w.w_ih + p.block0 * s.w.inputs * s.w.gates * LANES,
            s.w.inputs * s.w.gates * LANES, s.w.gates, p.block1 - p.block0,
            <real *>s.w.bias + p.block0 * size, size)
    # What only the recurrent product writes to starts from its bias alone.
    for j in range(p.block0, p.block1 if s.w.slots > s.w.gates else p.block0):
        at = (j * s.w.slots + s.w.gates) * LANES
        for i in range(n):
            vstore(<real *>p.out[i] + at, vload(<real *>s.w.bias + at))


cdef void forward_step(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """Add U h to the slots and apply the cell: the state after `step`."""
    cdef Py_ssize_t gates = s.w.gates, size = s.w.hidden * gates * LANES
    cdef Py_ssize_t n = rows_at(s, p, step), i, j, done = 0, block, count
    cdef Py_ssize_t at_once = tile_blocks(n, gates, p.block1 - p.block0)
    for i in range(n):
        p.a[i] = state(s, s.h, step, p.row0 + i, 0)
        p.out[i] = gates_at(s, p, step, p.row0 + i)
    while n > 0 and done < p.block1 - p.block0:
        count = min(at_once, p.block1 - p.block0 - done)
        # Every other step goes backwards, to find in cache the weights the last one ended with.
        block = p.block1 - done - count if step & 1 else p.block0 + done
        product(<const real **>p.a, 1, <real **>p.out, (block * s.w.slots + s.w.h_slot) * LANES,
                s.w.slots * LANES, n, s.w.hidden, <real *>s.w.w_hh + block * size, size, gates,
                count)
        for i in range(n):
            for j in range(block, block + count):
                forward_block(s, <real *>p.out[i], step, p.row0 + i, j)
        done += count


cdef inline Py_ssize_t gradient_at(const Sequence *s, const Part *p, Py_ssize_t step,
                                   Py_ssize_t row) noexcept nogil:
    """Elements from d_x (or d_h) to one row at one step."""
    return (s.first[step] - p.origin + row) * s.w.blocks * s.w.gates * LANES


cdef void backward_cell(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """Gradients of the pre-activations of `step`."""
    cdef Py_ssize_t n = rows_at(s, p, step), row, block, at
    for row in range(p.row0, p.row0 + n):
        at = gradient_at(s, p, step, row)
        for block in range(p.block0, p.block1):
            backward_block(s, gates_at(s, p, step, row), <real *>s.d_x + at, <real *>s.d_h + at,
                           step, row, block)


cdef void backward_state(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil:
    """dh += d_h U: the gradient of the state before `step`."""
    cdef Py_ssize_t depth = s.w.blocks * s.w.gates * LANES
    cdef Py_ssize_t n = rows_at(s, p, step), i
    for i in range(n):
        p.a[i] = <real *>s.d_h + gradient_at(s, p, step, p.row0 + i)
        p.out[i] = carried(s, s.dh, p.row0 + i, 0)
    if n > 0:
        product(<const real **>p.a, 1, <real **>p.out, p.block0 * LANES, LANES, n, depth,
                <real *>s.w.w_hh_t + p.block0 * depth * LANES, depth * LANES, 1,
                p.block1 - p.block0)


cdef void copy_rows(const Sequence *s, const Part *p) noexcept nogil:
    """Rows of x and of the state, gathered in tape order for the weight gradients."""
    cdef Py_ssize_t step, row, entry
    for step in range(p.step0, p.step1):
        for row in range(p.row0, p.row0 + rows_at(s, p, step)):
            entry = s.first[step] - p.origin + row
            memcpy(<real *>s.x_copy + entry * s.x_stride,
                   <real *>s.x + s.x_row[row] + step * s.x_step, s.w.inputs * sizeof(real))
            memcpy(<real *>s.h_copy + entry * s.h_stride, state(s, s.h, step, row, 0),
                   s.w.hidden * sizeof(real))


cdef void outer(const Sequence *s, const Part *p, Py_ssize_t entries, const real *rows,
                Py_ssize_t stride, Py_ssize_t depth, real *dw) noexcept nogil:
    """dw[k] += sum over entries of rows[entry, k] panel[entry]."""
    cdef Py_ssize_t size = s.w.gates * LANES, k = 0, count, i
    while k < depth:
        count = min(LISTED, depth - k)
        for i in range(count):
            p.a[i] = <real *>rows + k + i
            p.out[i] = dw + (k + i) * size
        product(<const real **>p.a, stride, <real **>p.out, 0, 0, count, entries,
                <real *>p.panel, 0, s.w.gates, 1)
        k += count


cdef void fill_panel(const Sequence *s, const Part *p, const real *d_gates, Py_ssize_t entries,
                     Py_ssize_t block) noexcept nogil:
    """One block's gradients of all entries, side by side."""
    cdef Py_ssize_t size = s.w.gates * LANES, entry
    for entry in range(entries):
        memcpy(<real *>p.panel + entry * size, d_gates + (entry * s.w.blocks + block) * size,
               size * sizeof(real))


cdef void weight_gradient(const Sequence *s, const Part *p) noexcept nogil:
    """Add the chunk's share to the packed gradients of the part's blocks."""
    cdef Py_ssize_t size = s.w.gates * LANES, block
    cdef Py_ssize_t entries = s.first[p.step1] - p.origin
    for block in range(p.block0, p.block1):
        fill_panel(s, p, <real *>s.d_x, entries, block)
        outer(s, p, entries, <real *>s.x_copy, s.x_stride, s.w.inputs,
              <real *>s.dw_ih + block * s.w.inputs * size)
        # A row of ones makes the bias a weight like any other.
        outer(s, p, entries, &one, 0, 1, <real *>s.db_ih + block * size)
        if s.db_hh != NULL:
            fill_panel(s, p, <real *>s.d_h, entries, block)
            outer(s, p, entries, &one, 0, 1, <real *>s.db_hh + block * size)
        outer(s, p, entries, <real *>s.h_copy, s.h_stride, s.w.hidden,
              <real *>s.dw_hh + block * s.w.hidden * size)


cdef void input_gradient(const Sequence *s, const Part *p, Py_ssize_t entry0,
                         Py_ssize_t entry1) noexcept nogil:
    """dx = d_x W_ih for some entries of the chunk."""
    cdef Py_ssize_t depth = s.w.blocks * s.w.gates * LANES, width = s.w.in_blocks * LANES
    cdef Py_ssize_t n = 0, step, row, entry
    for entry in range(entry0, entry1):
        p.a[n] = <real *>s.d_x + entry * depth
        p.out[n] = <real *>s.dx_copy + entry * width
        n += 1
    product(<const real **>p.a, 1, <real **>p.out, 0, LANES, n, depth, <real *>s.w.w_ih_t,
            depth * LANES, 1, s.w.in_blocks, zeros, 0)
    for step in range(p.step0, p.step1):
        for row in range(s.active[step]):
            entry = s.first[step] - p.origin + row
            if entry0 <= entry < entry1:
                memcpy(<real *>s.dx + s.dx_row[row] + step * s.dx_step,
                       <real *>s.dx_copy + entry * width, s.w.inputs * sizeof(real))


# Natural weights are (G hidden, depth), gates stacked; slot g of a block holds gate
# (g + turn) mod G.

cdef inline Py_ssize_t natural_row(Py_ssize_t hidden, Py_ssize_t gates, Py_ssize_t turn,
                                   Py_ssize_t unit, Py_ssize_t slot) noexcept nogil:
    return (slot + turn) % gates * hidden + unit


cdef void pack(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
               Py_ssize_t turn, void *packed) noexcept nogil:
    """packed (blocks, depth, G, lanes) from w, which it fills except for padding."""
    cdef Py_ssize_t unit, slot, k
    cdef const real *row
    cdef real *into
    for unit in range(hidden):
        for slot in range(gates):
            row = <const real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
            into = (<real *>packed + (unit // LANES * depth * gates + slot) * LANES + unit % LANES)
            for k in range(depth):
                into[k * gates * LANES] = row[k]


cdef void unpack_add(const void *packed, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                     Py_ssize_t turn, void *w) noexcept nogil:
    """w += the inverse of pack."""
    cdef Py_ssize_t unit, slot, k
    cdef real *row
    cdef const real *come
    for unit in range(hidden):
        for slot in range(gates):
            row = <real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
            come = (<const real *>packed + (unit // LANES * depth * gates + slot) * LANES
                    + unit % LANES)
            for k in range(depth):
                row[k] += come[k * gates * LANES]


cdef void pack_transposed(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                          Py_ssize_t turn, void *packed) noexcept nogil:
    """packed (depth blocks, blocks * G * lanes, lanes) from w, except for padding."""
    cdef Py_ssize_t blocks = (hidden + LANES - 1) // LANES
    cdef Py_ssize_t unit, slot, k
    cdef const real *row
    cdef real *into
    for unit in range(hidden):
        for slot in range(gates):
            row = <const real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
            into = (<real *>packed
                    + ((unit // LANES * gates + slot) * LANES + unit % LANES) * LANES)
            for k in range(depth):
                into[k // LANES * blocks * gates * LANES * LANES + k % LANES] = row[k]
