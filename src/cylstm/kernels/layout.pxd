"""What the time loop (sequence.pyx) and the levels (level.pxi) say to each other.

A *level* is one instruction set in one dtype. Pointers are void here and `real` there. Units come
in *blocks* of one vector (`lanes`); everything inside the kernels is padded to whole blocks, with
zero weights, so that padding stays zero.
"""

ctypedef enum Cell:
    RNN_TANH
    RNN_RELU
    GRU
    LSTM

ctypedef struct Weights:
    # One direction of one layer, packed. Gates inside a block: LSTM i, f, g, o; RNN its one; GRU
    # n, r, z in input weights and r, z, n in recurrent ones, so that each product writes
    # neighbouring slots: GRU keeps n (input part), r, z, n (recurrent part) in four.
    Cell cell
    Py_ssize_t inputs
    Py_ssize_t hidden
    Py_ssize_t in_blocks    # ceil(inputs / lanes)
    Py_ssize_t blocks       # ceil(hidden / lanes)
    Py_ssize_t gates        # G: vectors per block in one product
    Py_ssize_t slots        # S: vectors per block of pre-activations
    Py_ssize_t h_slot       # first slot the recurrent product adds to
    void *w_ih              # (blocks, inputs, G, lanes)
    void *w_hh              # (blocks, hidden, G, lanes)
    void *bias              # (blocks, S, lanes)
    void *w_ih_t            # (in_blocks, blocks * G * lanes, lanes); NULL unless backward
    void *w_hh_t            # (blocks, blocks * G * lanes, lanes); NULL unless backward

ctypedef struct Sequence:
    # One direction of one layer in one call. Rows are sorted by length, longest first: the rows
    # still running at a step are the first `active[step]`. Steps count from the row's own start,
    # which for the reverse direction is its last frame.
    Weights w
    Py_ssize_t steps
    Py_ssize_t rows
    Py_ssize_t *active      # (steps) rows running
    Py_ssize_t *first       # (steps + 1) running sum of active: index of (step, row 0) in the tape
    Py_ssize_t *x_row       # (rows) elements from x to a row's step 0
    Py_ssize_t *y_row       # (rows) likewise in y
    Py_ssize_t x_step       # elements from step to step in x, negative in reverse
    Py_ssize_t y_step
    void *x
    void *y                 # OUT; in backward the gradient dy, IN, may be NULL
    # State (slots, rows, blocks * lanes): slot `step & ring` holds the state before `step`;
    # ring is 1 to keep two slots, -1 to keep steps + 1 for the tape.
    Py_ssize_t ring
    void *h
    void *c                 # LSTM only
    void *tape              # (first[steps], blocks, S, lanes) activated gates, NULL in inference
    # Backward only
    void *dx                # OUT
    Py_ssize_t *dx_row      # as x_row and x_step
    Py_ssize_t dx_step
    void *dh                # IN/OUT (rows, blocks * lanes) gradient of the state after, then before
    void *dc                # IN/OUT likewise, LSTM only
    void *d_x               # (chunk entries, blocks, G, lanes) gradient of input pre-activations
    void *d_h               # likewise of recurrent ones; the same memory as d_x except for GRU
    void *x_copy            # (chunk entries, x_stride) rows of x of this chunk
    void *h_copy            # (chunk entries, h_stride) rows of the state before each step
    void *dx_copy           # (chunk entries, in_blocks * lanes)
    Py_ssize_t x_stride
    Py_ssize_t h_stride
    void *dw_ih             # IN/OUT as w_ih
    void *dw_hh             # IN/OUT as w_hh
    void *db_ih             # IN/OUT (blocks, G, lanes)
    void *db_hh             # IN/OUT (blocks, G, lanes); NULL unless GRU: the same as db_ih

ctypedef struct Part:
    # What one thread works on: some rows and blocks over one chunk of steps. Entries are the
    # (step, row) pairs of a chunk in tape order, counted from `origin = first[chunk start]`.
    Py_ssize_t step0
    Py_ssize_t step1
    Py_ssize_t row0
    Py_ssize_t row1
    Py_ssize_t block0
    Py_ssize_t block1
    Py_ssize_t origin
    void *gates             # inference: (step1 - step0, row1 - row0, blocks, S, lanes)
    void **a                # room for a row pointer per entry
    void **out              # likewise
    void *panel             # backward: room for 4 vectors per entry

ctypedef struct Level:
    Py_ssize_t lanes
    Py_ssize_t itemsize
    void (*pack)(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                 Py_ssize_t turn, void *packed) noexcept nogil
    void (*pack_transposed)(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                            Py_ssize_t turn, void *packed) noexcept nogil
    void (*unpack_add)(const void *packed, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                       Py_ssize_t turn, void *w) noexcept nogil
    void (*project)(const Sequence *s, const Part *p) noexcept nogil
    void (*forward_step)(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil
    void (*backward_cell)(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil
    void (*backward_state)(const Sequence *s, const Part *p, Py_ssize_t step) noexcept nogil
    void (*copy_rows)(const Sequence *s, const Part *p) noexcept nogil
    void (*weight_gradient)(const Sequence *s, const Part *p) noexcept nogil
    void (*input_gradient)(const Sequence *s, const Part *p, Py_ssize_t entry0,
                           Py_ssize_t entry1) noexcept nogil
    void (*activation)(bint is_tanh, const void *x, void *y, Py_ssize_t n) noexcept nogil
