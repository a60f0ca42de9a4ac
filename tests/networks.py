"""Checks that tests of modules and networks share."""

import numpy as np


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def slope(evaluate, step=1e-3):
    """Derivative at 0 of a function of one number: central difference of fourth order."""
    near = evaluate(step) - evaluate(-step)
    far = evaluate(2 * step) - evaluate(-2 * step)
    return (8 * near - far) / (12 * step)


def leaves(tree):
    """Arrays in nested tuples and lists."""
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in leaves(part)]
    return [] if tree is None else [tree]


def like(tree, make):
    """Nested tuples and lists of what is made of each array."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(like(part, make) for part in tree)
    return make(tree)


def dot(a, b):
    return sum(np.vdot(one, other) for one, other in zip(leaves(a), leaves(b), strict=True))


def moved(tree, step, move):
    """Return tree + step * move."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(moved(a, step, b) for a, b in zip(tree, move, strict=True))
    return tree + step * move


def forward(module, x, state, call):
    """Output, final state (None if the module has none) and tape."""
    given = () if state is None else (state,)
    found = module.forward(x, *given, **call)
    return found if len(found) == 3 else (found[0], None, found[1])


def check_gradients(module, x, state=None, *, seed=0, rtol=1e-6, step=1e-3, **call):
    """Compare gradients of x, parameters and states with differences along random directions."""
    rng = np.random.default_rng(seed)

    def drawn(tree):
        return like(tree, lambda a: rng.normal(size=np.shape(a)))

    y, final, tape = forward(module, x, state, call)
    dy, dfinal = drawn(y), drawn(final or ())
    module.zero_grad()
    if final is None:
        dx, dfirst = module.backward(tape, dy), ()
    else:
        dx, dfirst = module.backward(tape, dy, dfinal)
    flat = module.flat_params.copy()
    grads = module.flat_grads.copy()

    def loss(x, state):
        y, final, _ = forward(module, x, state, call)
        return dot(y, dy) + dot(final or (), dfinal)

    compared = 0
    for _ in range(2):
        if dx is not None:
            move = drawn(x)
            expected = slope(lambda step, m=move: loss(moved(x, step, m), state), step)
            np.testing.assert_allclose(dot(dx, move), expected, rtol=rtol, atol=1e-8)
            compared += 1
        if state:
            move = drawn(state)
            expected = slope(lambda s, m=move: loss(x, moved(state, s, m)), step)
            np.testing.assert_allclose(dot(dfirst, move), expected, rtol=rtol, atol=1e-8)
        if flat.size:
            move = rng.normal(size=flat.size)

            def by_parameters(s, move=move):
                module.assign(flat + s * move)
                return loss(x, state)

            np.testing.assert_allclose(
                grads @ move, slope(by_parameters, step), rtol=rtol, atol=1e-8
            )
            module.assign(flat)
            compared += 1
    assert compared
    return tape, dy, dfinal


def check_rows(module, x, lengths, *, batch_first=False):
    """Compare rows of a padded (T, B, ...) batch: alone, in a list, in other company; all bits.

    What is beyond a row's length is made NaN (or an id that does not exist), as nobody may look.
    """

    def call(*arguments, **options):
        found = module(*arguments, **options)
        return found[0] if isinstance(found, tuple) else found

    x = x.copy()
    for i, n in enumerate(lengths):
        x[n:, i] = -1 if x.dtype.kind == "i" else np.nan
    turn = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    y = call(turn(x), lengths=lengths)
    timed = y.ndim > 2
    parts = call([x[:n, i] for i, n in enumerate(lengths)])
    back = list(range(len(lengths)))[::-1]
    turned = call(turn(x[:, back]), lengths=[lengths[i] for i in back], num_threads=2)
    for i, n in enumerate(lengths):
        alone = call(x[:n, i])
        if timed:
            row, other = turn(y)[:, i], turn(turned)[:, back.index(i)]
            assert not row[len(alone) :].any()
            np.testing.assert_array_equal(row[: len(alone)], alone)
            np.testing.assert_array_equal(other[: len(alone)], alone)
        else:
            np.testing.assert_array_equal(y[i], alone)
            np.testing.assert_array_equal(turned[back.index(i)], alone)
        np.testing.assert_array_equal(parts[i], alone)
    assert np.isfinite(y).all()
    return y
