"""A network stepped by compiled code without the GIL: the first frame at which a unit fires."""

from cylstm.kernels.sequence cimport Stepper


def first_above(Stepper stepper not None, const float[:, ::1] frames, float threshold):
    """Feed frames until an output is above a threshold.

    Parameters
    ----------
    stepper : cylstm.kernels.sequence.Stepper
        Of a stream of one row, float32.
    frames : array of float32 of shape (T, I)
    threshold : float

    Returns
    -------
    int
        Index of that frame; -1 if there is none.
    """
    cdef float[:] y
    cdef Py_ssize_t t, k, found = -1
    cdef int status = 0
    if stepper.rows != 1 or stepper.itemsize != sizeof(float) \
            or stepper.inputs != frames.shape[1]:
        raise ValueError("stepper: expected one of a stream of one row, of float32, for I numbers")
    import array
    y = array.array("f", bytes(stepper.outputs * sizeof(float)))
    with nogil:
        for t in range(frames.shape[0]):
            status = stepper.step(&frames[t, 0], &y[0])
            if status:
                break
            for k in range(stepper.outputs):
                if y[k] > threshold:
                    found = t
                    break
            if found >= 0:
                break
    if status:
        raise RuntimeError("stepper: another thread is in it")
    return found
