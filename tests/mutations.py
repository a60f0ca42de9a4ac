"""The errors that `mutants.py` plants, each with the tests that must find it.

A mutant changes one place of one file. Its tests are those that know the equation or the promise
that it breaks, named one by one so that a run is short; the first to fail ends it.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str  # in src/cylstm
    tests: tuple[str, ...]  # in tests, as pytest takes them
    why: str
    old: str  # must occur exactly once
    new: str


def planted(file, tests, *changes):
    """Mutants of one file for the same tests, from (why, old, new) each."""
    return [Mutant(file, tuple(tests), *change) for change in changes]


# Tests by variant, of float64 where there are two: of the kernels only these are compiled again.


def oracle(*variants):
    return [f"test_variants.py::test_against_the_oracle[{v}-float64]" for v in variants]


def clipped(*variants):
    return [
        f"test_variants.py::test_gradients_clipped_at_every_step[{v}-float64]" for v in variants
    ]


def activation(*variants):
    return [f"test_variants.py::test_activations_against_the_oracle[{v}-float64]" for v in variants]


def threads(*variants):
    return [f"test_terms.py::test_threads_that_share_few_rows[{v}]" for v in variants]


def returned(how, chosen=None):
    chosen = {"mask": "holes"} if chosen is None else chosen
    return [f"test_steps.py::test_returned_outputs[lstm-{chosen}-{how}-float64]"]


def merging(*modes):
    return [f"test_topology.py::test_merging[lstm-{m}-{{'mask': 'holes'}}-float64]" for m in modes]


def chunks(*variants):
    return [
        f"test_terms.py::test_several_chunks_of_time[{v}-{chosen}]"
        for v in variants
        for chosen in ({"lengths": "random"}, {"mask": "holes"})
    ]


def every_cell(test):
    return [f"{test}[{cell}]" for cell in ("lstm", "gru", "rnn_tanh")]


CELLS, STATES, NORMS = "kernels/cells.pxi", "kernels/states.pxi", "kernels/norms.pxi"
PRODUCTS, PACKING, SIMD = "kernels/products.pxi", "kernels/packing.pxi", "kernels/simd.h"
FUNCTIONS, PACKED, CALL = "kernels/activations.h", "kernels/packed.pxi", "kernels/call.pxi"
LOOP, NATIVE = "kernels/timeloop.pxi", "kernels/sequence.pyx"
STACK, MEMORY = "kernels/stack.pxi", "kernels/memory.pxi"

KINKS = ["test_variants.py::test_derivative_at_a_kink"]
BOUNDS = ["test_variants.py::test_a_clip_at_its_bound_lets_the_gradient_through"]
LEFT_BEHIND = [
    f"chaos/test_chaos.py::test_a_thread_that_loses_its_processor_is_left_behind[{cell}-{options}]"
    for cell, options in (("lstm", {"lengths": "random"}), ("lstm", {"proj_size": 70}))
]
HOLES = [
    f"test_steps.py::test_masked_steps_are_as_if_they_were_not_there[lstm-holes-float64-{b}]"
    for b in (False, True)
]
LISTS = [
    "test_steps.py::test_a_list_has_the_bits_of_lengths[lstm-False-float64-True]",
    *every_cell("test_steps.py::test_lists_of_little"),
]
NANS = ["test_terms.py::test_a_nan_passes_every_activation"]

LSTM = planted(
    CELLS, oracle("lstm"),
    ("LSTM: input and forget gate swapped", "a_i = vload(z), a_f = vload(z + LANES), i, f, g, c",
     "a_f = vload(z), a_i = vload(z + LANES), i, f, g, c"),
    ("LSTM: candidate from the output gate's sum",
     "gate(s, z, slot_g, vload(z + slot_g * LANES), True, plain)",
     "gate(s, z, slot_g, vload(z + 3 * LANES), True, plain)"),
    ("LSTM: cell state of another step",
     "cdef vec c_before = vload(cell_state(s, step, row, block))\n    cdef vec a_i",
     "cdef vec c_before = vload(cell_state(s, step + 1, row, block))\n    cdef vec a_i"),
    ("LSTM: flipped sign", "cdef vec c = vfma(f, c_before, i * g)",
     "cdef vec c = vfma(f, c_before, vset(0) - i * g)"),
    ("LSTM: no tanh of the cell state", "h = o * (vtanh(shown) if", "h = o * (shown if"),
    ("LSTM backward: derivative of tanh(c) dropped", "return d_tanh(u, dh * o) if plain",
     "return dh * o if plain"),
    ("LSTM backward: tanh(c) dropped from the output gate's", "o, dh * u, False, plain)",
     "o, dh, False, plain)"),
    ("LSTM backward: gradient of the later cell state dropped", "    dc = later + dc\n", ""),
    ("LSTM backward: c_t for c_{t-1}",
     "cdef vec c_before = vload(cell_state(s, step, row, block))\n    cdef real *carry",
     "cdef vec c_before = vload(cell_state(s, step + 1, row, block))\n    cdef real *carry"),
    ("LSTM backward: forget gate dropped", "dc * c_before, dc * f", "dc * c_before, dc"),
    ("LSTM backward: candidate dropped from the input gate's", "= dc * g, dc *", "= dc, dc *"),
    ("LSTM backward: f for i", "g, dc * i, True", "g, dc * f, True"),
    ("d_sigmoid: factor dropped", "dy * (y * (vset(1) - y))", "dy * y"),
    ("d_tanh: flipped sign", "dy * (vset(1) - y * y)", "dy * (vset(1) + y * y)"),
)  # fmt: skip

PEEPHOLES = [
    *planted(
        CELLS, oracle("peepholes"),
        ("peephole of i dropped", "a_i = vfma(single(s, s.w.peephole, block), c_before, a_i)",
         "pass"),
        ("peephole of f is that of i", "single(s, s.w.peephole + 1, block), c_before, a_f",
         "single(s, s.w.peephole, block), c_before, a_f"),
        ("peephole of o sees the state before", "s.w.peephole + slot - 1, block), c, a)",
         "s.w.peephole + slot - 1, block), vload(cell_state(s, step, row, block)), a)"),
        ("gradient of o's peephole of the state before", "LANES, do * c)", "LANES, do * c_before)"),
        ("gradient through o's peephole dropped",
         "dc = vfma(single(s, s.w.peephole + slot_g, block), do, dc)", "pass"),
        ("gradient through i's peephole dropped",
         "cdef vec dc = single(s, s.w.peephole, block) * di", "cdef vec dc = vset(0)"),
        ("gradient of i's peephole", "LANES, di * c_before)", "LANES, df * c_before)"),
        ("gradient through f's peephole dropped",
         "dc = vfma(single(s, s.w.peephole + 1, block), df, dc)", "pass"),
        ("gradient of f's peephole", "LANES, df * c_before)", "LANES, df)"),
        ("gradient through the forget gate lost where there are peepholes",
         "before = before + lstm_peephole", "before = lstm_peephole"),
    ),
    *planted(
        STATES, oracle("peepholes"),
        ("single weights' gradients of the first step alone", "vstore(at, vload(at) + v)",
         "vstore(at, v)"),
    ),
    *planted(
        CELLS, oracle("coupled-peepholes", "clip-peepholes", "haste-peepholes"),
        ("peephole of o is the third of coupled gates, too",
         "single(s, s.w.peephole + slot - 1, block)", "single(s, s.w.peephole + 2, block)"),
        ("coupled gates have a peephole of f", "    if not s.w.coupled:\n        dc = vfma(single",
         "    if True:\n        dc = vfma(single"),
        ("peepholes lost with a layer norm", "and s.w.norm != OF_GATES", "and s.w.norm == NONE"),
    ),
    *planted(
        CELLS, oracle("tflite-peepholes"),
        ("peepholes twice where gates are normalised", " and s.w.norm != OF_GATES", ""),
    ),
]  # fmt: skip

COUPLED = planted(
    CELLS, oracle("coupled"),
    ("coupled: f = i", "        f = vset(1) - i", "        f = i"),
    ("coupled backward: f = i", "return vset(1) - i if", "return i if"),
    ("coupled backward: +df", "di = di - df", "di = di + df"),
)  # fmt: skip

CLIPS = [
    *planted(
        CELLS, oracle("clip", "gru-clip", "rnn-clip", "reset_before-clip"),
        ("clip dropped", "        a = vclamp(a, vset(-s.w.clip), vset(s.w.clip))", "        pass"),
        ("clip without its lower bound", "        a = vclamp(a, vset(-s.w.clip), vset(s.w.clip))",
         "        a = vclamp(a, vset(-1e30), vset(s.w.clip))"),
        ("clip of the gate instead of its pre-activation", "    return activate(&s.w.act[slot], a)",
         "    a = activate(&s.w.act[slot], a)\n"
         "    return vclamp(a, vset(-s.w.clip), vset(s.w.clip)) if s.w.clip > 0 else a"),
        ("clip's derivative dropped", "d = vwithin(a, s.w.clip, d)", "pass"),
        ("clip's derivative of the gate", "vwithin(a, s.w.clip, d)", "vwithin(y, s.w.clip, d)"),
        ("pre-activations kept after the clip",
         "        vstore(z + (s.w.kept + slot) * LANES, a)\n    if s.w.clip > 0:\n"
         "        a = vclamp(a, vset(-s.w.clip), vset(s.w.clip))\n",
         "        vstore(z + (s.w.kept + slot) * LANES, vclamp(a, vset(-s.w.clip),"
         " vset(s.w.clip)))\n    if s.w.clip > 0:\n"
         "        a = vclamp(a, vset(-s.w.clip), vset(s.w.clip))\n"),
        ("pre-activations all kept in one place", "vstore(z + (s.w.kept + slot) * LANES, a)",
         "vstore(z + s.w.kept * LANES, a)"),
    ),
    *planted(
        CELLS, oracle("cell_clip", "cell_clip-peepholes"),
        ("cell clip dropped", "c = vclamp(c, vset(-s.w.cell_clip), vset(s.w.cell_clip))", "pass"),
        ("cell clip's derivative dropped",
         "dc = vwithin(vfma(f, c_before, i * g), s.w.cell_clip, dc)", "pass"),
        ("cell clip's derivative at the clipped value", "vwithin(vfma(f, c_before, i * g), s",
         "vwithin(c, s"),
        ("cell clip's derivative for o's part alone",
         "    dc = later + dc\n    if not plain and s.w.cell_clip > 0:\n"
         "        dc = vwithin(vfma(f, c_before, i * g), s.w.cell_clip, dc)\n",
         "    if not plain and s.w.cell_clip > 0:\n"
         "        dc = vwithin(vfma(f, c_before, i * g), s.w.cell_clip, dc)\n"
         "    dc = later + dc\n"),
    ),
    *planted(
        CELLS, clipped("lstm", "gru", "rnn"),
        ("clip_step dropped", "d = vclamp(d, vset(-s.clip_step), vset(s.clip_step))", "pass"),
        ("clip_step of the gate's gradient", "d = vclamp(d, vset(-s.clip_step)",
         "d = vclamp(dy, vset(-s.clip_step)"),
    ),
    *planted(
        FUNCTIONS, BOUNDS,
        ("no gradient at the bounds of a clip", "vabs(x) > vset(bound)", "vabs(x) >= vset(bound)"),
        ("gradient below the lower bound of a clip", "vabs(x) > vset(bound)", "x > vset(bound)"),
    ),
    *planted(
        CALL, clipped("lstm"),
        ("clip_step ignored by textbook cells", "s.plain = s.plain and clip_step == 0", "pass"),
    ),
    *planted(
        "recurrent.py", clipped("lstm"),
        ("clip_step not passed on", "dx, n_threads, bound", "dx, n_threads, 0.0"),
    ),
]  # fmt: skip

ACTIVATIONS = [
    *planted(
        FUNCTIONS, activation("rnn-relu", "rnn-Affine-0.7-0.2", "rnn-leakyRELU",
                              "rnn-LeakyRelu-0.3", "rnn-ThresholdedRelu-0.2"),
        ("relu: identity", "case RELU: return vrelu(x)", "case RELU: return x"),
        ("relu: derivative 1", "case RELU: return vstep(y, dy)", "case RELU: return dy"),
        ("affine: alpha and beta swapped", "AFFINE: return vfma(alpha, x, beta)",
         "AFFINE: return vfma(beta, x, alpha)"),
        ("affine: derivative beta", "AFFINE: return alpha * dy", "AFFINE: return beta * dy"),
        ("leaky relu: sides swapped", "vselect(x > zero, x, alpha * x)",
         "vselect(x > zero, alpha * x, x)"),
        ("leaky relu: derivative's sides swapped", "vselect(x > zero, dy, alpha * dy)",
         "vselect(x > zero, alpha * dy, dy)"),
        ("thresholded relu: at 0", "vselect(x <= alpha, zero, x)", "vselect(x <= zero, zero, x)"),
        ("thresholded relu: derivative at 0", "vselect(x > alpha, dy, zero)",
         "vselect(x > zero, dy, zero)"),
    ),
    *planted(
        FUNCTIONS, activation("rnn-ScaledTanh-1.3-0.7", "rnn-HardSigmoid-1.5-0.4",
                              "rnn-HardSigmoid", "rnn-elu-0.6", "rnn-Softsign", "rnn-Softplus"),
        ("scaled tanh: alpha and beta swapped", "return alpha * vtanh(beta * x)",
         "return beta * vtanh(alpha * x)"),
        ("scaled tanh: derivative without beta", "alpha * beta * dy *", "alpha * dy *"),
        ("scaled tanh: derivative elsewhere", "t = vtanh(beta * x);", "t = vtanh(x);"),
        ("hard sigmoid: alpha and beta swapped", "vclamp(vfma(alpha, x, beta), zero",
         "vclamp(vfma(beta, x, alpha), zero"),
        ("hard sigmoid: no upper end", "beta), zero, vset(1))", "beta), zero, vset((real)1e30))"),
        ("hard sigmoid: no lower end", "beta), zero, vset(1))",
         "beta), vset((real)-1e30), vset(1))"),
        ("hard sigmoid: derivative 1", "(t < one), alpha * dy", "(t < one), dy"),
        ("hard sigmoid: derivative's ends of x", "t = vfma(alpha, x, beta);", "t = x;"),
        ("elu: alpha dropped", "alpha * vexpm1(x), x)", "vexpm1(x), x)"),
        ("elu: derivative without alpha", "vfma(alpha, vexpm1(x), alpha)",
         "vfma(one, vexpm1(x), one)"),
        ("softsign: no absolute value", "x / (vset(1) + vabs(x))", "x / (vset(1) + x)"),
        ("softsign: derivative not squared", "dy * (t * t)", "dy * t"),
        ("softsign: derivative without absolute value", "one / (one + vabs(x))", "one / (one + x)"),
        ("softplus: linear part dropped", "vrelu(x) + (s + s) * sum", "(s + s) * sum"),
        ("softplus: derivative flipped", "dy * vsigmoid(x)", "dy * vsigmoid(zero - x)"),
        ("softplus: half of its series in float64", "IS_F32 ? 8 : 17", "IS_F32 ? 8 : 8"),
    ),
    *planted(
        FUNCTIONS, KINKS,
        ("relu: derivative 1 at its kink", "case RELU: return vstep(y, dy)",
         "case RELU: return vselect(x >= zero, dy, zero)"),
        ("leaky relu: derivative 1 at its kink", "vselect(x > zero, dy", "vselect(x >= zero, dy"),
        ("thresholded relu: derivative 1 at its kink", "vselect(x > alpha, dy",
         "vselect(x >= alpha, dy"),
        ("hard sigmoid: derivative at its lower kink", "(t > zero)", "(t >= zero)"),
        ("hard sigmoid: derivative at its upper kink", "(t < one)", "(t <= one)"),
        ("elu: derivative alpha at its kink", "vselect(x < zero, dy", "vselect(x <= zero, dy"),
    ),
    *planted(
        FUNCTIONS, ["test_terms.py::test_a_thresholded_relu_is_0_at_its_threshold"],
        ("thresholded relu: not 0 at its threshold", "vselect(x <= alpha, zero",
         "vselect(x < alpha, zero"),
    ),
    *planted(
        FUNCTIONS, ["test_terms.py::test_no_digits_cancel"],
        ("elu: cancels near 0", "vfma(scale, p, scale - vset(1))",
         "vfma(scale, p, scale) - vset(1)"),
        ("softplus: underflows early", "vrelu(x) + (s + s) * sum",
         "vrelu(x) + ((s + s) * sum + vset(1) - vset(1))"),
    ),
    *planted(
        FUNCTIONS, NANS,
        ("a clamp swallows NaN", "vselect(x > high, high, vselect(x < low, low, x))",
         "vselect(x < high, vselect(x < low, low, x), high)"),
        ("thresholded relu swallows NaN", "vselect(x <= alpha, zero, x)",
         "vselect(x > alpha, x, zero)"),
    ),
    *planted(
        FUNCTIONS, oracle("peepholes", "gru-haste"),
        ("sigmoid's derivative among others", "dy * (y * (vset(1) - y))", "dy * y"),
        ("tanh's derivative among others", "dy * (vset(1) - y * y)", "dy * (vset(1) + y * y)"),
    ),
    *planted(
        PACKED, [*activation("rnn-Softsign", "rnn-elu-0.6"), *oracle("coupled")],
        ("pre-activations not kept for those who need them", "w.kinks = w.kinks or (",
         "w.kinks = w.kinks and ("),
        ("every activation a textbook one", "w.plain = w.plain and kind == usual", "pass"),
        ("activation of the cell on its way out lost", "w.act[4 if of_cell else slot]",
         "w.act[slot]"),
    ),
    *planted(
        PACKED, oracle("clip"),
        ("pre-activations not kept for a clip", "w.kinks = w.clip != 0", "w.kinks = False"),
        ("a clip makes no variant", "w.plain = (w.clip == 0 and ", "w.plain = ("),
    ),
    *planted(
        "activations.py", activation("rnn-HardSigmoid", "rnn-leakyRELU", "rnn-ThresholdedRelu",
                                     "rnn-hard_sigmoid_keras3", "rnn-Elu", "rnn-Affine"),
        ("default of hard sigmoid", '"hardsigmoid": Activation("hardsigmoid", 0.2',
         '"hardsigmoid": Activation("hardsigmoid", 0.25'),
        ("default of leaky relu", '"leakyrelu", 0.01', '"leakyrelu", 0.1'),
        ("default of thresholded relu", '"thresholdedrelu", 1.0', '"thresholdedrelu", 0.0'),
        ("Keras 3's hard sigmoid is Keras 2's", '"hardsigmoid", 1 / 6', '"hardsigmoid", 0.2'),
        ("default of elu", '"elu", 1.0', '"elu", 0.5'),
        ("default of affine", '"affine", 1.0, 0.0', '"affine", 1.0, 1.0'),
    ),
    *planted(
        "activations.py", oracle("onnx-activations"),
        ("ONNX's activations in reverse", "enumerate(zip(short, value, strict=True))",
         "enumerate(zip(short, value[::-1], strict=True))"),
    ),
    *planted(
        "layers.py", [*oracle("onnx-activations"), *activation("gru-activations0")],
        ("ONNX's activation of the candidate for the cell", '[sigmoids, ["candidate"], ["cell"]]',
         '[sigmoids, ["cell"], ["candidate"]]'),
        ("GRU: activations of r and z swapped", '("candidate", "reset", "update")',
         '("candidate", "update", "reset")'),
    ),
    *planted(
        SIMD, ["test_sequences.py::test_nan_reaches_its_own_later_steps_only[rnn_relu]"],
        ("relu swallows NaN", "vmax(vset(0), x)", "vmax(x, vset(0))"),
    ),
    *planted(
        SIMD, ["test_activations.py::test_where_it_curves"],
        ("exponential in float32: a coefficient", "0x1.5554b0p-3", "0x1.5555b0p-3"),
        ("exponential in float64: a coefficient", "0x1.5555555555539p-3", "0x1.5555555555739p-3"),
    ),
]  # fmt: skip

LAYER_NORM = [
    *planted(
        NORMS, oracle("haste", "tflite"),
        ("mean not subtracted", "k * LANES) - vset(mean)) * vset(scale)",
         "k * LANES)) * vset(scale)"),
        ("mean of squares for the variance", "0, mean, SQUARED", "0, 0, SQUARED"),
        ("unbiased variance", "<real>(gates * hidden)", "<real>(gates * hidden - 1)"),
        ("padding is part of the mean", "vfirst(a, hidden - block * LANES)", "a"),
        ("epsilon outside the root",
         "1 / sqrt(variance + <real>(1e-5 if norm == OF_PRODUCTS else 1e-8))",
         "1 / (sqrt(variance) + <real>(1e-5 if norm == OF_PRODUCTS else 1e-8))"),
        ("epsilon of TFLite in both", "1e-5 if norm == OF_PRODUCTS else 1e-8", "1e-8"),
        ("epsilon of Haste in both", "1e-5 if norm == OF_PRODUCTS else 1e-8", "1e-5"),
        ("backward: mean dropped", "(vload(at) - vset(mean)", "(vload(at)"),
        ("backward: mean along the row dropped",
         "- vload(normed + block * stride + k * LANES) * vset(along)", "- vset(0)"),
        ("backward: mean along the row not of the product", "stride, 0, TIMES",
         "stride, 0, STRAIGHT"),
        ("backward: scale dropped", "vstore(at, vset(scale)", "vstore(at, vset(1)"),
        ("all scales kept in one place", "scales_at(s, step, row)[which] = scale",
         "scales_at(s, step, row)[0] = scale"),
    ),
    *planted(
        NORMS, chunks("haste"),
        ("scales of the last step throughout", "(s.first[step] - s.first[s.base] + row) * 4",
         "row * 4"),
    ),
    *planted(
        NORMS, oracle("haste", "gru-haste"),
        ("LN(W x): weight of LN(U h)",
         "single(s, s.w.norm_x + k, block),\n                        vload(at + k * LANES)",
         "single(s, s.w.norm_h + k, block),\n                        vload(at + k * LANES)"),
        ("LN(U h): weight of LN(W x)",
         "single(s, s.w.norm_h + k, block), vload(at + (s.w.h_slot + k) * LANES)",
         "single(s, s.w.norm_x + k, block), vload(at + (s.w.h_slot + k) * LANES)"),
        ("bias after the norms dropped",
         "vstore(at + k * LANES, single(s, s.w.norm_bias + k, block))",
         "vstore(at + k * LANES, vset(0))"),
        ("LN(U h) of every gate by itself",
         "norm_row(s, z + slot * LANES, z + slot * LANES, s.w.gates, 1, step, p.row0 + i)",
         "norm_row(s, z + slot * LANES, z + slot * LANES, 1, 1, step, p.row0 + i)"),
        ("gradient of the weight of LN(W x)", "vload(x + k * LANES) * vload(at + k * LANES))",
         "vload(x + k * LANES))"),
        ("gradient through the weight of LN(W x)",
         "vload(x + k * LANES) * single(s, s.w.norm_x + k, block)", "vload(x + k * LANES)"),
        ("gradient of the weight of LN(U h)", "vload(h + k * LANES) * vload(at + k * LANES))",
         "vload(h + k * LANES))"),
        ("gradient through the weight of LN(U h)",
         "vload(h + k * LANES) * single(s, s.w.norm_h + k, block)", "vload(h + k * LANES)"),
        ("gradient of the bias after the norms",
         "(s.w.norm_bias + k) * LANES, vload(x + k * LANES))",
         "(s.w.norm_bias + k) * LANES, vload(h + k * LANES))"),
        ("gradient of b_hn is that of b_hz", "vload(h + (gates - 1) * LANES)",
         "vload(h + (gates - 2) * LANES)"),
        ("gradient of W x not of the norm",
         "normalise_backward(d_x, gates * LANES, at, size, scales[0], gates, s.w.hidden)", "pass"),
        ("gradient of W x by the scale of U h", "size, scales[0], gates", "size, scales[1], gates"),
        ("gradient of U h by the scale of W x", "size, scales[1], gates", "size, scales[0], gates"),
        ("gradients of U h and W x the same after the norms",
         "            memcpy(h, x, gates * LANES * sizeof(real))", "            h = x"),
    ),
    *planted(
        NORMS, oracle("haste"),
        ("LN(c): weight dropped", "vfma(normed, single(s, s.w.norm_c, block),",
         "vfma(normed, vset(1),"),
        ("LN(c): bias dropped", "block), single(s, s.w.norm_c + 1, block))", "block), vset(0))"),
        ("LN(c) for c in the next step",
         "                        vload(line(s, p, 0) + block * LANES), shown_cell(s, c, block),"
         " False)", "                        vload(line(s, p, 0) + block * LANES), c, False)"),
        ("LN(c): gradient of its weight",
         "d * vload(normed + block * LANES))\n            add_to(d_single",
         "d)\n            add_to(d_single"),
        ("LN(c): gradient of its bias", "(s.w.norm_c + 1) * LANES, d)",
         "(s.w.norm_c + 1) * LANES, d * single(s, s.w.norm_c, block))"),
        ("LN(c): gradient through its weight", "d = d * single(s, s.w.norm_c, block)", "pass"),
        ("LN(c): gradient not of the norm",
         "normalise_backward(dc, LANES, normed, LANES, scale, 1, s.w.hidden)", "pass"),
    ),
    *planted(
        NORMS, oracle("haste-peepholes"),
        ("peephole of o sees LN(c)",
         "                        vload(line(s, p, 0) + block * LANES), shown_cell(s, c, block),"
         " False)", "                        c, shown_cell(s, c, block), False)"),
    ),
    *planted(
        NORMS, oracle("tflite", "tflite-peepholes", "tflite-coupled-peepholes"),
        ("norm of gates: weight of the first gate", "single(s, s.w.norm_x + slot, block),",
         "single(s, s.w.norm_x, block),"),
        ("norm of gates: bias dropped", "single(s, s.w.norm_bias + slot, block)))", "vset(0)))"),
        ("norm of gates: gradient of the bias", "(s.w.norm_bias + slot) * LANES, d)",
         "(s.w.norm_bias + slot) * LANES, d * single(s, s.w.norm_x + slot, block))"),
        ("norm of gates: gradient of the weight",
         "d * vload(z + block * size + (s.w.normed + slot) * LANES))", "d)"),
        ("norm of gates: gradient through the weight", "d * single(s, s.w.norm_x + slot, block))",
         "d)"),
        ("norm of gates: scale of the first gate", "scales_at(s, step, row)[slot], 1, s.w.hidden",
         "scales_at(s, step, row)[0], 1, s.w.hidden"),
        ("norm of gates: gradient of the output gate skipped",
         "norm_gate_backward(s, c, z, d_x, d_single, dc, LANES, last, step, row)", "pass"),
    ),
    *planted(
        NORMS, oracle("tflite-peepholes", "tflite-coupled-peepholes"),
        ("norm of gates: candidate has a peephole", "or slot == s.w.gates - 2", "or slot == 99"),
        ("norm of gates: peephole of o", "return slot if slot < s.w.gates - 2 else slot - 1",
         "return slot if slot < s.w.gates - 2 else slot - 2"),
        ("norm of gates: peephole of o sees the state before",
         "norm_gate(s, line(s, p, 0), LANES, peephole_of(s, last)",
         "norm_gate(s, cell_state(s, step, row, 0), LANES, peephole_of(s, last)"),
        ("norm of gates: peepholes after the norm",
         "    norm_row(s, z + slot * LANES, z + (s.w.normed + slot) * LANES, 1, slot, step, row)\n"
         "    for block in range(s.w.blocks):\n        at = z + block * size\n",
         "    norm_row(s, z + slot * LANES, z + (s.w.normed + slot) * LANES, 1, slot, step,"
         " row)\n    for block in range(s.w.blocks):\n        at = z + block * size\n"
         "        if which >= 0:\n"
         "            vstore(at + (s.w.normed + slot) * LANES, vload(at + (s.w.normed + slot) *"
         " LANES)\n"
         "                   + single(s, s.w.peephole + which, block) * vload(c + block *"
         " c_stride))\n"),
        ("norm of gates: gradient of a peephole", "               d * vload(c + block * c_stride))",
         "               d)"),
        ("norm of gates: gradient through a peephole",
         "vfma(single(s, s.w.peephole + which, block), d, vload(dc + block * c_stride))",
         "vload(dc + block * c_stride)"),
    ),
    *planted(
        "weights.py", oracle("gru-haste"),
        ("GRU: weight of LN(W x) turned the other way",
         'np.roll(values["weight_ln_ih"], len(w_hh) // 3)',
         'np.roll(values["weight_ln_ih"], -(len(w_hh) // 3))'),
        ("GRU: gradient of the weight of LN(W x) turned the other way",
         "np.roll(part, -(len(part) // 3))", "np.roll(part, len(part) // 3)"),
        ("GRU: gradient of biases with a norm in slot order",
         'into["bias_ih"] += np.concatenate([r, z, n_x])',
         'into["bias_ih"] += np.concatenate([n_x, r, z])'),
        ("GRU: gradient of b_hn with a norm is that of b_in",
         'into["bias_hh"] += np.concatenate([r, z, n_h])',
         'into["bias_hh"] += np.concatenate([r, z, n_x])'),
    ),
    *planted(
        "weights.py", oracle("haste", "tflite"),
        ("gradient of b_ih dropped with a norm", '            into["bias_ih"] += part',
         "            pass"),
        ("gradient of b_hh dropped with a norm", '            into["bias_hh"] += part',
         "            pass"),
    ),
    *planted(
        "weights.py", ["test_variants.py::test_parameters_and_their_initial_values"],
        ("weights of a norm begin at 0", "return 1.0", "return 0.0"),
        ("biases of a norm are random", 'return 0.0 if name.startswith("bias_ln") else None',
         "return None"),
    ),
    *planted(
        NATIVE, threads("haste"),
        ("rows to be normalised cut by threads", "if call.seq[0].w.norm != NONE:", "if False:"),
    ),
    *planted(
        LOOP, threads("haste"),
        ("rows to be normalised cut by threads in backward", " or s.w.norm != NONE\n", "\n"),
    ),
]  # fmt: skip

PROJECTION = [
    *planted(
        PRODUCTS, oracle("proj"),
        ("projection added to the state before", "init = zeros if projects else NULL",
         "init = NULL"),
        ("projection backward: gradients of steps add up",
         "p.block1 - p.block0, zeros, 0)\n\n\ncdef void state_backward",
         "p.block1 - p.block0, NULL, 0)\n\n\ncdef void state_backward"),
        ("gradient of the projection from another",
         "<real *>s.d_2 + unit, s.w.out_blocks, 1", "<real *>s.d_x + unit, s.w.out_blocks, 1"),
        ("gradient of the projection dropped", "if s.w.w_2 != NULL and block < s.w.out_blocks:",
         "if False:"),
    ),
    *planted(
        CELLS, oracle("proj", "haste-proj"),
        ("projection of o c", "* activate(&s.w.act[4], shown))\n    return vload(d_second",
         "* shown)\n    return vload(d_second"),
        ("projection skipped in backward", "return vload(d_second(s, row, block))",
         "return seen(s, step, row, block, plain)"),
    ),
    *planted(
        PACKED, oracle("proj"),
        ("projection not transposed",
         "level.pack_transposed(hr.data, w.outputs, w.hidden, 1, 0, w.w_2_t)", "pass"),
    ),
    *planted(
        CALL, oracle("proj"),
        ("gradient of the projection not added",
         'self.add_matrix(s.dw_2, w.outputs, w.hidden, dw_hr, "dw_hr", look_only)', "pass"),
    ),
    *planted(
        LOOP, oracle("proj"),
        ("second product skipped", "range(1 + (s.w.w_2 != NULL))", "range(1)"),
        ("second product's gradient skipped", "phases = 2 + (s.w.w_2 != NULL)", "phases = 2"),
        ("as many blocks of h as of units", "p.out1 = share(s.w.out_blocks, me.rank + 1, me.size)",
         "p.out1 = share(s.w.blocks, me.rank + 1, me.size)"),
    ),
]  # fmt: skip

GRU = [
    *planted(
        CELLS, oracle("gru"),
        ("GRU: reset gate on the input's part", "vfma(r, vload(slots + 3 * LANES), vload(slots))",
         "vfma(r, vload(slots), vload(slots + 3 * LANES))"),
        ("GRU: reset and update gate swapped",
         "gate(s, slots, 1, vload(slots + LANES), False, plain)\n"
         "    cdef vec z = gate(s, slots, 2, vload(slots + 2 * LANES), False, plain)",
         "gate(s, slots, 1, vload(slots + 2 * LANES), False, plain)\n"
         "    cdef vec z = gate(s, slots, 2, vload(slots + LANES), False, plain)"),
        ("GRU: update gate inverted", "vfma(z, vload(state(s, step, row, block)) - n, n)",
         "vfma(z, n - vload(state(s, step, row, block)), vload(state(s, step, row, block)))"),
        ("GRU backward: update gate for its complement", "dh * (vset(1) - z)", "dh * z"),
        ("GRU backward: reset gate dropped", "vstore(d_h + 2 * LANES, dn * r)",
         "vstore(d_h + 2 * LANES, dn)"),
        ("GRU backward: n for U h", "r, dn * vload(slots + 3 * LANES)", "r, dn * vload(slots)"),
        ("GRU backward: flipped sign", "dh * (vload(state(s, step, row, block)) - n)",
         "dh * (n - vload(state(s, step, row, block)))"),
        ("GRU backward: direct path dropped", "vstore(carry, dh * z if plain",
         "vstore(carry, vset(0) if plain"),
    ),
    *planted(
        "weights.py", oracle("gru"),
        ("GRU: recurrent bias of the candidate outside the reset gate",
         "[n_x, r_x + r_h, z_x + z_h, n_h]", "[n_x + n_h, r_x + r_h, z_x + z_h, 0 * n_h]"),
    ),
    *planted(
        PRODUCTS, oracle("gru"),
        ("GRU backward: recurrent gradients from those of the input",
         "fill_panel(p, <real *>s.d_h +", "fill_panel(p, <real *>s.d_x +"),
        ("GRU backward: input weights' gradient in slot order", "2 if s.w.cell == GRU else 0, s",
         "0, s"),
        ("GRU backward: no recurrent bias gradient",
         "bias_gradient(s, p, entries, gates, <real *>s.db_hh + unit * gates)", "pass"),
    ),
    *planted(
        CALL, oracle("gru"),
        ("GRU: gradient of b_hn is that of b_in",
         "if s.w.cell == GRU and not s.w.reset_before:\n            s.db_hh",
         "if False:\n            s.db_hh"),
    ),
]  # fmt: skip

RESET_BEFORE = [
    *planted(
        CELLS, oracle("reset_before"),
        ("reset before: h for r h", "vstore(second(s, row, block), r * fed(s, step, row, block))",
         "vstore(second(s, row, block), fed(s, step, row, block))"),
        ("reset before: gradient of r without h", "r, d * h, False, False)", "r, d, False, False)"),
        ("reset before: gradient of h without r", "masked(s, row, block, d * r)",
         "masked(s, row, block, d)"),
        ("reset before: gradient of U_n from h", "s.second_copy, entry, block), r * h)",
         "s.second_copy, entry, block), h)"),
        ("reset before: direct path dropped", "else vload(carry) + dh * z)", "else vload(carry))"),
    ),
    *planted(
        CELLS, oracle("reset_before-recurrent-dropconnect"),
        ("reset before: r h not masked", "r * fed(s, step, row, block))",
         "r * vload(state(s, step, row, block)))"),
        ("reset before: gradient from h not masked",
         "h = fed(s, step, row, block)\n    cdef vec d =",
         "h = vload(state(s, step, row, block))\n    cdef vec d ="),
        ("reset before: gradient of h not masked", "masked(s, row, block, d * r)", "d * r"),
    ),
    *planted(
        PRODUCTS, oracle("reset_before"),
        ("reset before: W x lost", "init = zeros if projects else NULL", "init = zeros"),
        ("reset before: U_z is U_r", "s.w.w_hh + (k * s.w.blocks + block) * size",
         "s.w.w_hh + block * size"),
        ("reset before: dU_z added to dU_r", "s.dw_hh + (k * s.w.hidden + unit)",
         "s.dw_hh + (0 * s.w.hidden + unit)"),
    ),
    *planted(
        "weights.py", oracle("reset_before"),
        ("reset before: b_hn dropped", "[n_x + n_h, r_x + r_h, z_x + z_h])",
         "[n_x, r_x + r_h, z_x + z_h])"),
    ),
    *planted(
        PACKED, oracle("reset_before"),
        ("reset before: U_n is U_z", "hr.data = <char *>hh.data + 2 * size",
         "hr.data = <char *>hh.data + size"),
    ),
    *planted(
        CALL, oracle("reset_before"),
        ("reset before: dU_n added to dU_z", "s.dw_hh + 2 * s.w.hidden * out_width",
         "s.dw_hh + s.w.hidden * out_width"),
    ),
]  # fmt: skip

RNN = planted(
    CELLS, oracle("rnn", "independent"),
    ("RNN backward: h_{t-1} for h_t", "d_gate(s, z, 0, vload(z), seen",
     "d_gate(s, z, 0, vload(state(s, step, row, block)), seen"),
    ("IndRNN: recurrent part dropped",
     "a = vfma(single(s, s.w.diagonal, block), fed(s, step, row, block), a)", "pass"),
    ("IndRNN: gradient of the weights from h_t", "LANES, da * fed(s, step, row, block))",
     "LANES, da * fed(s, step + 1, row, block))"),
    ("IndRNN: gradient of h without its weight",
     "masked(s, row, block, da * single(s, s.w.diagonal, block))", "masked(s, row, block, da)"),
)  # fmt: skip

RANDOM = [
    *planted(
        PRODUCTS, oracle(*(f"{cell}-recurrent_dropout" for cell in ("lstm", "gru", "rnn_tanh"))),
        ("recurrent dropout: not on h", "fed(s, step, p.row0 + i, j))",
         "vload(state(s, step, p.row0 + i, j)))"),
        ("recurrent dropout: not on dh",
         "masked(s, p.row0 + i, j, vload(<real *>p.out[i] + j * LANES))",
         "vload(<real *>p.out[i] + j * LANES)"),
        ("recurrent dropout: not in the gradient of U",
         "entry, j), fed(s, step, row, j))", "entry, j), vload(state(s, step, row, j)))"),
        ("recurrent dropout: dh of the next step lost",
         "vstore(carry, vload(carry)\n                   + masked",
         "vstore(carry, vset(0)\n                   + masked"),
    ),
    *planted(
        CELLS, oracle("independent-recurrent-zoneout"),
        ("IndRNN with recurrent dropout: not on dh",
         "masked(s, row, block, da * single(s, s.w.diagonal, block))",
         "da * single(s, s.w.diagonal, block)"),
        ("IndRNN with recurrent dropout: not in the gradient of the weights",
         "LANES, da * fed(s, step, row, block))", "LANES, da * vload(state(s, step, row, block)))"),
        ("IndRNN with recurrent dropout: not on h", "block), fed(s, step, row, block), a)",
         "block), vload(state(s, step, row, block)), a)"),
    ),
    *planted(
        STATES, oracle("lstm-zoneout", "gru-zoneout", "rnn_tanh-zoneout"),
        ("zoneout: old and new h swapped", "block), h, vload(state(s, step, row, block)))",
         "block), vload(state(s, step, row, block)), h)"),
        ("zoneout backward: all of dh to the new h", "        dh = dh - bypass\n", ""),
        ("zoneout backward: bypass dropped", "vstore(carry, bypass)", "vstore(carry, vset(0))"),
        ("zoneout in inference: none", "return vset(s.w.zone)", "return vset(0)"),
        ("zoneout: mask of the first step throughout", "+ when(s, step, row) * s.zone_h_step", ""),
    ),
    *planted(
        STATES, ["test_regularisation.py::test_zoneout_of_a_step_that_is_not_read[lstm]"],
        ("zoneout: mask counts the steps that are read", "when(s, step, row) * s.zone_h_step",
         "step * s.zone_h_step"),
    ),
    *planted(
        STATES, oracle("lstm-zoneout_cell"),
        ("zoneout of c in inference: none", "return vset(s.w.zone_c)", "return vset(0)"),
        ("zoneout of c: mask counts the steps that are read", "when(s, step, row) * s.zone_c_step",
         "step * s.zone_c_step"),
    ),
    *planted(
        CELLS, oracle("lstm-zoneout_cell", "lstm-zoneout-clips-peepholes"),
        ("zoneout: old and new c swapped", "block), c, c_before) if", "block), c_before, c) if"),
        ("zoneout: h sees c after it", "    return c\n\n\ncdef inline void lstm_output(",
         "    return vload(cell_state(s, step + 1, row, block))\n\n\n"
         "cdef inline void lstm_output("),
        ("zoneout backward: h saw c after it",
         "    if plain:\n        return vload(cell_state(s, step + 1, row, block))",
         "    if True:\n        return vload(cell_state(s, step + 1, row, block))"),
        ("zoneout backward: all of dc to the new c", "        later = later - bypass\n", ""),
        ("zoneout backward: bypass of c dropped",
         "before + bypass if zones_c(s, plain) else before", "before"),
    ),
    *planted(
        CELLS, oracle("gru-zoneout"),
        ("GRU with zoneout: bypass dropped", "else vload(carry) + dh * z)", "else dh * z)"),
    ),
    *planted(
        FUNCTIONS, oracle("lstm-zoneout"),
        ("a mixture by the wrong weights", "vfma(w, b, (vset(1) - w) * a)",
         "vfma(w, a, (vset(1) - w) * b)"),
    ),
    *planted(
        FUNCTIONS, ["test_terms.py::test_zoneout_takes_nothing_of_what_it_drops"],
        ("zoneout: a kept value times 1 plus NaN times 0", "vselect(w == vset(1), b, mixed)",
         "mixed"),
        ("zoneout: a new value plus NaN times 0", "return vselect(w == vset(0), a, ", "return ("),
    ),
    *planted(
        PACKED, oracle("lstm-zoneout", "lstm-zoneout_cell"),
        ("zoneout makes no variant", " and w.zone == 0 and", " and"),
        ("zoneout of c makes no variant", "and w.zone_c == 0\n", "\n"),
    ),
    *planted(
        CALL, oracle("lstm-zoneout_cell", "lstm-recurrent_dropout"),
        ("mask of h makes no variant", " or s.h_mask != NULL", ""),
        ("both directions zoned out alike", "base[0] = view.data + d * width",
         "base[0] = view.data + 0 * width"),
    ),
    *planted(
        "weights.py", oracle("lstm-dropconnect", "gru-dropconnect"),
        ("DropConnect not on the gradient", "dw_hh[0] * dropconnect", "dw_hh[0]"),
        ("DropConnect not on the weights", "else w_hh * dropconnect)[None]", "else w_hh)[None]"),
    ),
    *planted(
        "masks.py", ["test_regularisation.py::test_shapes_and_values",
                     "test_regularisation.py::test_probabilities",
                     "test_regularisation.py::test_masks_of_layers_and_directions_differ",
                     "test_regularisation.py::test_variational_dropout_is_one_mask_for_all_steps"],
        ("masks not scaled", "mask *= 1 / keep if keep else 0", "pass"),
        ("masks scaled by what is dropped", "mask *= 1 / keep if", "mask *= 1 / p if"),
        ("dropped with the probability of being kept", "keep = 1 - p", "keep = p"),
        ("zoneout with the complement", "np.float32) < p)", "np.float32) >= p)"),
        ("one DropConnect for both directions", "dtype) for _ in range(directions)\n        ]",
         "dtype)\n        ] * directions"),
        ("variational dropout fresh at every step", "shape = (1, *shape[1:])", "pass"),
        ("zoneout the same at every step", "(steps, width, directions * outputs)",
         "(1, width, directions * outputs)"),
    ),
    *planted(
        "recurrent.py", oracle("lstm-dropout", "lstm-variational"),
        ("dropout ignored in backward", 'dy = dy * drawn["dropout"]', "pass"),
        ("dropout ignored in forward", 'x = x * drawn["dropout"]', "pass"),
    ),
    *planted(
        "recurrent.py", ["test_regularisation.py::test_a_seed_replays"],
        ("a call's own seed ignored", "generator = self._rng if rng is None else",
         "generator = self._rng if True else"),
    ),
    *planted(
        "recurrent.py", ["test_dropout.py::test_inference_and_single_layers_drop_nothing",
                         *every_cell("test_regularisation.py::"
                                     "test_plain_calls_drop_nothing_but_mix_by_zoneout")],
        ("dropout after the last layer", "if rng is not None and self.dropout and not last:",
         "if rng is not None and self.dropout:"),
    ),
]  # fmt: skip

EVERY_CELL = [
    *planted(
        STATES, oracle("lstm"),
        ("backward: gradient of the next step dropped", "cdef vec dh = vload(carry), bypass",
         "cdef vec dh = vset(0), bypass"),
    ),
    *planted(
        PRODUCTS, oracle("lstm"),
        ("backward: y_t for y_{t-1} in the recurrent weights' gradient",
         "entry, j), fed(s, step, row, j))", "entry, j), fed(s, step + 1, row, j))"),
        ("backward: no bias gradient",
         "bias_gradient(s, p, entries, gates, <real *>s.db_ih + unit * gates)", "pass"),
        ("steps beyond a row's length run", "min(p.row1, s.active[step])", "p.row1"),
    ),
    *planted(
        PRODUCTS, ["test_sequences.py::test_infinite_input_spreads_as_far_as_the_equations_say"],
        ("padding of gradients not cleared", "clear_padding(s, d_x, s.w.gates, block)", "pass"),
        ("padding of recurrent gradients not cleared", "clear_padding(s, d_h, s.d_h_gates, block)",
         "pass"),
    ),
    *planted(
        PRODUCTS, [f"test_bits.py::test_chunks_in_time[{cell}-float64]"
                   for cell in ("lstm", "gru")],
        ("a single step rounded differently", "    # What only the recurrent product",
         "    if n == 1:\n        at = p.block0 * size\n"
         "        vstore(<real *>p.out[0] + at, vload(<real *>p.out[0] + at) * vset(1 + 2.0 **"
         " -52))\n    # What only the recurrent product"),
    ),
    *planted(
        PRODUCTS, [*oracle("peepholes"), *chunks("peepholes")],
        ("every chunk's sums start from 0", "zeros if s.active[p.step1] == 0 else NULL", "zeros"),
        ("single weights' gradients of the last row alone",
         "vstore(total, vload(total) + vload(at))", "vstore(total, vload(at))"),
        ("single weights' gradients of a chunk go into the next one",
         "            vstore(at, vset(0))\n", ""),
    ),
    *planted(
        PACKING, oracle("gru", "lstm"),
        ("gates packed in another order", "(slot + turn) % gates", "(slot + gates - turn) % gates"),
        ("transposed weights of the first inputs alone", "into + square * size", "into"),
    ),
    *planted(
        "weights.py", oracle("rnn", "lstm"),
        ("recurrent matrices transposed",
         "(w_hh if dropconnect is None else w_hh * dropconnect)[None]",
         "np.concatenate([w.T for w in np.split(w_hh, len(layer.gates))])[None]"),
    ),
]  # fmt: skip

SEQUENCES = [
    *planted(
        CALL, HOLES,
        ("mask with holes: reverse reads forwards",
         "time[b * steps + (self.length[b] - 1 - n if self.seq[d].w.reverse\n"
         "                                          else n)] = t", "time[b * steps + n] = t"),
        ("mask with holes: of another row", "if valid[t, self.row[b]]:", "if valid[t, b]:"),
        ("mask with holes: reverse counts strides backwards",
         "self.seq[d].w.reverse and self.seq[d].time == NULL else step",
         "self.seq[d].w.reverse else step"),
        ("mask with holes: reverse begins at the end",
         "self.seq[d].w.reverse and self.seq[d].time == NULL and not at_zero",
         "self.seq[d].w.reverse and not at_zero"),
    ),
    *planted(
        NATIVE, HOLES,
        ("mask with holes: zeros of another row", "not valid[t, call.row[b]]", "not valid[t, b]"),
        ("mask with holes: no zeros", "(mask is None or not valid[t, call.row[b]])",
         "mask is None"),
        ("mask with holes: zeros beyond the number of steps read only",
         "range(0 if mask is not None else call.length[b], s.steps)",
         "range(call.length[b], s.steps)"),
    ),
    *planted(
        "batches.py", HOLES,
        ("mask with holes: as so many first steps",
         "self.mask = found.view(np.uint8)", "pass"),
        ("dx of steps that are not read never written", "make = np.zeros if zero else np.empty",
         "make = np.empty"),
    ),
    *planted(
        CALL, ["test_sequences.py::test_reverse_direction_starts_at_the_rows_own_last_step",
               *oracle("lstm")],
        ("reverse starts at the padding", "at[b] += max(0, self.length[b] - 1) * view.outer",
         "at[b] += max(0, self.seq[0].steps - 1) * view.outer"),
        ("final state of the last step instead of the row's own", "(self.length[b] & ring)",
         "(self.seq[0].steps & ring)"),
    ),
    *planted(
        NATIVE, oracle("lstm"),
        ("first step beyond a length not zeroed", "else call.length[b], s.steps",
         "else call.length[b] + 1, s.steps"),
        ("h0 ignored", "call.copy_rows_in(d, s.h, initial[0],", "call.copy_rows_in(d, s.h, None,"),
        ("c0 ignored", "call.copy_rows_in(d, s.c, initial[1],", "call.copy_rows_in(d, s.c, None,"),
        ("gradient of the final h ignored", "call.copy_rows_in(d, s.dh, dfinal[0],",
         "call.copy_rows_in(d, s.dh, None,"),
        ("gradient of the final c ignored", "call.copy_rows_in(d, s.dc, dfinal[1],",
         "call.copy_rows_in(d, s.dc, None,"),
    ),
    *planted(
        CALL, LISTS,
        ("list: starts of other rows", "at[b] = first[self.row[b]] * view.outer",
         "at[b] = first[b] * view.outer"),
    ),
    *planted(
        "batches.py", LISTS,
        ("list: rows start where they end", "np.cumsum(lengths) - lengths", "np.cumsum(lengths)"),
        ("list: outputs cut elsewhere", "np.cumsum(lengths)[:-1]", "np.cumsum(lengths[::-1])[:-1]"),
    ),
    *planted(
        "batches.py", ["test_steps.py::test_returned_outputs_of_a_list_and_of_a_row_alone[lstm-3]"],
        ("list: as many outputs as steps", "found: npt.NDArray[np.int64] = lengths // self.every",
         "found: npt.NDArray[np.int64] = lengths"),
        ("list: every k-th output starts where the row does", "starts_of(self.y_lengths)",
         "self.starts"),
    ),
    *planted(
        LOOP, ["test_layers.py::test_floating_point_mode_is_left_alone"],
        ("floating-point mode not restored", "    fp_restore(mode)\n", ""),
    ),
    *planted(
        LOOP, threads("lstm", "gru", "reset_before"),
        ("team: outputs not given", "run.level.publish(own, s, p, step)", "pass"),
        ("team: begins from another state", "copy_states(&run.seq[0], &run.team_seq,",
         "pass #"),
        ("team: final state kept to itself", "    if s != own and me.rank == 0:\n        copy",
         "    if False:\n        copy"),
        ("team: no meeting between phases", "        how = meet(run, s, p, me)\n        if",
         "        how = meet(run, s, p, me) if phase else MET\n        if"),
    ),
    *planted(
        LOOP, LEFT_BEHIND,
        ("left behind: the step not made again", "p.step1 = step\n", "p.step1 = step + 1\n"),
        ("left behind: state of the start", "                copy_states(&run.team_seq, own,",
         "                pass #"),
        ("left behind: the leader goes on in the team's memory",
         "s, p.gates, me.size = own, run.gates[0], 1", "me.size = 1"),
        ("left behind: half of the blocks", "                own_blocks(s, p, me)\n"
         "                p.step1 = step", "                p.step1 = step"),
        ("left behind: helpers write the caller's outputs", "run.team_seq.y = NULL", "pass"),
    ),
    *planted(
        LOOP, ["chaos/test_chaos.py::test_pauses"],
        ("hired for while a thread is left behind", "if run.job.state == IDLE:", "if True:"),
    ),
    *planted(
        LOOP, ["chaos/test_chaos.py::test_bits"],
        ("gone on without waiting", "            if not run.left_behind:", "            if False:"),
        ("an abandoned call is not kept", "            Py_INCREF(call)\n", "            pass\n"),
    ),
    *planted(
        "kernels/team.h", ["chaos/test_chaos.py::test_bits"],
        ("reaped without a look", "        if (!all_left(*at)) continue;\n", ""),
    ),
    *planted(
        "kernels/team.h", ["test_threads.py::test_a_forked_child_gets_threads_of_its_own"],
        ("fork: the parent's threads counted on", "    atomic_store(&n_helpers, 0);\n", ""),
    ),
    *planted(
        "kernels/team.h", ["test_threads.py::test_no_processor_is_used_after_a_call"],
        ("helpers spin on", "seconds() - began > spin", "0"),
    ),
]  # fmt: skip

PICKS = [
    *planted(
        STATES, [*returned(3), *returned(1)],
        ("every k-th: one step early", "time = time_of(s, step, row) + 1\n        if s.y",
         "time = time_of(s, step, row)\n        if s.y"),
        ("every k-th: written one place further", "s.y_row[row] + (time // s.every - 1) * s.y_step",
         "s.y_row[row] + (time // s.every) * s.y_step"),
        ("every k-th backward: one step early", "time = time_of(s, step, row) + 1\n        if s.dy",
         "time = time_of(s, step, row)\n        if s.dy"),
        ("every k-th backward: all steps", "if s.dy == NULL or time % s.every:",
         "if s.dy == NULL or time < s.every:"),
        ("every k-th backward: another place", "s.dy_row[row] + (time // s.every - 1) * s.dy_step",
         "s.dy_row[row] + (time // s.every - 2) * s.dy_step"),
    ),
    *planted(
        STATES, returned(3, {"lengths": "random"}),
        ("every k-th in reverse: counts from the end", "return s.length[row] - 1 - step",
         "return step"),
        ("every k-th in reverse: counts from the padding", "return s.length[row] - 1 - step",
         "return s.steps - 1 - step"),
    ),
    *planted(
        STATES, returned("last"),
        ("last in reverse: the last one read", "(0 if s.w.reverse else s.length[row] - 1)",
         "s.length[row] - 1"),
        ("last backward: to every step", "(s.pick == LAST and not last(s, step, row))", "False"),
    ),
    *planted(
        STATES, returned("mean"),
        ("mean: over padding, too", "h = h / vset(s.length[row])", "h = h / vset(s.steps)"),
        ("mean backward: over padding, too", "return d / vset(s.length[row])",
         "return d / vset(s.steps)"),
        ("mean backward: not divided", "return d / vset(s.length[row])", "return d"),
    ),
    *planted(
        STATES, returned("max"),
        ("max: at least 0", "    if step > 0:\n        h = vload(at)",
         "    if True:\n        h = vload(at)"),
        ("max backward: to every step", "        return d - h", "        return d"),
    ),
    *planted(
        STATES, ["test_steps.py::test_of_equal_maxima_the_one_read_last_gets_the_gradient"],
        ("max backward: to all of equal ones", "        vstore(at, h)\n        return d - h",
         "        return d - h"),
    ),
    *planted(
        CALL, returned("last", {}),
        ("picks make no variant", "if s.pick != ALL or ", "if "),
    ),
    *planted(
        "batches.py", returned("last"),
        ("picks in every layer", 'picks = last and self.pick != "all"',
         'picks = self.pick != "all"'),
    ),
]  # fmt: skip

TOPOLOGY = [
    *planted(
        "outputs.py", merging("sum", "mul", "ave", "separate"),
        ("mean of both is their sum", "merged *= 0.5", "pass"),
        ("product of both is their sum",
         'one * other if layer.merge_mode == "mul" else one + other', "one + other"),
        ("mean backward is the sum's", "dy = dy * np.asarray(0.5, dy.dtype)", "pass"),
        ("product backward: factors swapped", "[dy * other, dy * one]", "[dy * one, dy * other]"),
        ("sum backward: to the forward direction only", "np.concatenate([dy, dy], axis=-1)",
         "np.concatenate([dy, 0 * dy], axis=-1)"),
        ("separate: directions swapped", "for part in np.split(y, 2, axis=-1))",
         "for part in np.split(y, 2, axis=-1)[::-1])"),
        ("separate backward: directions swapped", "return np.concatenate(parts, axis=-1)",
         "return np.concatenate(parts[::-1], axis=-1)"),
    ),
    *planted(
        "outputs.py", returned("mean"),
        ("pooled product backward: factors swapped", "one, other = both if pooled",
         "other, one = both if pooled"),
    ),
    *planted(
        "recurrent.py", oracle("lstm"),
        ("dx of the reverse direction dropped", "dx[0] += dx[1]", "pass"),
    ),
    *planted(
        "recurrent.py", ["test_topology.py::test_going_backwards[lstm-{}-float64]"],
        ("going backwards: forwards", "reverse=self.go_backwards or ", "reverse="),
    ),
    *planted(
        "recurrent.py", [f"test_topology.py::test_a_size_per_layer[lstm-True-{s}-float64]"
                         for s in ("(5, 17)", "(17, 5, 33)")],
        ("initial values by the first layer's size", "math.sqrt(self.hidden_sizes[depth])",
         "math.sqrt(self.hidden_sizes[0])"),
        ("a sum as wide as both", "side_by_side = self.merge_mode in outputs.SIDE_BY_SIDE",
         "side_by_side = True"),
        ("layers as wide as the first", "return self.output_sizes[depth] *",
         "return self.output_sizes[0] *"),
    ),
    *planted(
        "states.py", ["test_topology.py::test_a_size_per_layer[lstm-True-(5, 17)-float64]",
                      "test_topology.py::test_sizes_with_a_projection"],
        ("one array for states of several sizes", "len(set(layer.hidden_sizes)) == 1", "True"),
        ("c as wide as h", "parts[1], layer.hidden_sizes, batch",
         "parts[1], layer.output_sizes, batch"),
    ),
]  # fmt: skip

CHECKPOINTS = [
    *planted(
        CALL, chunks("lstm"),
        ("checkpoint: all states saved in one place",
         "saved += step // self.window * s.rows * width", "pass"),
        ("checkpoint: windows cut chunks",
         "(min(extras.checkpoint, max(1, steps)) + chunk - 1) // chunk * chunk",
         "min(extras.checkpoint, max(1, steps))"),
        ("checkpoint: c not saved",
         "self.swap(d, s.c, self.saved_c[d], step, s.w.blocks * vector, restore)", "pass"),
    ),
    *planted(
        NATIVE, chunks("lstm"),
        ("checkpoint: not brought back", "call.checkpoint(step, True)", "pass"),
        ("checkpoint: windows all based at 0", "call.seq[d].base = step", "call.seq[d].base = 0"),
        ("checkpoint: one window run again",
         "forward_run.step0, forward_run.step1 = run.step0, run.step1",
         "forward_run.step0, forward_run.step1 = 0, window"),
    ),
    *planted(
        LOOP, chunks("lstm"),
        ("checkpoint: chunks counted from a window's end",
         "p.step0 = (p.step1 - 1) // run.chunk_steps * run.chunk_steps",
         "p.step0 = max(run.step0, p.step1 - run.chunk_steps)"),
        ("backward: a chunk's entries counted from the first step", "p.origin = s.first[p.step0]",
         "p.origin = 0"),
    ),
    *planted(
        PRODUCTS, chunks("lstm"),
        ("checkpoint: tape from the first step on",
         "(s.first[step] - s.first[s.base] + row) * size", "(s.first[step] + row) * size"),
    ),
    *planted(
        STATES, chunks("lstm"),
        ("checkpoint: h from the first step on", "<real *>s.h + ((((step - s.base) & s.ring)",
         "<real *>s.h + (((step & s.ring)"),
        ("checkpoint: c from the first step on", "<real *>s.c + ((((step - s.base) & s.ring)",
         "<real *>s.c + (((step & s.ring)"),
    ),
]  # fmt: skip

TRACES = planted(
    CALL, ["test_trace.py::test_every_topology[lstm-both]",
           "test_trace.py::test_every_topology[lstm-backwards]",
           "test_trace.py::test_hidden_is_the_output"],
    ("trace: of another row", "at[2 * e + 1] = self.row[b]", "at[2 * e + 1] = b"),
    ("trace: state before the step", "<char *>states + (t + 1) * s.rows * size",
     "<char *>states + t * s.rows * size"),
    ("trace: reverse at the times of its steps",
     "else self.length[b] - 1 - t if s.w.reverse else t", "else t"),
)  # fmt: skip

LAYERS = [
    *planted(
        PACKING, every_cell("test_gradients.py::test_gradients_accumulate_and_a_tape_serves_twice"),
        ("gradients of matrices do not accumulate",
         "vload_part(to + k, size - k) + vload(at + k)", "vload(at + k)"),
        ("gradients of biases do not accumulate",
         "(<real *>w)[natural_row(hidden, gates, turn, unit, slot)] += (",
         "(<real *>w)[natural_row(hidden, gates, turn, unit, slot)] = ("),
    ),
    *planted(
        NATIVE, ["test_native.py::test_gradients_are_added_all_or_none"],
        ("gradients added before all are looked at", "for look_only in (True, False):",
         "for look_only in (False,):"),
    ),
    *planted(
        PRODUCTS, every_cell("test_sequences.py::test_steps_that_no_row_has_add_nothing"),
        ("sums start from 0 in the last chunk only, be it empty", "zeros if s.active[p.step1] == 0",
         "zeros if p.step1 == s.steps"),
    ),
    *planted(
        NATIVE, every_cell("test_sequences.py::test_no_step_no_gradient"),
        ("gradients of no steps added", " or call.seq[d].first[call.seq[d].steps] == 0", ""),
    ),
    *planted(
        "recurrent.py", ["test_layers.py::test_a_changed_weight_is_never_ignored"],
        ("a changed weight is ignored",
         "        self._packed: sequence.Stack | None = None",
         "        self._packed = getattr(self, '_packed', None)"),
    ),
    *planted(
        "layers.py", ["test_variants.py::test_forget_bias_of_every_variant"],
        ("forget bias on the input gate", "value[hidden : 2 * hidden] += forget_bias",
         "value[:hidden] += forget_bias"),
    ),
]  # fmt: skip

AGAIN = [
    *planted(
        STACK, ["test_again.py::test_same_bits", "test_again.py::test_batched_and_not",
                "test_again.py::test_no_state"],
        ("again: x read from row starts in reverse",
         "call.place_rows(s.x_row, &given.x, s.w.reverse)",
         "call.place_rows(s.x_row, &given.x, False)"),
        ("again: y written from row starts in reverse",
         "call.place_rows(s.y_row, y, s.w.reverse)", "call.place_rows(s.y_row, y, False)"),
        ("again: steps of x as they were", "s.x, s.x_step = given.x.data, call.stride(d, &given.x)",
         "s.x = given.x.data"),
        ("again: steps of y as they were",
         "s.y, s.y_step = y.data + d * s.w.outputs * call.level.itemsize, call.stride(d, y)",
         "s.y = y.data + d * s.w.outputs * call.level.itemsize"),
        ("again: both directions write the same", "y.data + d * s.w.outputs",
         "y.data + 0 * s.w.outputs"),
        ("again: h left from the last call", "call.take_rows(s.h, &given.h, at + d, s.w.outputs)",
         "pass"),
        ("again: c left from the last call", "call.take_rows(s.c, &given.c, at + d, s.w.hidden)",
         "pass"),
        ("again: h of the first layer", "call.take_rows(s.h, &given.h, at + d,",
         "call.take_rows(s.h, &given.h, d,"),
        ("again: c of the first layer", "call.take_rows(s.c, &given.c, at + d,",
         "call.take_rows(s.c, &given.c, d,"),
        ("again: final h of one direction", "call.give_rows(s.h, &found.h, at + d,",
         "call.give_rows(s.h, &found.h, at,"),
        ("again: final c of one layer", "call.give_rows(s.c, &found.c, at + d,",
         "call.give_rows(s.c, &found.c, d,"),
        ("again: every layer reads x", "given.x, x = found.x, y", "x = y"),
        ("again: batch_first ignored", "rows_first = batch_first and ndim == 3",
         "rows_first = False"),
        ("again: batch_first without a batch", "rows_first = batch_first and ndim == 3",
         "rows_first = batch_first"),
    ),
    *planted(
        STACK, ["test_again.py::test_what_is_not_a_plain_call_is_not_kept"],
        ("again: a call with lengths", "call.whole and", ""),
        ("again: layers of different sizes",
         "w.hidden == other.hidden and w.outputs == other.outputs", "True"),
    ),
    *planted(
        "recurrent.py", ["test_again.py::test_what_is_not_a_plain_call_is_not_kept"],
        ("again: outputs merged otherwise", ' and self.merge_mode == "concat":\n            stack',
         ":\n            stack"),
    ),
    *planted(
        STACK, ["test_again.py::test_only_calls_of_little_memory_are_kept"],
        ("again: any memory", " and call.arena.total <= AGAIN_BYTES", ""),
    ),
    *planted(
        STACK, ["test_again.py::test_nothing_of_the_caller_is_kept_alive"],
        ("again: x kept", "call.x = None", "pass"),
    ),
    *planted(
        STACK, ["test_again.py::test_the_native_entry_takes_calls_of_its_own_weights_only"],
        ("again: the caller's own list", "calls[:], small", "calls, small"),
        ("again: calls of other weights", "call.weights is not self.layers[depth] or ", ""),
        ("again: outputs of another size than the next layer's inputs",
         "and w.inputs == first.directions * other.outputs", ""),
    ),
    *planted(
        STACK, ["test_again.py::test_bad_input_is_refused_as_ever"],
        ("again: any number of threads",
         "type(num_threads) is not int or num_threads < 1", "False"),
    ),
    *planted(
        STACK, ["test_again.py::test_two_threads",
                "test_again.py::test_two_threads_only_if_there_may_be_two"],
        ("again: the team reads the last x",
         "run.team_seq.x, run.team_seq.x_step = call.seq[0].x, call.seq[0].x_step", "pass"),
        ("again: as many threads as the last time", "team_size(call, threads) != call.team",
         "False"),
    ),
    *planted(
        STACK, ["test_again.py::test_python_threads_share_a_layer"],
        ("again: two threads in one call",
         "calls, self.calls = self.calls, None", "calls = self.calls"),
    ),
    *planted(
        STACK, ["chaos/test_chaos.py::test_calls_run_again[LSTM]"],
        ("again: in memory that a thread left behind may write to",
         "if call.job.state != IDLE:", "if False:"),
    ),
    *planted(
        STACK,
        ["chaos/test_chaos.py::test_x_lives_as_long_as_a_thread_that_is_left_behind_may_read_it"],
        ("again: x given up with a thread left behind", "call.x = x ", "pass"),
    ),
    *planted(
        MEMORY, ["test_again.py::test_other_inputs_go_the_long_way",
                 "test_again.py::test_other_states_go_the_long_way"],
        ("again: any subclass", "if not cnp.PyArray_CheckExact(array):", "if False:"),
        ("again: any strides", "not cnp.PyArray_IS_C_CONTIGUOUS(array)", "False"),
        ("again: any byte order", "not cnp.PyArray_ISBEHAVED_RO(array)", "False"),
        ("again: any dtype", "or cnp.PyArray_TYPE(array) != type_of(itemsize))", ")"),
        ("again: any first axis", "return shape[0] == d0 and shape[1] == d1",
         "return shape[1] == d1"),
        ("again: any second axis", "return shape[0] == d0 and shape[1] == d1",
         "return shape[0] == d0"),
    ),
]  # fmt: skip

TRUNCATION = planted(
    "truncated.py", ["test_truncated.py::test_every_window_by_brute_force"],
    ("truncated: reach from the window's start", "reach = max(0, stop - k2)\n        pieces",
     "reach = max(0, start - k2)\n        pieces"),
    ("truncated: no cuts but at windows",
     "sorted({0, *stops, *(stop - k2 for stop in stops if stop > k2)})", "sorted({0, *stops})"),
    ("truncated: outputs before the window in its loss",
     "if dy is not None and piece.start >= self.start:", "if dy is not None:"),
    ("truncated: the state's gradient stops at a cut", "piece.tape, dpart, dstate, clip",
     "piece.tape, dpart, None, clip"),
    ("truncated: lengths of the whole sequence", "np.clip(lengths - first, 0, end - first)",
     "np.clip(lengths, 0, end - first)"),
    ("truncated: the state is not carried", "end), state, **part)", "end), None, **part)"),
    ("truncated: a piece too many", "if first >= reach:", "if True:"),
)  # fmt: skip

INITIAL = [
    *planted(
        "init.py", ["test_init.py::test_orthogonal_matrices_are_uniformly_distributed",
                    "test_init.py::test_orthogonal"],
        ("orthogonal: signs as the decomposition leaves them", "np.copysign(gain, np.diagonal(r))",
         "gain"),
        ("orthogonal: gain dropped", "np.copysign(gain, np.diagonal(r))",
         "np.copysign(1, np.diagonal(r))"),
        ("orthogonal: all gates one matrix", "blocks = len(layer.gates) if gated else 1",
         "blocks = 1"),
        ("orthogonal: one matrix for all gates",
         "[draw(source, rows // blocks, columns) for _ in range(blocks)]",
         "[draw(source, rows // blocks, columns)] * blocks"),
    ),
    *planted(
        "init.py", ["test_init.py::test_glorot_uniform_by_hand",
                    "test_init.py::test_glorot_uniform"],
        ("glorot: fan in alone", "math.sqrt(6 / (rows + columns))", "math.sqrt(6 / (2 * columns))"),
        ("glorot: of the normal distribution", "math.sqrt(6 / (rows + columns))",
         "math.sqrt(2 / (rows + columns))"),
        ("glorot: a projection has gates", 'gated = per_gate and not name.startswith("weight_hr")',
         "gated = per_gate"),
    ),
    *planted(
        "init.py", ["test_init.py::test_chrono_of_an_lstm", "test_init.py::test_chrono_of_a_gru",
                    "test_init.py::test_coupled_gates_get_the_input_gates_bias",
                    "test_init.py::test_time_scales"],
        ("chrono: input gate open as long", '"input": -keep} if', '"input": keep} if'),
        ("chrono: coupled gates forget", 'else {"input": -keep}\n', 'else {"input": keep}\n'),
        ("chrono: GRU forgets", '{"update": keep}', '{"update": -keep}'),
        ("chrono: up to max_time", "source.uniform(1, max_time - 1, size)",
         "source.uniform(1, max_time + 20, size)"),
        ("chrono: no logarithm", "np.log(source.uniform(1, max_time - 1, size))",
         "source.uniform(1, max_time - 1, size)"),
        ("coupled forget bias: remembers less", "np.full(size, -value)", "np.full(size, value)"),
        ("the other bias left as it was", "values[other][start : start + size] = 0", "pass"),
    ),
    *planted(
        "init.py", ["test_init.py::test_recurrent_weights_of_an_indrnn",
                    "test_init.py::test_uniform"],
        ("IndRNN: every layer from 0", "low = 1 / high if name.startswith(last) else 0.0",
         "low = 0.0"),
        ("IndRNN: 2 for any number of steps", "high = 2 ** (1 / max_time)", "high = 2.0"),
        ("uniform: of the first layer's size", "math.sqrt(_hidden(layer, name))",
         'math.sqrt(_hidden(layer, "weight_ih_l0"))'),
    ),
]  # fmt: skip

MUTANTS = [
    *LSTM, *PEEPHOLES, *COUPLED, *CLIPS, *ACTIVATIONS, *LAYER_NORM, *PROJECTION, *GRU,
    *RESET_BEFORE, *RNN, *RANDOM, *EVERY_CELL, *SEQUENCES, *PICKS, *TOPOLOGY, *CHECKPOINTS,
    *TRACES, *LAYERS, *AGAIN, *TRUNCATION, *INITIAL,
]  # fmt: skip
