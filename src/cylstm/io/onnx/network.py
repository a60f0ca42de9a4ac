"""`from_onnx`: a model of ONNX that is called with a dict of inputs, or carries its state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from cylstm import checks
from cylstm.io.onnx import evaluators, reading
from cylstm.io.onnx.errors import OnnxError, named, package
from cylstm.io.onnx.line import Line
from cylstm.io.onnx.plan import Context, Plan
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.layers.recurrent import Recurrent
    from cylstm.layers.sequential import Sequential


class Value(NamedTuple):
    """An input or an output: its dtype, None if it is no array, and its shape.

    A size that may vary is its name in the file, or None where it has none; the shape is None where
    the file does not tell it.
    """

    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


class OnnxNetwork:
    """A model of ONNX whose recurrent nodes are layers of this library; made by `from_onnx`.

    Parameters
    ----------
    model : onnx.ModelProto
        Checked.
    evaluator : str
        "onnxruntime" or "reference": what runs all other nodes.
    max_bytes : int
        Most bytes of weights that are computed from others.

    Attributes
    ----------
    inputs, outputs : mapping of str to (dtype, shape)
        What a call takes and gives, in the file's order.
    layers : mapping of str to list of RNN, LSTM or GRU
        By the name of the recurrent node, or of its first output where it has none: one layer, or
        two where the directions have different activations; an empty list for a node whose weights
        are inputs.
    evaluator : str

    Raises
    ------
    OnnxError
        A node cannot be said here; named in the message.
    """

    def __init__(self, model: Any, evaluator: str, max_bytes: int) -> None:
        onnx = package()
        self.evaluator = evaluator
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception:  # types are then those of the values that come
            inferred = model
        context = Context(inferred, evaluator, max_bytes)
        constants = {tensor.name for tensor in inferred.graph.initializer}
        values = [value for value in inferred.graph.input if value.name not in constants]
        self.inputs = MappingProxyType({value.name: _value(value) for value in values})
        self.outputs = MappingProxyType({v.name: _value(v) for v in inferred.graph.output})
        self._plan = plan = Plan(inferred.graph, None, context)
        self._module: Sequential | OnnxError
        try:
            self._module = Line(inferred, plan).module()
        except OnnxError as error:
            self._module = error
        plan.forget()
        self.layers: Mapping[str, list[Recurrent]] = MappingProxyType(
            {n: [part.layer for part in node.parts or []] for n, node in context.nodes.items()}
        )

    @property
    def module(self) -> Sequential:
        """The network as a `Sequential`, if its graph is a line of modules.

        A line has one input and one output beside lengths, initial and final states: embeddings,
        recurrent nodes with what is needed around them, linear maps, norms and activations, and
        the choice of the last output, the final state, the mean or the maximum.

        Raises
        ------
        OnnxError
            It is none; the message names the node that is in the way.
        """
        if isinstance(self._module, OnnxError):
            raise OnnxError(str(self._module))
        return self._module

    def __repr__(self) -> str:
        """Show inputs, outputs and layers."""
        return (
            f"<OnnxNetwork from {', '.join(self.inputs)} to {', '.join(self.outputs)} with "
            f"{sum(map(len, self.layers.values()))} layers; the rest: {self.evaluator}>"
        )

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run the network.

        Parameters
        ----------
        feeds : mapping of str to array-like
            All inputs by name. Numbers are cast to the input's dtype within their kind: floats to
            floats, integers to integers.

        Returns
        -------
        dict of str to ndarray
            All outputs by name.

        Raises
        ------
        OnnxError
            An input does not fit; named in the message, with the node where that was seen.
        TypeError
            `feeds` is not a mapping, or an input is of another kind.
        """
        return self._plan.run(self._checked(feeds))

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Check inputs against what the file says of them."""
        if not isinstance(feeds, Mapping):
            raise TypeError(f"feeds: expected a mapping of inputs, got {type(feeds).__name__}")
        if set(feeds) != set(self.inputs):
            raise OnnxError(f"feeds: expected {list(self.inputs)}, got {list(feeds)}")
        return {name: _fitted(name, value, self.inputs[name]) for name, value in feeds.items()}


def _value(info: Any) -> Value:
    """Read a ValueInfoProto."""
    kind = info.type.tensor_type
    if not kind.elem_type:
        return Value(None, None)
    with named(f"model: type of {info.name!r}"):
        dtype = np.dtype(package().helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if not kind.HasField("shape"):
        return Value(dtype, None)
    return Value(dtype, tuple(_size(dim) for dim in kind.shape.dim))


def _size(dim: Any) -> int | str | None:
    return int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or None


def _fitted(name: str, value: Any, expected: Value) -> Any:
    """Cast an input, and check its shape."""
    if expected.dtype is None:
        return value
    found = checks.read(name, value)
    if found.dtype != expected.dtype:
        kinds = found.dtype.kind, expected.dtype.kind
        if kinds[0] != kinds[1] and not (found.dtype.kind in "iu" and kinds[1] in "iu"):
            raise TypeError(f"{name}: expected dtype {expected.dtype}, got {found.dtype}")
        found = found.astype(expected.dtype)
    sizes = expected.shape
    if sizes is not None and (
        len(sizes) != found.ndim
        or any(isinstance(n, int) and n != m for n, m in zip(sizes, found.shape, strict=True))
    ):
        raise OnnxError(f"{name}: expected shape {sizes}, got {found.shape}")
    return found


class OnnxStream:
    """A network whose state inputs are fed from its state outputs; made by `from_onnx`.

    Takes one call at a time.

    Parameters
    ----------
    network : OnnxNetwork
    pairs : mapping of str to str
        State inputs and the outputs that are their next values.

    Attributes
    ----------
    network : OnnxNetwork
    pairs : mapping of str to str
    state : dict of str to ndarray, or None
        State by the inputs' names; None before the first step, where it is zero. Assign to set it.

    Raises
    ------
    OnnxError
        There is no such input or output, or the two have different dtypes or shapes; the pairs that
        would fit are in the message.
    """

    def __init__(self, network: OnnxNetwork, pairs: Mapping[str, str]) -> None:
        if not isinstance(pairs, Mapping):
            raise TypeError(
                f"streaming: expected a mapping of state inputs to state outputs, got {pairs!r}"
            )
        self.network = network
        self.pairs = MappingProxyType(dict(pairs))
        possible = candidates(network)
        for given, made in self.pairs.items():
            if made not in possible.get(given, ()):
                raise OnnxError(
                    f"streaming: expected an input and an output of the same dtype and shape, got "
                    f"{given!r}: {made!r}; these would fit: {possible}"
                )
        if len(set(self.pairs.values())) < len(self.pairs):
            raise OnnxError(f"streaming: expected an output for each input, got {dict(pairs)}")
        self.reset()

    def __repr__(self) -> str:
        """Show the network and the pairs."""
        return f"<OnnxStream of {self.network!r}: {dict(self.pairs)}>"

    def reset(self, batch_size: int = 1) -> None:
        """Put the state back to zeros.

        Parameters
        ----------
        batch_size : int, default 1
            Size of the state's axes that the file leaves open, unless another input tells it by
            the same name.
        """
        self._rows = checks.size("batch_size", batch_size)
        self._state: dict[str, Array] | None = None

    @property
    def state(self) -> dict[str, Array] | None:
        """State by the inputs' names, in arrays of its own; None before the first step."""
        return None if self._state is None else {n: v.copy() for n, v in self._state.items()}

    @state.setter
    def state(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            self.reset(self._rows)
            return
        if set(state) != set(self.pairs):
            raise OnnxError(f"state: expected {list(self.pairs)}, got {list(state)}")
        inputs = self.network.inputs
        self._state = {n: np.array(_fitted(n, state[n], inputs[n])) for n in self.pairs}

    def step(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Run the network on the next piece of its input, and keep the state after it.

        Parameters
        ----------
        feeds : mapping of str to array-like
            All inputs that are no state, by name.

        Returns
        -------
        dict of str to ndarray
            All outputs that are no state.

        Raises
        ------
        OnnxError, TypeError
            An input does not fit; the state is as before.
        """
        expected = [name for name in self.network.inputs if name not in self.pairs]
        if not isinstance(feeds, Mapping) or set(feeds) != set(expected):
            got = list(feeds) if isinstance(feeds, Mapping) else type(feeds).__name__
            raise OnnxError(f"feeds: expected {expected}, got {got}")
        state = self._zeros(feeds) if self._state is None else self._state
        found = self.network({**feeds, **state})
        self._state = {given: found.pop(made) for given, made in self.pairs.items()}
        return found

    def check(self, feeds: Mapping[str, Any], axis: int = 0, tolerance: float = 1e-4) -> None:
        """Compare steps one at a time with one step on the whole, both from the initial state.

        Where the file does not tell states apart, as h and c of one shape, this does.

        Parameters
        ----------
        feeds : mapping of str to array-like
            All inputs that are no state, of at least 2 steps.
        axis : int, default 0
            The axis of time.
        tolerance : float, default 1e-4
            Largest difference, of outputs as long as the whole, of the last ones of others, and of
            final states.

        Raises
        ------
        OnnxError
            Something differs, which the message names: pairs are wrong, the network looks ahead,
            or needs more of the past than its state. The stream's own state is as before.
        """
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        steps = max((v.shape[axis] for v in arrays.values() if v.ndim > axis), default=0)
        if steps < 2:
            raise OnnxError(f"feeds: expected at least 2 steps along axis {axis}, got {steps}")
        before = self._state
        try:
            self._state = None
            whole = self.step(arrays) | (self.state or {})
            self._state = None
            parts = [self.step({n: _at(v, t, axis, steps) for n, v in arrays.items()})
                     for t in range(steps)]  # fmt: skip
            found = {
                name: _joined([p[name] for p in parts], whole[name], axis) for name in parts[0]
            }
            found |= self.state or {}
        finally:
            self._state = before
        for name, value in whole.items():
            difference = np.abs(found[name] - value).max(initial=0)
            if not difference <= tolerance:
                raise OnnxError(
                    f"streaming: expected {name!r} step by step as on the whole with the pairs "
                    f"{dict(self.pairs)}, got a difference of {difference:.2g}"
                )

    def _zeros(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        sizes: dict[str, int] = {}
        for name, value in feeds.items():
            known = zip(self.network.inputs[name].shape or (), np.shape(value), strict=False)
            sizes |= {n: size for n, size in known if isinstance(n, str)}
        state = {}
        for name in self.pairs:
            dtype, shape = self.network.inputs[name]
            if shape is None or dtype is None:
                raise OnnxError(f"streaming: expected a shape of {name!r} in the file, got none: "
                                "set state")  # fmt: skip
            whole = [n if isinstance(n, int) else sizes.get(n or "", self._rows) for n in shape]
            state[name] = np.zeros(whole, dtype)
        return state


def _at(value: Array, step: int, axis: int, steps: int) -> Array:
    """Take one step of an input; what has no axis of time goes as it is."""
    timed = value.ndim > axis and value.shape[axis] == steps
    return value.take([step], axis) if timed else value


def _joined(parts: list[Array], whole: Array, axis: int) -> Array:
    """Join the outputs of all steps, or take the last where the whole has no axis of time."""
    if parts[0].ndim > axis and whole.shape[axis] == len(parts):
        return np.concatenate(parts, axis)
    return parts[-1]


def candidates(network: OnnxNetwork) -> dict[str, list[str]]:
    """Find inputs that may be states, and the outputs of the same dtype and shape."""
    return {
        name: fitting
        for name, value in network.inputs.items()
        if value.dtype is not None
        and (fitting := [n for n, other in network.outputs.items() if _alike(value, other)])
    }


def _alike(a: Value, b: Value) -> bool:
    """Whether two values can be the same: unknown sizes fit all."""
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        n == m or not (isinstance(n, int) and isinstance(m, int))
        for n, m in zip(a.shape, b.shape, strict=True)
    )


@overload
def from_onnx(
    model: Any, *, streaming: None = None, evaluator: str | None = None, max_bytes: int = 2**31
) -> OnnxNetwork: ...
@overload
def from_onnx(
    model: Any,
    *,
    streaming: Mapping[str, str],
    evaluator: str | None = None,
    max_bytes: int = 2**31,
) -> OnnxStream: ...


def from_onnx(
    model: str | os.PathLike[str] | bytes | Any,
    *,
    streaming: Mapping[str, str] | None = None,
    evaluator: str | None = None,
    max_bytes: int = 2**31,
) -> OnnxNetwork | OnnxStream:
    """Load a model of ONNX: its LSTM, GRU and RNN nodes run here, the rest on an evaluator.

    All attributes and inputs of the three operators are honoured: directions with activations of
    their own, `layout`, `activation_alpha` and `activation_beta`, `clip`, `input_forget`,
    `linear_before_reset`, lengths, initial states and peepholes; defaults are those of the
    specification. A row of length 0 passes its state. ONNX Runtime's `DynamicQuantizeLSTM` is read
    as the floats that its weights of 8 bits stand for, and runs in float32.

    Needs the `onnx` package: ``pip install "cylstm[onnx]"``.

    Parameters
    ----------
    model : str, path, bytes or onnx.ModelProto
        The model. Data in files of their own must be in the model's folder.
    streaming : mapping of str to str, optional
        State inputs and the outputs that are their next values, as ``{"h0": "hn", "c0": "cn"}``.
        Then what comes back carries the state from step to step.
    evaluator : {"onnxruntime", "reference"}, optional
        What runs all other nodes: ONNX Runtime, or `onnx.reference`, which is slow and needs
        nothing more. Default: ONNX Runtime where it is installed.
    max_bytes : int, default 2**31
        Most bytes of the file and of the data beside it.

    Returns
    -------
    OnnxNetwork or OnnxStream
        To be called with a dict of inputs by name, it gives a dict of outputs; its `layers` are
        the recurrent layers by node. With `streaming` it has `step`, which takes and gives what
        is no state, `reset` and `state`.

    Raises
    ------
    OnnxError
        A ValueError: the file is damaged or too large, or a node says what no layer does; named
        in the message.
    ImportError
        The `onnx` package is not installed.
    OSError
        The file cannot be read.
    TypeError
        An argument is of the wrong type.
    """
    name = evaluators.chosen(evaluator)
    network = OnnxNetwork(reading.read(model, max_bytes), name, max_bytes)
    return network if streaming is None else OnnxStream(network, streaming)
