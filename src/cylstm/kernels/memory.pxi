# Memory: what a call allocates, and the arrays it is given.

cdef Py_ssize_t times(Py_ssize_t a, Py_ssize_t b) except -1:
    cdef Py_ssize_t product = 0
    if a < 0 or b < 0 or __builtin_mul_overflow(a, b, &product):
        raise ValueError(f"array too large: {a} x {b} does not fit in memory")
    return product


@cython.final
@cython.auto_pickle(False)
cdef class Arena:
    """Memory in cache lines of its own, freed with its owner; small pieces share a block.

    With `counting` it only counts: what it returns is not memory.
    """
    cdef list blocks
    cdef char *free_from
    cdef Py_ssize_t free_size
    cdef Py_ssize_t total   # bytes of all blocks
    cdef bint counting

    def __cinit__(self, bint counting=False):
        self.blocks = []
        self.free_size = self.total = 0
        self.free_from = NULL
        self.counting = counting

    cdef void *room(self, Py_ssize_t count, Py_ssize_t size, bint zero=False) except? NULL:
        """`count` times `size` bytes; NULL if counting."""
        cdef Py_ssize_t needed = times(count, size), block = needed
        cdef void *piece
        if not EXACT_MEMORY:
            needed = (times(count, size) + 127) & ~<Py_ssize_t>63
            block = max(needed, SMALL_BLOCK)
        if needed > self.free_size or EXACT_MEMORY:
            self.add_block(block)
        self.free_size -= needed
        if self.counting:
            return NULL
        piece = self.free_from
        self.free_from += needed
        if zero:
            memset(piece, 0, needed)
        return piece

    cdef int rewind(self) except -1:
        """Start again in the same memory, in one block from now on; nobody may still use it."""
        cdef Py_ssize_t total = self.total
        if len(self.blocks) == 1 and not EXACT_MEMORY:
            self.free_from = <char *>PyCapsule_GetPointer(self.blocks[0], "cylstm.block")
            self.free_size = total
        elif self.total > 0:
            self.blocks.clear()
            self.free_size = self.total = 0
            if not EXACT_MEMORY:
                self.add_block(total)
        return 0

    cdef int add_block(self, Py_ssize_t size) except -1:
        cdef size_t size_got = max(size, 1)
        self.free_size = 0
        if not self.counting:
            self.free_from = <char *>allocate(&size_got)
            if self.free_from == NULL:
                raise MemoryError(f"cannot allocate {size} bytes")
            block = PyCapsule_New(self.free_from, "cylstm.block", free_block)
            PyCapsule_SetContext(block, <void *>size_got)
            self.blocks.append(block)
        # A block used before may be larger, but what a call needs is the same every time.
        self.free_size = size
        self.total += size
        return 0


cdef void free_block(object capsule) noexcept:
    release(PyCapsule_GetPointer(capsule, "cylstm.block"), <size_t>PyCapsule_GetContext(capsule))


cdef inline int type_of(Py_ssize_t itemsize) noexcept:
    return cnp.NPY_FLOAT32 if itemsize == 4 else cnp.NPY_FLOAT64


ctypedef struct View:
    # A (d0, d1, d2) array with contiguous last axis; strides in bytes.
    char *data
    Py_ssize_t outer
    Py_ssize_t inner
    Py_ssize_t size     # bytes of a contiguous array


cdef int look(View *view, array, Py_ssize_t itemsize, Py_ssize_t d0, Py_ssize_t d1, Py_ssize_t d2,
              str name, bint written=False) except -1:
    """Check one array of this shape, and say where it is."""
    if not isinstance(array, cnp.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(array).__name__}")
    cdef cnp.ndarray a = array
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(a)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
    if (cnp.PyArray_NDIM(a) != 3 or shape[0] != d0 or shape[1] != d1 or shape[2] != d2
            or cnp.PyArray_TYPE(a) != type_of(itemsize)
            or not cnp.PyArray_ISALIGNED(a) or not cnp.PyArray_ISNOTSWAPPED(a)
            or (d0 * d1 > 0 and d2 > 1 and strides[2] != itemsize)
            or strides[0] % itemsize or strides[1] % itemsize
            or (written and not cnp.PyArray_ISWRITEABLE(a))):
        raise ValueError(
            f"{name}: expected shape {(d0, d1, d2)}, {'' if not written else 'writeable, '}"
            f"{itemsize}-byte floats, last axis contiguous; got {array.shape} {array.dtype}"
        )
    view.data = <char *>cnp.PyArray_DATA(a)
    view.outer, view.inner = strides[0], strides[1]
    return 0


cdef inline void lay(View *view, void *data, bint inner_first, Py_ssize_t d0, Py_ssize_t d1,
                     Py_ssize_t d2, Py_ssize_t itemsize) noexcept:
    """Where the elements of a contiguous (d0, d1, d2) or, `inner_first`, (d1, d0, d2) array are."""
    view.data, view.size = <char *>data, d0 * d1 * d2 * itemsize
    view.outer, view.inner = d1 * d2 * itemsize, d2 * itemsize
    if inner_first:
        view.outer, view.inner = d2 * itemsize, d0 * d2 * itemsize


cdef bint as_made(View *view, array, Py_ssize_t ndim, bint inner_first, Py_ssize_t d0,
                  Py_ssize_t d1, Py_ssize_t d2, Py_ssize_t itemsize) noexcept:
    """Whether it is such an array as `made` makes, and where.

    Of shape (d0, d1, d2), (d1, d0, d2) if `inner_first`, (d0, d2) or (d2). Anything else that a
    call takes (subclasses, other dtypes, strides) is left to slower checks.
    """
    cdef cnp.npy_intp *shape
    if not cnp.PyArray_CheckExact(array):
        return False
    shape = cnp.PyArray_DIMS(array)
    if (cnp.PyArray_NDIM(array) != ndim or not cnp.PyArray_IS_C_CONTIGUOUS(array)
            or not cnp.PyArray_ISBEHAVED_RO(array) or shape[ndim - 1] != d2
            or cnp.PyArray_TYPE(array) != type_of(itemsize)):
        return False
    lay(view, cnp.PyArray_DATA(array), inner_first and ndim == 3, d0, d1, d2, itemsize)
    if ndim < 3:
        return d1 == 1 and (d0 == 1 if ndim == 1 else shape[0] == d0)
    return shape[1 if inner_first else 0] == d0 and shape[0 if inner_first else 1] == d1


cdef object made(View *view, Py_ssize_t ndim, bint inner_first, Py_ssize_t d0, Py_ssize_t d1,
                 Py_ssize_t d2, Py_ssize_t itemsize, bint zero=False):
    """Make an array that `as_made` accepts, of zeros or without values."""
    cdef cnp.npy_intp shape[3]
    shape[0], shape[1] = d0, d1
    if inner_first and ndim == 3:
        shape[0], shape[1] = d1, d0
    shape[ndim - 1] = d2
    array = cnp.PyArray_ZEROS(ndim, shape, type_of(itemsize), 0) if zero \
        else cnp.PyArray_SimpleNew(ndim, shape, type_of(itemsize))
    lay(view, cnp.PyArray_DATA(array), inner_first and ndim == 3, d0, d1, d2, itemsize)
    return array


cdef cnp.ndarray empty(Py_ssize_t d0, Py_ssize_t d1, Py_ssize_t d2, Py_ssize_t itemsize):
    cdef View view
    return made(&view, 3, False, d0, d1, d2, itemsize)


cdef cnp.ndarray zeros(Py_ssize_t d0, Py_ssize_t d1, Py_ssize_t d2, Py_ssize_t itemsize):
    """An array whose pages cost nothing until they are written."""
    cdef View view
    return made(&view, 3, False, d0, d1, d2, itemsize, True)
