# Dense products: which tiles a unit consists of, and in which order they meet the caches.

cdef void dense(const Dense *d, Py_ssize_t unit, void *panel) noexcept nogil:
    """One unit; `panel` is room for its weights of TERM_BYTES, on a cache line."""
    cdef Py_ssize_t row0 = unit // d.panels * d.unit_rows, o0 = unit % d.panels * d.panel
    cdef Py_ssize_t rows = min(d.unit_rows, d.rows - row0), outputs = min(d.panel, d.outputs - o0)
    cdef Py_ssize_t k = 0, r, first = row0 * d.outputs + o0
    while k < d.depth:
        add_terms_of(d, row0, rows, o0, outputs, k, <vec *>panel)
        k += TERM_BYTES // sizeof(real)
    if d.y == NULL:
        return
    for r in range(rows):
        activation(&d.f, <real *>d.sums + first + r * d.outputs,
                   <real *>d.y + first + r * d.outputs, outputs)


cdef void add_terms_of(
    const Dense *d, Py_ssize_t row0, Py_ssize_t rows, Py_ssize_t o0, Py_ssize_t outputs,
    Py_ssize_t k, vec *panel,
) noexcept nogil:
    """The next terms, from k on, of a unit's sums."""
    cdef PackedRows x
    cdef const real *w = <const real *>d.w + o0 * d.w_row + k
    cdef Py_ssize_t depth = min(d.depth - k, TERM_BYTES // <Py_ssize_t>sizeof(real))
    cdef Py_ssize_t vectors = (depth + LANES - 1) // LANES
    cdef Py_ssize_t tiles = (rows + TILE_ROWS - 1) // TILE_ROWS, tile, row, end, o, step
    cdef bint packed = rows >= PACKED_ROWS
    cdef Dots dots
    dots.x, dots.y_row, dots.start = x.at, d.outputs, NULL
    if packed:
        o = 0
        while o < outputs:
            pack_rows(min(OUTPUTS, outputs - o), w + o * d.w_row, d.w_row, depth, OUTPUTS,
                      panel + o * vectors)
            o += OUTPUTS
    for tile in range(tiles):
        # As equal as possible: a tile of few rows reads weights that it hardly uses.
        row, end = row0 + rows * tile // tiles, row0 + rows * (tile + 1) // tiles
        pack_rows(end - row, <const real *>d.x + row * d.x_row + k, d.x_row, depth, end - row, x.at)
        step = ROW_OUTPUTS if end - row == 1 else OUTPUTS
        o = 0
        while o < outputs:
            dots.outputs = min(step, outputs - o)
            dots.y = <real *>d.sums + row * d.outputs + o0 + o
            if packed:
                dots.w, dots.depth = <real *>(panel + o * vectors), vectors * LANES
                dots.w_row, dots.w_step = LANES, OUTPUTS * LANES
            else:
                dots.w, dots.depth = w + o * d.w_row, depth
                dots.w_row, dots.w_step = d.w_row, LANES
            if k == 0 and not d.add:
                dots.start = no_bias if d.bias == NULL else <const real *>d.bias + o0 + o
            run_dots(end - row, &dots)
            o += step


cdef void transpose(
    const void *a, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t a_row, void *out,
) noexcept nogil:
    """(columns, rows) from (rows, columns), in squares with sides of a cache line."""
    cdef Py_ssize_t i0, j0, i, j
    for i0 in range(0, rows, 16):
        for j0 in range(0, columns, 16):
            for j in range(j0, min(columns, j0 + 16)):
                for i in range(i0, min(rows, i0 + 16)):
                    (<real *>out)[j * rows + i] = (<const real *>a)[i * a_row + j]
