# What a caller asks for where his arguments are exactly what the kernels take: all other calls are
# checked elsewhere.

cdef str ALL_OF_THEM = "all"    # the very string, as a default is


@cython.final
@cython.auto_pickle(False)
cdef class Request:
    """What a caller asks of all layers, read once."""
    cdef Weights *w             # of the first layer
    cdef Py_ssize_t itemsize
    cdef Py_ssize_t layers
    cdef Py_ssize_t directions
    cdef Py_ssize_t steps       # T; of a list the most
    cdef Py_ssize_t rows        # B
    cdef Py_ssize_t ndim        # of x; of a list 3
    cdef bint rows_first
    cdef Pick pick
    cdef Py_ssize_t every
    cdef object x               # an array, or a list of one for each row
    cdef cnp.ndarray lengths    # int64 (B,), or None for whole rows
    cdef cnp.ndarray mask       # uint8 (T, B), or None
    cdef cnp.ndarray reset      # bool (B,), or None: rows that start anew; T is 1 then
    cdef cnp.ndarray starts     # of a list, int64 (B,), as is the next: where rows start
    cdef cnp.ndarray y_starts   # and their outputs, if every k-th is wanted
    cdef Py_ssize_t total       # of a list: all steps
    # Shape of the outputs, of a list end to end: (y_steps, y_rows, y_width)
    cdef Py_ssize_t y_ndim
    cdef Py_ssize_t y_steps
    cdef Py_ssize_t y_rows
    cdef Py_ssize_t y_width
    # Where arrays are; no data are zeros in what is read, and still to be made in what is written
    cdef View at_x
    cdef View at_state[STATES]      # of all layers, as are the next
    cdef View at_new_state[STATES]
    cdef View at_y

    cdef bint read(self, x, state, lengths, mask, reset, return_, bint batch_first) except -1:
        """Whether everything that is read is exactly as the kernels take it."""
        cdef Py_ssize_t k
        self.at_y.data = NULL
        for k in range(self.w.states):
            self.at_state[k].data = self.at_new_state[k].data = NULL
        self.lengths = self.mask = self.reset = self.starts = self.y_starts = None
        if type(x) is list:
            if lengths is not None or mask is not None or reset is not None \
                    or not self.read_rows(<list>x):
                return False
        elif not self.read_array(x, batch_first):
            return False
        if self.steps == 0 or self.rows == 0 or not self.read_return(return_):
            return False
        if lengths is not None and (mask is not None or not self.read_lengths(lengths)):
            return False
        if mask is not None and not self.read_mask(mask):
            return False
        if reset is not None and not self.read_reset(reset):
            return False
        return state is None or self.read_states(state, self.at_state)

    cdef void let_go(self) noexcept:
        """Let go of the caller's arrays."""
        self.x = None

    cdef bint read_array(self, x, bint batch_first) except -1:
        """x of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I)."""
        if not cnp.PyArray_CheckExact(x) or not 2 <= cnp.PyArray_NDIM(x) <= 3:
            return False
        self.ndim, self.rows = cnp.PyArray_NDIM(x), 1
        self.rows_first = batch_first and self.ndim == 3
        self.steps = cnp.PyArray_DIM(x, 1 if self.rows_first else 0)
        if self.ndim == 3:
            self.rows = cnp.PyArray_DIM(x, 0 if self.rows_first else 1)
        self.x = as_contiguous(x, self.itemsize)
        return self.x is not None and as_made(
            &self.at_x, self.x, self.ndim, self.rows_first, self.steps, self.rows, self.w.inputs,
            self.itemsize)

    cdef bint read_rows(self, list rows) except -1:
        """x as a list of arrays of shape (T_i, I), which stay where they are."""
        cdef Py_ssize_t b, n
        cdef cnp.int64_t *length
        cdef cnp.int64_t *start
        self.ndim, self.rows_first, self.rows, self.steps, self.total = 3, False, len(rows), 0, 0
        self.x, self.lengths, self.starts = [], counts(self.rows), counts(self.rows)
        length, start = numbers(self.lengths), numbers(self.starts)
        for b in range(self.rows):
            row = rows[b]
            if not cnp.PyArray_CheckExact(row) or cnp.PyArray_NDIM(row) != 2 \
                    or cnp.PyArray_DIM(row, 1) != self.w.inputs:
                return False
            row = as_contiguous(row, self.itemsize)
            if row is None:
                return False
            (<list>self.x).append(row)
            n = cnp.PyArray_DIM(row, 0)
            length[b], start[b] = n, self.total
            self.total += n
            self.steps = max(self.steps, n)
        self.at_x.data = NULL
        self.at_x.outer = self.w.inputs * self.itemsize
        return True

    cdef bint read_return(self, return_) except -1:
        """Which outputs: by name, or every k-th."""
        cdef Py_ssize_t b
        self.pick, self.every = ALL, 1
        if return_ is ALL_OF_THEM:
            pass
        elif type(return_) is str:
            found = PICKS.get(return_)
            if found is None or return_ == "every":
                return False
            self.pick = <Pick><int>found
        elif type(return_) is int and 0 < return_ <= self.steps:
            self.pick, self.every = EVERY, return_
        else:
            return False
        self.y_ndim, self.y_steps, self.y_rows = self.ndim, self.steps // self.every, self.rows
        self.y_width = self.directions * self.w.outputs
        if self.pick > EVERY:
            self.y_ndim, self.y_steps, self.y_rows = self.ndim - 1, self.rows, 1
        elif self.starts is not None:
            self.y_ndim, self.y_steps, self.y_rows = 2, 0, 1
            self.y_starts = counts(self.rows)
            for b in range(self.rows):
                numbers(self.y_starts)[b] = self.y_steps
                self.y_steps += numbers(self.lengths)[b] // self.every
        return True

    cdef bint read_lengths(self, lengths) except -1:
        """Copy them: an array or a list of integers from 0 to T."""
        cdef Py_ssize_t b
        if type(lengths) is list:
            if len(<list>lengths) != self.rows:
                return False
            self.lengths = counts(self.rows)
            for b in range(self.rows):
                n = (<list>lengths)[b]
                if type(n) is not int or not 0 <= n <= self.steps:
                    return False
                numbers(self.lengths)[b] = n
            return True
        if not cnp.PyArray_CheckExact(lengths) or not cnp.PyArray_ISINTEGER(lengths) \
                or cnp.PyArray_NDIM(lengths) != 1 or cnp.PyArray_DIM(lengths, 0) != self.rows:
            return False
        self.lengths = cnp.PyArray_FROMANY(
            lengths, cnp.NPY_INT64, 1, 1,
            cnp.NPY_ARRAY_CARRAY | cnp.NPY_ARRAY_ENSURECOPY | cnp.NPY_ARRAY_FORCECAST)
        for b in range(self.rows):
            if not 0 <= numbers(self.lengths)[b] <= self.steps:
                return False
        return True

    cdef bint read_mask(self, mask) except -1:
        """Copy booleans laid out as x, and count the steps read."""
        cdef Py_ssize_t t, b
        cdef View view
        cdef cnp.npy_intp shape[2]
        cdef cnp.uint8_t *read
        if not self.flags_at(mask, &view):
            return False
        shape[0], shape[1] = self.steps, self.rows
        self.lengths, self.mask = counts(self.rows), cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT8, 0)
        read = <cnp.uint8_t *>cnp.PyArray_DATA(self.mask)
        for b in range(self.rows):
            numbers(self.lengths)[b] = 0
        for t in range(self.steps):
            for b in range(self.rows):
                read[t * self.rows + b] = view.data[t * view.outer + b * view.inner] != 0
                numbers(self.lengths)[b] += read[t * self.rows + b]
        return True

    cdef bint read_reset(self, reset) except -1:
        """Copy the booleans of a single step: longer ones are cut into episodes elsewhere."""
        cdef View view
        cdef Py_ssize_t b
        if self.steps != 1 or self.directions != 1 or self.w.reverse or self.pick > FINAL \
                or EVERY <= self.pick <= MAX and self.pick != LAST \
                or not self.flags_at(reset, &view):
            return False
        self.reset = counts(self.rows)
        for b in range(self.rows):
            numbers(self.reset)[b] = view.data[b * view.inner] != 0
        return True

    cdef bint flags_at(self, flags, View *view) noexcept:
        """Whether it is an array of booleans laid out as x, in any strides, and where they are."""
        cdef Py_ssize_t ndim = self.ndim - 1, time = 1 if self.rows_first else 0
        if not cnp.PyArray_CheckExact(flags) or cnp.PyArray_TYPE(flags) != cnp.NPY_BOOL \
                or cnp.PyArray_NDIM(flags) != ndim \
                or cnp.PyArray_DIM(flags, time) != self.steps \
                or (ndim == 2 and cnp.PyArray_DIM(flags, 1 - time) != self.rows):
            return False
        view.data = <char *>cnp.PyArray_DATA(flags)
        view.outer = cnp.PyArray_STRIDE(flags, time)
        view.inner = cnp.PyArray_STRIDE(flags, 1 - time) if ndim == 2 else 0
        return True

    cdef bint read_states(self, state, View *at) noexcept:
        """Whether it is the state, or a tuple of several, of all layers; any may be None."""
        cdef Py_ssize_t n = self.layers * self.directions, k
        cdef bint several = self.w.states > 1
        if several and (type(state) is not tuple or len(<tuple>state) != self.w.states):
            return False
        for k in range(self.w.states):
            part = (<tuple>state)[k] if several else state
            if part is not None and not as_made(&at[k], part, self.ndim, False, n, self.rows,
                                                width_of(self.w, k), self.itemsize):
                return False
        return True

    cdef made_states(self):
        """Room for the final state: an array, or a tuple of several."""
        cdef Py_ssize_t n = self.layers * self.directions, k
        cdef tuple found = PyTuple_New(self.w.states)
        part = None
        for k in range(self.w.states):
            part = made(&self.at_new_state[k], self.ndim, False, n, self.rows,
                        width_of(self.w, k), self.itemsize)
            Py_INCREF(part)
            PyTuple_SET_ITEM(found, k, part)
        return part if self.w.states == 1 else found

    cdef bint takes(self, out, state_out) except -1:
        """Whether these are arrays for the results, apart from what is read and from each other."""
        cdef View *read[STATES + 1]
        cdef View *written[STATES + 1]
        cdef Py_ssize_t i, j, n = self.w.states + 1
        if type(self.x) is list:
            return False
        if out is not None and not (
                as_made(&self.at_y, out, self.y_ndim, self.rows_first, self.y_steps, self.y_rows,
                        self.y_width, self.itemsize) and cnp.PyArray_ISWRITEABLE(out)):
            return False
        if state_out is not None:
            if not self.read_states(state_out, self.at_new_state):
                return False
            for part in state_out if type(state_out) is tuple else (state_out,):
                if part is None or not cnp.PyArray_ISWRITEABLE(part):
                    return False
        read[0], written[0] = &self.at_x, &self.at_y
        for i in range(1, n):
            read[i], written[i] = &self.at_state[i - 1], &self.at_new_state[i - 1]
        for i in range(n):
            for j in range(n):
                # A state may be replaced in place.
                if not (apart(written[i], read[j])
                        or (i == j and i > 0 and written[i].data == read[j].data)) \
                        or (i < j and not apart(written[i], written[j])):
                    return False
        return True


cdef cnp.ndarray counts(Py_ssize_t n):
    """An array of n integers, without values."""
    cdef cnp.npy_intp shape = n
    return cnp.PyArray_SimpleNew(1, &shape, cnp.NPY_INT64)


cdef inline cnp.int64_t *numbers(cnp.ndarray a) noexcept:
    return <cnp.int64_t *>cnp.PyArray_DATA(a)


cdef object as_contiguous(x, Py_ssize_t itemsize):
    """Real numbers as the kernels read them, copied if need be; None for what is not that."""
    if cnp.PyArray_TYPE(x) == type_of(itemsize) and cnp.PyArray_IS_C_CONTIGUOUS(x) \
            and cnp.PyArray_ISBEHAVED_RO(x):
        return x
    if not (cnp.PyArray_ISINTEGER(x) or cnp.PyArray_ISFLOAT(x)):
        return None
    return cnp.PyArray_FROMANY(x, type_of(itemsize), 0, 0,
                               cnp.NPY_ARRAY_CARRAY_RO | cnp.NPY_ARRAY_FORCECAST)


cdef bint apart(View *a, View *b) noexcept:
    """Whether contiguous arrays share no byte."""
    return (a.data == NULL or b.data == NULL or a.data + a.size <= b.data
            or b.data + b.size <= a.data)
