"""What the time loop (sequence.pyx) and the levels (level.pxi) say to each other.

A *level* is one instruction set in one dtype. Pointers are void here and `real` there. Units come
in *blocks* of one vector (`lanes`); everything inside the kernels is padded to whole blocks, with
zero weights, so that padding stays zero.
"""

cdef enum:
    SLAB = 4    # blocks that a tile of weight gradients reads side by side

    STATES = 4  # at most

cdef struct CellKernels     # below

ctypedef enum Norm:
    # Layer normalisation: none, of both products (Haste), of every gate's sum (TFLite).
    NONE
    OF_PRODUCTS
    OF_GATES

ctypedef enum Pick:
    # Which outputs the caller gets.
    ALL
    EVERY
    LAST
    MEAN
    MAX
    FINAL       # none: the state after the last step read, of each direction

cdef extern from "math/activations.h":
    ctypedef struct Activation:
        int kind
        double alpha
        double beta

cdef extern from "math/dense.h":
    enum: PANEL, PACKED_ROWS, TERM_BYTES, TERMS

ctypedef struct Matrix:
    # Packed weights of one product: blocks of outputs, one vector per gate in each, and for every
    # term the vectors of a block side by side. How numbers are stored is known to what packs them
    # (packing.pxi) and to the tile that loads them (tile.h); a distance is in bytes.
    char *data              # NULL: there is none
    Py_ssize_t depth        # terms
    Py_ssize_t gates        # vectors of outputs in a block
    Py_ssize_t step         # from term to term
    Py_ssize_t stride       # from block to block

ctypedef struct Weights:
    # One direction of one layer, packed. What a block keeps of the gates is in slots; each product
    # writes neighbouring ones, in the order of its packed weights. See `cylstm.cells.Cell`.
    const CellKernels *cell
    bint plain              # nothing below that a textbook cell does not have
    bint reverse            # reads from a row's last frame to its first
    Py_ssize_t inputs
    Py_ssize_t hidden
    Py_ssize_t outputs      # size of h: hidden, or the size it is projected to
    Py_ssize_t in_blocks    # ceil(inputs / lanes)
    Py_ssize_t blocks       # ceil(hidden / lanes)
    Py_ssize_t out_blocks   # ceil(outputs / lanes)
    Py_ssize_t states       # arrays of state: h, and others as wide as `hidden`
    Py_ssize_t gates        # G: vectors per block in the input product
    Py_ssize_t turn         # slot g gets the input weights of gate (g + turn) mod G
    Py_ssize_t summed       # slots that products and biases are summed in
    Py_ssize_t h_slot       # first slot the recurrent product adds to
    Py_ssize_t h_gates      # vectors per block of one recurrent product: G; 1 if reset before
    Py_ssize_t h_products   # 1; 2 (r and z) if reset before; 0 without recurrent matrix
    Py_ssize_t heads        # diagonal blocks of U: each has its units and sees those of h alone
    Py_ssize_t depth        # outputs / heads
    Matrix w_ih             # G gates of `inputs` terms
    Matrix w_hh             # h_products times `blocks` blocks: h_gates gates of `depth` terms
    void *bias              # (blocks, summed, lanes)
    # Of backward, whose terms are the gates of all blocks, block by block
    Matrix w_ih_t
    Matrix w_hh_t           # of all heads; each has its own terms
    # A step's second product: the projection to h, or that of the last gate with what others let
    # through (reset before)
    bint projects
    Matrix w_2
    Matrix w_2_t
    # Variants
    double clip             # bound of gate pre-activations, 0: none
    double cell_clip
    double zone             # zoneout of h in inference: probability of keeping the old value
    double zone_c
    Norm norm
    Activation act[5]       # by slot; [4] that of a cell state on its way out
    bint kinks              # some derivative or clip needs the pre-activation
    # Weights of single units and where they are among them, -1 for none
    Py_ssize_t singles      # N
    void *single            # (blocks, N, lanes)
    Py_ssize_t peephole     # i, f, o (coupled: i, o)
    Py_ssize_t norm_x       # G, in the order of the input product; of gates: the only ones
    Py_ssize_t norm_h       # G, in the order of the recurrent product
    Py_ssize_t norm_c       # weight and bias
    Py_ssize_t norm_bias    # in place of `bias`: added after normalising
    Py_ssize_t diagonal     # recurrent weights of an IndRNN
    # Set by a call: what a row's block keeps at one step, in vectors
    Py_ssize_t slots        # S: all of the following
    Py_ssize_t kept         # G pre-activations start here; 0: not kept
    Py_ssize_t normed       # normalised sums start here (of products: G and G, of gates: G)

ctypedef struct Sequence:
    # One direction of one layer in one call. Rows are sorted by length, longest first: the rows
    # still running at a step are the first `active[step]`. Steps count from the row's own start,
    # which for the reverse direction is its last frame; masked steps are left out.
    Weights w
    bint plain              # no variant, nothing to record, all outputs
    Py_ssize_t steps
    Py_ssize_t rows
    Py_ssize_t *active      # (steps) rows running
    Py_ssize_t *first       # (steps + 1) running sum of active: index of (step, row 0) in the tape
    Py_ssize_t *length      # (rows)
    Py_ssize_t *time        # (entries) time of each step from the row's start, if masked, or NULL
    Py_ssize_t *x_row       # (rows) elements from x to a row's step 0 (masked: time 0)
    Py_ssize_t *y_row       # (rows) elements from y to a row's step 0 (masked: time 0)
    Py_ssize_t x_step       # elements from step to step in x, negative in reverse unless masked
    Py_ssize_t y_step
    void *x
    void *y                 # OUT; may be NULL
    Pick pick
    Py_ssize_t every        # EVERY: outputs k - 1, 2 k - 1, ... in time; y_row is at time 0 then
    void *pooled            # OUT (rows, out_blocks * lanes) for LAST, MEAN, MAX; may be NULL
    void *pooled_rest       # (rows, out_blocks * lanes) MEAN: what rounding has taken off the sum
    # States are rows of blocks * lanes; that of row r before `step` is row state_at[step] + r. In
    # inference two places take turns. The tape, which begins at step `base`, has all: first those
    # before `base`, then those after each entry.
    Py_ssize_t *state_at    # (steps + 1)
    Py_ssize_t base
    void *state[STATES]     # the first w.states of them
    void *tape              # (entries, blocks, S, lanes) activated gates, NULL in inference
    void *scales            # (entries, 4) 1 / standard deviation; NULL unless tape and norm
    void *second            # (rows, blocks * lanes) what the second product reads
    # Masks
    void *h_mask            # (rows, out_blocks * lanes) factors of h in recurrent products, or NULL
    void *zone_h            # 1 where h keeps its old value, or NULL
    Py_ssize_t *zone_h_row
    Py_ssize_t zone_h_step
    void *zone_c
    Py_ssize_t *zone_c_row
    Py_ssize_t zone_c_step
    # A number for each step of a row that the cell reads in addition to x
    void *attention
    Py_ssize_t *attention_row
    Py_ssize_t attention_step
    # Backward only
    double clip_step        # bound of the gradient of pre-activations, 0: none
    void *dy                # gradient of y, may be NULL
    Py_ssize_t *dy_row
    Py_ssize_t dy_step
    void *d_pooled          # gradient of pooled; MAX: what has not been given to a step yet
    void *best              # MAX: pooled, as forward left it
    void *dx                # OUT
    Py_ssize_t *dx_row      # as x_row and x_step
    Py_ssize_t dx_step
    void *d_attention       # OUT
    Py_ssize_t *d_attention_row
    Py_ssize_t d_attention_step
    void *d_scaled          # (chunk entries, blocks, lanes) what the unit adds to d_attention
    # IN/OUT (rows, out_blocks * lanes), from the second on (rows, blocks * lanes): gradients of
    # the states after a step, then before it
    void *d_state[STATES]
    void *d_x               # (chunk entries, blocks, G, lanes) gradient of input pre-activations
    void *d_h               # gradient of recurrent ones (h_products * h_gates vectors a block)
    Py_ssize_t d_h_gates    # vectors per block of d_h
    void *d_2               # (chunk entries, out_blocks * lanes) gradient of the second product
    void *d_second          # (rows, blocks * lanes) gradient of what it reads
    void *d_singles         # (rows, blocks, N, lanes) sums of a row over the chunk
    Py_ssize_t entries      # room for entries of a chunk
    # Copies (blocks / SLAB, entries, SLAB, lanes): side by side what a weight gradient's tile reads
    void *x_copy            # rows of x of this chunk
    void *h_copy            # rows of the state before each step
    void *second_copy       # what the second product read
    void *dx_copy           # (chunk entries, in_blocks * lanes)
    void *dw_ih             # OUT (G * hidden, in_blocks * lanes)
    void *dw_hh             # OUT (G * hidden, depth in whole vectors)
    void *dw_2              # OUT (outputs, blocks * lanes); reset before: in dw_hh
    void *d_single          # IN/OUT as single
    void *db_ih             # IN/OUT (blocks, G, lanes)
    void *db_hh             # IN/OUT (blocks, G, lanes); NULL unless it differs from db_ih

ctypedef struct Part:
    # What one thread works on: some rows and blocks over one chunk of steps. Entries are the
    # (step, row) pairs of a chunk in tape order, counted from `origin`. A chunk of backward is of
    # some steps with all their rows, or of some rows of one step.
    Py_ssize_t step0
    Py_ssize_t step1
    Py_ssize_t row0
    Py_ssize_t row1
    Py_ssize_t block0
    Py_ssize_t block1
    Py_ssize_t out0         # blocks of h; those above if h is not projected
    Py_ssize_t out1
    Py_ssize_t origin
    Py_ssize_t entries      # backward, as the next: of the chunk
    Py_ssize_t chunk_row0
    Py_ssize_t chunk_row1
    void *gates             # inference: (step1 - step0, row1 - row0, blocks, S, lanes)
    void **a                # room for a row pointer per entry
    void **out              # room for a row pointer per entry
    void *panel             # backward: room for 4 vectors per entry
    void *masked            # (row1 - row0, out_blocks * lanes) h times its mask, and back
    void *lines             # norm: room for 3 rows of blocks

ctypedef struct Blocks:
    # Some rows and blocks of one step; forward finds their slots in p.out, by row from p.row0.
    const Sequence *s
    const Part *p
    Py_ssize_t step
    Py_ssize_t row0
    Py_ssize_t row1
    Py_ssize_t block0
    Py_ssize_t block1

ctypedef void (*CellStep)(const Blocks *at, bint plain) noexcept nogil

cdef struct CellKernels:
    # The functions of one cell, and what they expect its description to say.
    const char *name
    Py_ssize_t gates
    Py_ssize_t slots
    Py_ssize_t states
    bint attends            # whether it reads `attention`
    bint has_plain          # whether there is a textbook form, which `plain` asks for
    # From pre-activations and the state before to the state after; with a second product, to what
    # that reads
    CellStep forward
    # Gradients of pre-activations and of the state before, but for what products add to that of h
    CellStep backward
    # Of a cell whose last gate has the second product: from that to the state after
    CellStep finish
    CellStep finish_backward
    # The same of a whole row, where layer normalisation is inside the cell
    void (*normed)(const Sequence *s, const Part *p, void *z, Py_ssize_t step,
                   Py_ssize_t row) noexcept nogil
    void (*normed_backward)(const Sequence *s, const Part *p, const void *z, void *d_x,
                            void *d_single, Py_ssize_t step, Py_ssize_t row,
                            Py_ssize_t entry) noexcept nogil

ctypedef struct Dense:
    # A product of matrices as they are stored; strides in elements. Two forms: x w' + bias, both
    # with their terms side by side, then f; and x w, whose outputs lie side by side as in w.
    Py_ssize_t rows
    Py_ssize_t depth        # number of terms, at least 1
    Py_ssize_t outputs
    const void *x           # (rows, depth)
    Py_ssize_t x_row
    Py_ssize_t x_step       # from term to term; 1 in the first form
    const void *w           # (outputs, depth); (depth, outputs)
    Py_ssize_t w_row
    const void *bias        # (outputs) or NULL, first form
    bint add                # second form: to what is in `sums`
    void *sums              # OUT (rows, outputs); may be y
    void *y                 # OUT (rows, outputs), f of `sums`; NULL: none
    Activation f
    Py_ssize_t term0        # of this run, as the next; whole TERM_BYTES or TERMS but for the last
    Py_ssize_t term1
    # Units that threads claim: so many rows by so many outputs
    Py_ssize_t unit_rows
    Py_ssize_t panel
    Py_ssize_t panels       # ceil(outputs / panel)

ctypedef struct Level:
    Py_ssize_t lanes
    Py_ssize_t itemsize
    const CellKernels *cells
    Py_ssize_t cell_count
    void (*pack)(const void *w, Py_ssize_t hidden, Py_ssize_t turn, const Matrix *packed,
                 Py_ssize_t first) noexcept nogil
    void (*pack_transposed)(const void *w, Py_ssize_t hidden, Py_ssize_t depth, Py_ssize_t gates,
                            Py_ssize_t turn, const Matrix *packed) noexcept nogil
    void (*unpack_add)(const void *packed, Py_ssize_t hidden, Py_ssize_t gates, Py_ssize_t turn,
                       void *w) noexcept nogil
    void (*add_rows)(const void *rows, Py_ssize_t count, Py_ssize_t size,
                     void *into) noexcept nogil
    void (*project)(const Sequence *s, const Part *p) noexcept nogil
    void (*forward_step)(const Sequence *s, const Part *p, Py_ssize_t step,
                         Py_ssize_t phase) noexcept nogil
    void (*publish)(const Sequence *s, const Sequence *team, const Part *p,
                    Py_ssize_t step) noexcept nogil
    void (*backward_step)(const Sequence *s, const Part *p, Py_ssize_t step,
                          Py_ssize_t phase) noexcept nogil
    void (*copy_rows)(const Sequence *s, const Part *p) noexcept nogil
    void (*weight_gradient)(const Sequence *s, const Part *p) noexcept nogil
    void (*input_gradient)(const Sequence *s, const Part *p, Py_ssize_t entry0,
                           Py_ssize_t entry1) noexcept nogil
    void (*activation)(const Activation *act, const void *x, void *y,
                       Py_ssize_t n) noexcept nogil
    void (*d_activation)(const Activation *act, const void *x, const void *dy, void *dx,
                         Py_ssize_t n) noexcept nogil
    void (*dense)(const Dense *d, Py_ssize_t unit, void *panel) noexcept nogil
    void (*multiply)(const Dense *d, Py_ssize_t unit, void *panel) noexcept nogil
