"""What other Cython code may use: `from cylstm.kernels.sequence cimport Stepper`."""

cdef class Stepper:
    cdef readonly Py_ssize_t rows       # B
    cdef readonly Py_ssize_t inputs     # I
    cdef readonly Py_ssize_t outputs    # P
    cdef readonly Py_ssize_t itemsize   # of all numbers: 4 or 8 bytes
    cdef object plan                    # what the next points into
    cdef void *at
    cdef int in_use

    # One step of x (rows, inputs) into y (rows, outputs), both contiguous, of `itemsize` and apart.
    # Allocates nothing and takes no lock. 0; -1, with nothing done, while another thread is in it.
    cdef int step(self, const void *x, void *y) noexcept nogil
