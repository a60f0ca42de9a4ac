"""The tables of options that several test files run over."""

import numpy as np

# Every activation, with other numbers than the defaults where it has any; bounds within reach.
ACTIVATIONS = [
    "Tanh",
    "sigmoid",
    "relu",
    ("Affine", 0.7, 0.2),
    "Affine",
    "leakyRELU",
    ("LeakyRelu", 0.3),
    ("ThresholdedRelu", 0.2),
    "ThresholdedRelu",
    ("ScaledTanh", 1.3, 0.7),
    "ScaledTanh",
    "HardSigmoid",
    ("HardSigmoid", 1.5, 0.4),
    "Elu",
    ("elu", 0.6),
    "Softsign",
    "Softplus",
    "hard_sigmoid_keras3",
    "hard_sigmoid_keras2",
]
GATES = {
    "lstm": ("input", "forget", "candidate", "output", "cell"),
    "gru": ("reset", "update", "candidate"),
}


def name_of(activation):
    return activation if isinstance(activation, str) else "-".join(map(str, activation))


# (name, cell, options): each option alone, and those that meet inside one equation.
CELL_VARIANTS = [
    ("lstm", "lstm", {}),
    ("proj", "lstm", {"proj_size": 3}),
    ("proj1", "lstm", {"proj_size": 1}),
    ("peepholes", "lstm", {"peepholes": True}),
    ("coupled", "lstm", {"coupled": True}),
    ("coupled-peepholes", "lstm", {"coupled": True, "peepholes": True}),
    ("clip", "lstm", {"clip": 0.4}),
    ("clip-peepholes", "lstm", {"clip": 0.5, "peepholes": True}),
    ("clip-coupled", "lstm", {"clip": 0.4, "coupled": True}),
    ("cell_clip", "lstm", {"cell_clip": 0.2}),
    ("cell_clip-peepholes", "lstm", {"cell_clip": 0.2, "peepholes": True}),
    ("haste", "lstm", {"layer_norm": "haste"}),
    ("haste-peepholes", "lstm", {"layer_norm": "haste", "peepholes": True}),
    ("haste-proj", "lstm", {"layer_norm": "haste", "proj_size": 3}),
    ("haste-clips", "lstm", {"layer_norm": "haste", "clip": 0.9, "cell_clip": 0.3}),
    ("haste-nobias", "lstm", {"layer_norm": "haste", "bias": False}),
    ("tflite", "lstm", {"layer_norm": "tflite"}),
    ("tflite-peepholes", "lstm", {"layer_norm": "tflite", "peepholes": True}),
    ("tflite-coupled-peepholes", "lstm",
     {"layer_norm": "tflite", "coupled": True, "peepholes": True}),
    ("tflite-clip-proj", "lstm", {"layer_norm": "tflite", "clip": 0.9, "proj_size": 2}),
    ("tflite-nobias", "lstm", {"layer_norm": "tflite", "bias": False}),
    ("single", "lstm", {"bias": "single"}),
    ("single-peepholes", "lstm", {"bias": "single", "peepholes": True, "coupled": True}),
    ("haste-single", "lstm", {"layer_norm": "haste", "bias": "single"}),
    ("tflite-single", "lstm", {"layer_norm": "tflite", "bias": "single"}),
    ("onnx-activations", "lstm", {"activations": ("HardSigmoid", ("Elu", 0.7), "Softsign")}),
    ("gru", "gru", {}),
    ("reset_before", "gru", {"reset_after": False}),
    ("reset_before-nobias", "gru", {"reset_after": False, "bias": False}),
    ("reset_before-clip", "gru", {"reset_after": False, "clip": 0.4}),
    ("gru-clip", "gru", {"clip": 0.4}),
    ("gru-haste", "gru", {"layer_norm": "haste"}),
    ("gru-haste-clip", "gru", {"layer_norm": "haste", "clip": 0.9}),
    ("gru-haste-nobias", "gru", {"layer_norm": "haste", "bias": False}),
    ("gru-single", "gru", {"bias": "single"}),
    ("reset_before-single", "gru", {"reset_after": False, "bias": "single"}),
    ("gru-haste-single", "gru", {"layer_norm": "haste", "bias": "single"}),
    ("gru-onnx-activations", "gru", {"activations": (("HardSigmoid", 0.4, 0.4), "Softsign")}),
    ("augru", "augru", {}),
    ("augru-reset_before", "augru", {"reset_after": False}),
    ("augru-haste", "augru", {"layer_norm": "haste"}),
    ("augru-clip", "augru", {"clip": 0.4}),
    ("augru-single", "augru", {"bias": "single"}),
    ("mingru", "mingru", {}),
    ("mingru-nobias", "mingru", {"bias": False}),
    ("mingru-clip", "mingru", {"clip": 0.4}),
    ("minlstm", "minlstm", {}),
    ("minlstm-nobias", "minlstm", {"bias": False}),
    ("minlstm-clip", "minlstm", {"clip": 0.4}),
    ("slstm", "slstm", {}),
    ("slstm-exp", "slstm", {"forget_gate": "exp"}),
    ("slstm-nobias", "slstm", {"bias": False}),
    ("slstm-single", "slstm", {"bias": "single"}),
    ("slstm-clip", "slstm", {"clip": 0.4}),
    ("rnn", "rnn_tanh", {}),
    ("rnn-single", "rnn_tanh", {"bias": "single"}),
    ("rnn-clip", "rnn_tanh", {"clip": 0.5}),
    ("independent", "rnn_tanh", {"independent": True}),
    ("independent-single", "rnn_tanh", {"independent": True, "bias": "single"}),
    ("independent-relu-clip", "rnn_relu", {"independent": True, "clip": 0.7}),
]  # fmt: skip
# Each activation in each place: case i gives gate j the activation i + 7 j.
ACTIVATION_VARIANTS = [
    (f"rnn-{name_of(a)}", "rnn_tanh", {"nonlinearity": a}) for a in ACTIVATIONS
] + [
    (f"{cell}-activations{i}", cell, {"activations": {
        gate: ACTIVATIONS[(i + 7 * j) % len(ACTIVATIONS)] for j, gate in enumerate(gates)}})
    for cell, gates in GATES.items() for i in range(len(ACTIVATIONS))
]  # fmt: skip
# What all cells share: for each cell one variant of it. Masks are drawn in `forward`.
REGULARISED = {
    "dropout": {"dropout": 0.4},
    "variational": {"dropout": 0.4, "variational": True},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": 0.3},
    "dropconnect": {"dropconnect": 0.3},
}
REGULARISED_VARIANTS = [
    (f"{cell}-{name}", cell, options)
    for cell in ("lstm", "gru", "rnn_tanh", "slstm") for name, options in REGULARISED.items()
] + [
    (f"{cell}-{name}", cell, REGULARISED[name])
    for cell in ("mingru", "minlstm") for name in ("dropout", "variational", "zoneout")
] + [
    ("lstm-zoneout_cell", "lstm", {"zoneout_cell": 0.4}),
    ("lstm-zoneout-both-proj", "lstm", {"zoneout": 0.2, "zoneout_cell": 0.4, "proj_size": 3}),
    ("lstm-recurrent-proj", "lstm", {"recurrent_dropout": 0.4, "proj_size": 3}),
    ("lstm-zoneout-clips-peepholes", "lstm",
     {"zoneout": 0.2, "zoneout_cell": 0.4, "peepholes": True, "clip": 0.5, "cell_clip": 0.2}),
    ("lstm-haste-recurrent-dropconnect", "lstm",
     {"layer_norm": "haste", "recurrent_dropout": 0.3, "dropconnect": 0.3}),
    ("augru-recurrent-zoneout-dropconnect", "augru",
     {"recurrent_dropout": 0.3, "zoneout": 0.3, "dropconnect": 0.3}),
    ("reset_before-recurrent-dropconnect", "gru",
     {"reset_after": False, "recurrent_dropout": 0.3, "dropconnect": 0.3}),
    ("independent-recurrent-zoneout", "rnn_tanh",
     {"independent": True, "recurrent_dropout": 0.3, "zoneout": 0.3}),
]  # fmt: skip
TOPOLOGIES = {
    "both": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge_mode": "sum"},
    "mul": {"bidirectional": True, "merge_mode": "mul"},
    "ave": {"bidirectional": True, "merge_mode": "ave"},
    "backwards": {"go_backwards": True},
}
RETURNS = ("all", "last", "final", 1, 3, 9, "mean", "max")
EVERY_VARIANT = CELL_VARIANTS + ACTIVATION_VARIANTS + REGULARISED_VARIANTS


def named(variants):
    """For pytest.mark.parametrize(("cell", "options"), ...): arguments and ids."""
    return {"argvalues": [v[1:] for v in variants], "ids": [v[0] for v in variants]}


def drawn(network, options, steps, rows, seed=0):
    """Masks as a tape of the network would have them, drawn here."""
    rng, ways = np.random.default_rng(seed), len(network.directions)
    wide = 1 if network.merge_mode != "concat" else ways

    def dropped(name, *shape):
        keep = 1 - options[name]
        return (rng.random(shape) < keep) / keep

    masks = []
    for k, (hidden, width) in enumerate(zip(network.hidden, network.widths, strict=True)):
        own = {}
        if "dropconnect" in options:
            shape = network.shapes()[f"weight_hh_l{k}"]
            own["dropconnect"] = [dropped("dropconnect", *shape) for _ in range(ways)]
        if "recurrent_dropout" in options:
            own["recurrent"] = dropped("recurrent_dropout", ways, rows, width)
        for name, size in (("zoneout", width), ("zoneout_cell", hidden)):
            if name in options:
                own[name] = 1.0 * (rng.random((steps, rows, ways * size)) < options[name])
        if "dropout" in options and k + 1 < len(network.hidden):
            times = 1 if options.get("variational") else steps
            own["dropout"] = dropped("dropout", times, rows, wide * width)
        masks.append(own)
    return masks
