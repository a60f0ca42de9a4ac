# Dense products: which tiles a unit consists of, and in which order they meet the caches.

cdef void dense(const Dense *d, Py_ssize_t unit, void *panel) noexcept nogil:
    """One unit of f(x w' + bias); `panel` is room for TERM_BYTES of its weights, cache-aligned."""
    cdef Py_ssize_t row0 = unit // d.panels * d.unit_rows, o0 = unit % d.panels * d.panel
    cdef Py_ssize_t rows = min(d.unit_rows, d.rows - row0), outputs = min(d.panel, d.outputs - o0)
    cdef Py_ssize_t k = d.term0, r, first = row0 * d.outputs + o0
    while k < d.term1:
        add_terms_of(d, row0, rows, o0, outputs, k, <vec *>panel)
        k += TERM_BYTES // sizeof(real)
    if d.y == NULL or d.term1 < d.depth:
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
    cdef Py_ssize_t vectors = (depth + LANES - 1) // LANES, most = ROW_OUTPUTS, o = 0
    # As equal as possible: a tile of few rows reads weights that it hardly uses.
    cdef Py_ssize_t tiles = (rows + TILE_ROWS - 1) // TILE_ROWS, tile, next_row
    cdef Dots dots
    if rows > 1:
        most = OUTPUTS
    dots.y_row, dots.ahead, dots.aheads = d.outputs, NULL, 0
    if rows >= PACKED_ROWS:
        # Weights in the second-level cache, and a tile's rows in the first.
        while o < outputs:
            pack_rows(min(OUTPUTS, outputs - o), w + o * d.w_row, d.w_row, depth, OUTPUTS,
                      panel + o * vectors)
            o += OUTPUTS
        dots.depth, dots.w_row, dots.w_step = vectors * LANES, LANES, OUTPUTS * LANES
        for tile in range(tiles):
            dots.x = x.at
            pack_tile(d, row0, rows, tile, tiles, k, depth, x.at)
            o, next_row = 0, rows * (tile + 1) // tiles
            while o < outputs:
                # Meanwhile the next rows come from wherever they are, one by one.
                dots.ahead = <const real *>d.x + (row0 + next_row) * d.x_row + k
                dots.aheads = next_row < rows * (tile + 2) // tiles and next_row < rows
                next_row += 1
                dots.w, dots.outputs = <real *>(panel + o * vectors), min(OUTPUTS, outputs - o)
                run_tile_of(d, row0, rows, tile, tiles, o0 + o, k, &dots)
                o += OUTPUTS
        return
    # All rows in the second-level cache, and a tile's weights in the first.
    for tile in range(tiles):
        pack_tile(d, row0, rows, tile, tiles, k, depth, panel + rows * tile // tiles * vectors)
    dots.depth, dots.w_row, dots.w_step = depth, d.w_row, LANES
    if rows > 1:
        dots.aheads = (OUTPUTS + tiles - 1) // tiles
    while o < outputs:
        dots.w, dots.outputs = w + o * d.w_row, min(most, outputs - o)
        for tile in range(tiles):
            dots.x = panel + rows * tile // tiles * vectors
            dots.ahead = dots.w + (OUTPUTS + tile * dots.aheads % OUTPUTS) * d.w_row
            run_tile_of(d, row0, rows, tile, tiles, o0 + o, k, &dots)
        o += most


cdef inline void pack_tile(
    const Dense *d, Py_ssize_t row0, Py_ssize_t rows, Py_ssize_t tile, Py_ssize_t tiles,
    Py_ssize_t k, Py_ssize_t depth, vec *packed,
) noexcept nogil:
    """The next terms of the rows of a tile."""
    cdef Py_ssize_t row = rows * tile // tiles, count = rows * (tile + 1) // tiles - row
    pack_rows(count, <const real *>d.x + (row0 + row) * d.x_row + k, d.x_row, depth, count, packed)


cdef inline void run_tile_of(
    const Dense *d, Py_ssize_t row0, Py_ssize_t rows, Py_ssize_t tile, Py_ssize_t tiles,
    Py_ssize_t o, Py_ssize_t k, Dots *dots,
) noexcept nogil:
    """Add terms of a tile to the outputs from o on."""
    cdef Py_ssize_t row = rows * tile // tiles, count = rows * (tile + 1) // tiles - row
    dots.y = <real *>d.sums + (row0 + row) * d.outputs + o
    dots.start = NULL
    if k == 0:
        dots.start = zeros if d.bias == NULL else <const real *>d.bias + o
    run_dots(count, dots)


cdef void multiply(const Dense *d, Py_ssize_t unit, void *room) noexcept nogil:
    """One unit of x w, by the register tile; `room` is for TERMS of its w and x, cache-aligned."""
    cdef Py_ssize_t row0 = unit // d.panels * d.unit_rows, o0 = unit % d.panels * d.panel
    cdef Py_ssize_t rows = min(d.unit_rows, d.rows - row0), outputs = min(d.panel, d.outputs - o0)
    cdef Py_ssize_t k = d.term0, depth, o, some
    cdef vec *w = <vec *>room
    cdef real *x
    while k < d.term1:
        depth = min(TERMS, d.depth - k)
        x = <real *>(w + (outputs + LANES - 1) // LANES * depth)
        pack_outputs(<const real *>d.w + k * d.w_row + o0, d.w_row, depth, outputs, w)
        pack_terms(d, row0, rows, k, depth, x)
        # What stays in the first-level cache while all rows pass by.
        some = TERMS // depth * OUTPUTS * LANES
        o = 0
        while o < outputs:
            multiply_rows(d, row0, rows, o0 + o, min(some, outputs - o), k, depth, x,
                          w + o // LANES * depth)
            o += some
        k += TERMS


cdef void multiply_rows(
    const Dense *d, Py_ssize_t row0, Py_ssize_t rows, Py_ssize_t o0, Py_ssize_t outputs,
    Py_ssize_t k, Py_ssize_t depth, const real *x, const vec *w,
) noexcept nogil:
    """The next terms of all rows, for some outputs."""
    cdef Py_ssize_t tiles = (rows + TILE_ROWS - 1) // TILE_ROWS, tile, row, end = 0, o
    for tile in range(tiles):
        row, end = end, rows * (tile + 1) // tiles
        o = 0
        while o < outputs:
            multiply_tile(d, row0, row, end - row, o0 + o, outputs - o, k, depth, x,
                          w + o // LANES * depth)
            o += OUTPUTS * LANES


cdef void pack_outputs(const real *w, Py_ssize_t w_row, Py_ssize_t depth, Py_ssize_t outputs,
                       vec *panel) noexcept nogil:
    """Vectors that a tile takes together side by side, term by term, zero beyond the outputs."""
    cdef Py_ssize_t k, v, vectors = (outputs + LANES - 1) // LANES, first, width
    for k in range(depth):
        for v in range(vectors):
            first = v // OUTPUTS * OUTPUTS
            width = min(OUTPUTS, vectors - first)
            panel[first * depth + k * width + v - first] = vload_part(
                w + k * w_row + v * LANES, outputs - v * LANES)


cdef void pack_terms(const Dense *d, Py_ssize_t row0, Py_ssize_t rows, Py_ssize_t k0,
                     Py_ssize_t depth, real *packed) noexcept nogil:
    """Terms of each row side by side; of a transpose so many rows side by side, term by term."""
    cdef const real *x = <const real *>d.x + row0 * d.x_row + k0 * d.x_step
    cdef Py_ssize_t r = 0, k
    if d.x_step == 1:
        for r in range(rows):
            memcpy(packed + r * depth, x + r * d.x_row, depth * sizeof(real))
        return
    while r < rows:
        for k in range(depth):
            vstore(packed + r * depth + k * LANES, vload_part(x + r + k * d.x_step, rows - r))
        r += LANES


cdef void multiply_tile(
    const Dense *d, Py_ssize_t row0, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t o,
    Py_ssize_t outputs, Py_ssize_t k, Py_ssize_t depth, const real *x, const vec *w,
) noexcept nogil:
    """The next terms of a few rows, for as many outputs as a tile takes."""
    cdef Py_ssize_t vectors = min(OUTPUTS, (outputs + LANES - 1) // LANES), r
    cdef Py_ssize_t part = min(LANES, outputs - (vectors - 1) * LANES)  # of its last vector
    cdef const real *rows_of_x[8]
    cdef real *out[8]
    cdef TileOutputs last
    cdef Product p
    cdef real *sums = <real *>d.sums + (row0 + row) * d.outputs + o
    p.depth, p.x, p.w, p.out, p.init = depth, rows_of_x, <const real *>w, out, NULL
    p.x_step = 1 if d.x_step == 1 else LANES
    if k == 0 and not d.add:
        p.init = zeros
    for r in range(rows):
        rows_of_x[r] = x + (row + r) * depth
        if d.x_step > 1:
            rows_of_x[r] = x + (row + r) // LANES * LANES * depth + (row + r) % LANES
        out[r] = sums + r * d.outputs
        if part < LANES:
            out[r] = <real *>(last.at + r * OUTPUTS)
            copy_part(sums + r * d.outputs, out[r], vectors, part)
    run_product(rows, vectors, &p)
    if part < LANES:
        for r in range(rows):
            copy_part(out[r], sums + r * d.outputs, vectors, part)


cdef inline void copy_part(const real *source, real *into, Py_ssize_t vectors,
                           Py_ssize_t part) noexcept nogil:
    """Vectors, of the last of which only a part is there."""
    memcpy(into, source, ((vectors - 1) * LANES + part) * sizeof(real))
