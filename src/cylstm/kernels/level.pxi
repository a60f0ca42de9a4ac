# All kernels of one level, and the table the time loop finds them in. Each level_*.pyx includes
# this file under its own compiler flags. Everything is noexcept nogil and allocates nothing.

from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport memcpy
from libc.math cimport sqrt
from cylstm.kernels.layout cimport (
    ALL, EVERY, LAST, MAX, MEAN, NONE, OF_GATES, OF_PRODUCTS, PACKED_ROWS, SLAB, TERM_BYTES, TERMS,
    Activation, Blocks, CellKernels, CellStep, Dense, Level, Matrix, Norm, Part, Sequence,
)

cdef extern from "math/simd.h" nogil:
    # Cython only needs to know that these are floating; C knows what they are.
    ctypedef double real
    ctypedef double vec
    const Py_ssize_t LANES
    vec vset(real x)
    vec vload(const real *p)
    vec vload_part(const real *p, Py_ssize_t n)
    void vstore(real *p, vec v)
    void vstore_part(real *p, vec v, Py_ssize_t n)
    vec vfma(vec a, vec b, vec c)
    vec vsigmoid(vec x)
    vec vtanh(vec x)
    vec vmax(vec a, vec b)
    vec vfirst(vec v, Py_ssize_t n)
    vec vunequal(vec a, vec b, vec v)

cdef extern from "math/activations.h" nogil:
    vec vclamp(vec x, vec low, vec high)
    vec vmix(vec w, vec a, vec b)
    vec vwithin(vec x, real bound, vec v)
    vec vexp(vec x)
    vec vsoftplus(vec x)
    vec vwhere_zero(vec x, vec a, vec b)
    vec vwhere_less(vec x, vec y, vec a, vec b)
    vec activate(const Activation *act, vec x)
    vec d_activate(const Activation *act, vec x, vec y, vec dy)

cdef extern from "math/tile.h" nogil:
    const Py_ssize_t FOLD
    ctypedef struct Tile:
        Py_ssize_t depth
        const real **a
        Py_ssize_t a_step
        const char *w
        Py_ssize_t w_step
        Py_ssize_t w_block
        real **out
        Py_ssize_t out_start
        Py_ssize_t out_block
        const real *init
        Py_ssize_t init_block
        bint out_far
    void run_tile(Py_ssize_t rows, Py_ssize_t gates, Py_ssize_t blocks, const Tile *tile)
    Py_ssize_t tile_blocks(Py_ssize_t rows, Py_ssize_t gates, Py_ssize_t blocks,
                           Py_ssize_t depth)
    Py_ssize_t tile_rows(Py_ssize_t gates, Py_ssize_t blocks)

cdef extern from "math/dense.h" nogil:
    enum: OUTPUTS, ROW_OUTPUTS, TILE_ROWS
    ctypedef struct Dots:
        Py_ssize_t depth
        const vec *x
        const real *w
        Py_ssize_t w_row
        Py_ssize_t w_step
        Py_ssize_t outputs
        const real *start
        real *y
        Py_ssize_t y_row
        const real *ahead
        Py_ssize_t aheads
    ctypedef struct PackedRows:
        vec *at
    ctypedef struct TileOutputs:
        vec *at
    ctypedef struct Product:
        Py_ssize_t depth
        const real **x
        Py_ssize_t x_step
        const real *w
        const real *init
        real **out
    void run_product(Py_ssize_t rows, Py_ssize_t vectors, const Product *product)
    void run_dots(Py_ssize_t rows, const Dots *dots)
    void pack_rows(Py_ssize_t rows, const real *a, Py_ssize_t a_row, Py_ssize_t depth,
                   Py_ssize_t width, vec *packed)

include "math/packing.pxi"
include "states.pxi"
include "cells.pxi"
include "math/products.pxi"
include "math/norms.pxi"
include "math/dense.pxi"

cdef void activation(const Activation *act, const void *x, void *y, Py_ssize_t n) noexcept nogil:
    """y = f(x); x and y may be one array."""
    cdef Py_ssize_t i = 0
    while i < n:
        vstore_part(<real *>y + i, activate(act, vload_part(<real *>x + i, n - i)), n - i)
        i += LANES


cdef void d_activation(
    const Activation *act, const void *x, const void *dy, void *dx, Py_ssize_t n
) noexcept nogil:
    """Gradient of x from that of f(x)."""
    cdef Py_ssize_t i = 0
    cdef vec v
    while i < n:
        v = vload_part(<const real *>x + i, n - i)
        v = d_activate(act, v, activate(act, v), vload_part(<const real *>dy + i, n - i))
        vstore_part(<real *>dx + i, v, n - i)
        i += LANES


cdef Level level
level.lanes = LANES
level.itemsize = sizeof(real)
level.cells, level.cell_count = cells, cell_count
level.pack = pack
level.pack_transposed = pack_transposed
level.unpack_add = unpack_add
level.add_rows = add_rows
level.project = project
level.forward_step = forward_step
level.publish = publish
level.backward_step = backward_step
level.copy_rows = copy_rows
level.weight_gradient = weight_gradient
level.input_gradient = input_gradient
level.activation = activation
level.d_activation = d_activation
level.dense = dense
level.multiply = multiply

table = PyCapsule_New(&level, "cylstm.Level", NULL)
