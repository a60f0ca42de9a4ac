# Weights as the kernels read them, and their gradients back.
#
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
