# Weights as the kernels read them, and their gradients back.
#
# Natural weights are (G hidden, depth), gates stacked; slot g of a block holds gate
# (g + turn) mod G.

cdef inline Py_ssize_t natural_row(Py_ssize_t hidden, Py_ssize_t gates, Py_ssize_t turn,
                                   Py_ssize_t unit, Py_ssize_t slot) noexcept nogil:
    return (slot + turn) % gates * hidden + unit


cdef void pack(const void *w, Py_ssize_t hidden, Py_ssize_t turn, const Matrix *packed,
               Py_ssize_t first) noexcept nogil:
    """Blocks of a packed matrix from `first` on from w, but for padding.

    In squares of a vector's size, so that each cache line is met once.
    """
    cdef Py_ssize_t block, slot, square, unit, k, depth = packed.depth, gates = packed.gates
    cdef Py_ssize_t stride = gates * LANES
    cdef const real *row
    cdef real *into
    for block in range((hidden + LANES - 1) // LANES):
        for slot in range(gates):
            for square in range((depth + LANES - 1) // LANES):
                for unit in range(block * LANES, min(hidden, (block + 1) * LANES)):
                    row = <real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
                    into = (<real *>(packed.data + (first + block) * packed.stride) + slot * LANES
                            + unit % LANES)
                    for k in range(square * LANES, min(depth, (square + 1) * LANES)):
                        into[k * stride] = row[k]


cdef void unpack_add(const void *packed, Py_ssize_t hidden, Py_ssize_t gates, Py_ssize_t turn,
                     void *w) noexcept nogil:
    """w += the inverse of pack for vectors, which have a depth of 1, such as biases."""
    cdef Py_ssize_t unit, slot
    for unit in range(hidden):
        for slot in range(gates):
            (<real *>w)[natural_row(hidden, gates, turn, unit, slot)] += (
                <real *>packed)[(unit // LANES * gates + slot) * LANES + unit % LANES]


cdef void add_rows(const void *rows, Py_ssize_t count, Py_ssize_t size,
                   void *into) noexcept nogil:
    """into (count, size) += rows, which are padded to whole vectors."""
    cdef Py_ssize_t row, k, width = (size + LANES - 1) // LANES * LANES
    cdef const real *at
    cdef real *to
    for row in range(count):
        at, to = <real *>rows + row * width, <real *>into + row * size
        k = 0
        while k < size:
            vstore_part(to + k, vload_part(to + k, size - k) + vload(at + k), size - k)
            k += LANES


cdef void pack_transposed(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                          Py_ssize_t turn, const Matrix *packed) noexcept nogil:
    """A packed matrix of w transposed: of `depth` outputs, whose terms are all gates' units."""
    cdef Py_ssize_t unit, slot, square
    cdef const real *row
    cdef real *into
    for unit in range(hidden):
        for slot in range(gates):
            row = <const real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
            into = (<real *>packed.data
                    + ((unit // LANES * gates + slot) * LANES + unit % LANES) * LANES)
            for square in range((depth + LANES - 1) // LANES):
                memcpy(<char *>into + square * packed.stride, row + square * LANES,
                       min(LANES, depth - square * LANES) * sizeof(real))
