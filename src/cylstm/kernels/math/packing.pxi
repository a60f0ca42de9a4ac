# Weights as the kernels read them, and their gradients back.
#
# Natural weights are (G hidden, depth), gates stacked; slot g of a block holds gate
# (g + turn) mod G.

cdef inline Py_ssize_t natural_row(Py_ssize_t hidden, Py_ssize_t gates, Py_ssize_t turn,
                                   Py_ssize_t unit, Py_ssize_t slot) noexcept nogil:
    return (slot + turn) % gates * hidden + unit


cdef void pack(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
               Py_ssize_t turn, void *packed) noexcept nogil:
    """packed (blocks, depth, G, lanes) from w, which it fills except for padding.

    In squares of a vector's size, so that each cache line is met once.
    """
    cdef Py_ssize_t block, slot, square, unit, k, stride = gates * LANES
    cdef const real *row
    cdef real *into
    for block in range((hidden + LANES - 1) // LANES):
        for slot in range(gates):
            for square in range((depth + LANES - 1) // LANES):
                for unit in range(block * LANES, min(hidden, (block + 1) * LANES)):
                    row = <real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
                    into = <real *>packed + (block * depth * gates + slot) * LANES + unit % LANES
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
                          Py_ssize_t turn, void *packed) noexcept nogil:
    """packed (depth blocks, blocks * G * lanes, lanes) from w, except for padding."""
    cdef Py_ssize_t size = (hidden + LANES - 1) // LANES * gates * LANES * LANES
    cdef Py_ssize_t unit, slot, square
    cdef const real *row
    cdef real *into
    for unit in range(hidden):
        for slot in range(gates):
            row = <const real *>w + natural_row(hidden, gates, turn, unit, slot) * depth
            into = (<real *>packed
                    + ((unit // LANES * gates + slot) * LANES + unit % LANES) * LANES)
            for square in range((depth + LANES - 1) // LANES):
                memcpy(into + square * size, row + square * LANES,
                       min(LANES, depth - square * LANES) * sizeof(real))
