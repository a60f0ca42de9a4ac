"""GRU with attentional update gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.engine.states import State
from cylstm.engine.tape import Tape
from cylstm.layers.gru import GRU
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.module import Rng


class AUGRU(GRU):
    """GRU with attentional update gate: each step comes with a number that says how much it counts.

    Gates r, z, n are stacked in this order. With a_t from the call's `attention`, as in oneDNN::

        r, z = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)         each with its own rows
        n    = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))
        h_t  = (1 - u) n + u h_{t-1},  u = (1 - a_t) z

    Where a_t is 0 this is a GRU; where it is 1 nothing of h_{t-1} is kept. With `bias="single"`
    there is no b_hh, and so no b_hn inside the brackets. The call and `forward` take `attention`,
    `trace` as well; `backward` returns its gradient as a third value.

    Parameters
    ----------
    input_size : int
        Size I of the input, at least 1.
    hidden_size : int or tuple of int
        Size H of the hidden state, at least 1; a tuple has one for each layer.
    num_layers : int, default 1
        Stacked layers, each reading the outputs of the one below. The length of `hidden_size` if
        that is a tuple.
    bias : bool or "single", default True
        True: two vectors b_ih and b_hh per direction, as in PyTorch and cuDNN. "single": b_ih
        alone, as in Keras, DyNet and madmom. False: none.
    batch_first : bool, default False
        Whether inputs and outputs are (B, T, .) instead of (T, B, .). States never are.
    dropout : float, default 0.0
        Probability in [0, 1] with which `forward` zeroes an output of every layer but the last;
        what is left is scaled by 1 / (1 - p). With one layer it does nothing, and a warning says
        so.
    bidirectional : bool, default False
        Also read from the last step to the first, with weights of its own.
    reset_after : bool, default True
        False: the reset gate acts before the product, as in Cho et al. (2014) and ONNX's default:
        n = tanh(W_n x_t + b_in + b_hn + U_n (r h_{t-1})).
    layer_norm : "haste", optional
        LN(W x) and LN(U h), each over all gates, in place of W x and U h, with weights
        weight_ln_ih, weight_ln_hh (3 H,); biases are added after (Ba et al. 2016). Default none.
        Does not go with `reset_after=False`.
    activations : dict or sequence, optional
        By gate ("reset", "update", "candidate"), or ONNX's two: of both gates, of the candidate.
        Each is a name of `cylstm.activations.KNOWN` or a tuple (name, alpha) or (name, alpha,
        beta).
    variational : bool, default False
        Whether `dropout` drops the same outputs at every step (Gal and Ghahramani 2016).
    recurrent_dropout : float, default 0.0
        Probability in [0, 1) with which `forward` hides a unit of h from the recurrent weights,
        the same at every step (Gal and Ghahramani 2016); what is left is scaled by 1 / (1 - p).
    zoneout : float, default 0.0
        Probability in [0, 1) with which `forward` keeps a unit's h_{t-1} instead of its h_t
        (Krueger et al. 2017); a plain call mixes both by their probabilities.
    dropconnect : float, default 0.0
        Probability in [0, 1) with which `forward` drops an element of weight_hh, the same at
        every step (Wan et al. 2013; Merity et al. 2018); what is left is scaled by 1 / (1 - p).
    clip : float, optional
        Bound of every gate's pre-activation, after its bias; ONNX's `clip`. Default none.
    merge_mode : {"concat", "sum", "mul", "ave", "separate"}, default "concat"
        What is made of both directions' outputs, as in Keras; "separate" gives a tuple, and needs
        one layer.
    go_backwards : bool, default False
        Read from a row's last step to its first. Outputs are at their original time positions;
        Keras' are in the order read.
    learn_initial_state : bool, default False
        Whether the state that rows start from where none is given, and after `reset`, is trained:
        parameters `initial_h_l0` (P,), for an LSTM `initial_c_l0` (H,) as well, and so on for each
        layer and direction, 0 at first. Otherwise it is 0.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters, states and outputs; other inputs are cast to it.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial weights, U(-1/sqrt(H), 1/sqrt(H)) as PyTorch's, and of the masks that
        `forward` draws. With an int the same numbers come in every run; with None others in every
        run, copy and forked process.

    Attributes
    ----------
    params : mapping of str to ndarray
        Read-only views of the parameters, by PyTorch's names; `assign` changes them.
    flat_params : ndarray of shape (N,)
        The same as one vector.
    grads : mapping of str to ndarray
        Writable views of the gradients, to which `backward` adds.
    flat_grads : ndarray of shape (N,)
        The same as one vector.
    frozen : frozenset of str
        Parameters that optimisers leave alone; see `freeze`.

    Every argument but `rng` is also a read-only attribute: options are fixed at construction.

    Raises
    ------
    TypeError
        An argument is of the wrong type; named in the message.
    ValueError
        An argument is out of range, or does not go with another; both are named in the message.
    MemoryError
        There is no room for the parameters.

    References
    ----------
    oneDNN, "RNN primitive", sections "AUGRU" and "Linear-before-reset AUGRU".
    Zhou et al., "Deep interest evolution network for click-through rate prediction", AAAI (2019):
    the idea; there a_t scales how much is taken of n.
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP (2014).
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450 (2016).
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    Wan et al., "Regularization of neural networks using DropConnect", ICML (2013).
    Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR (2018).
    """

    _kind = "augru"
    _reads_x_only = False

    def __call__(  # type: ignore[override]  # no call without attention
        self,
        x: Any,
        state: State = None,
        *,
        attention: Any,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        return_: str | int = "all",
        out: Array | None = None,
        state_out: State = None,
        num_threads: int | None = None,
    ) -> tuple[Any, State]:
        """Run the layer for inference: no tape, nothing dropped, zoneout's expectation.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's; CPU tensors of PyTorch and JAX are
            arrays here. Or a list of arrays (T_i, I), one for each row: no padding, no sorting;
            (T_i, 1, I) and nested lists count as well. Nested lists of numbers that all have the
            same shape are one array.
        state : array-like of shape (num_layers * num_directions, B, H), optional
            Initial h, without B if unbatched. One row, B = 1, stands for all. Default: zeros, or
            what `learn_initial_state` has learned. If layers differ in size, a tuple of one
            (num_directions, B, size) per layer.
        attention : array-like of shape (T, B), (B, T) or (T,), as x without its last axis
            a_t of each step and row, real numbers, usually from 0 to 1. All layers and directions
            get the same. A list of arrays (T_i,) for a list.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`. Others are
            passed over: the state stays as it is, the output is 0 and x is not looked at.
        reset : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: where a new episode begins. Before such a step, read or
            not, the state is the default initial one again, and gradients stop: the same bits as
            separate calls on the episodes. `state` is the one before the first step, so it does
            not count where that is a reset. A direction that reads backwards is cut at the same
            places: it starts from `state` after the last step and ends with the first episode. A
            list of arrays (T_i,) for a list.
        return_ : {"all", "final", "last", "mean", "max"} or int, default "all"
            Which outputs: of all steps; each direction's final hidden state, side by side or
            merged by `merge_mode` (Keras' `return_sequences=False`); at each row's last step that
            is read (``y`` there, so what the reverse direction has read is that step alone);
            every k-th, ``y[k-1::k]``; the mean or maximum over steps that are read, of each
            direction before merging. Of a row without a step that is read it is 0, and "final"
            its initial h. Only what is returned is made. With `reset` "all", "final" or "last".
        out : ndarray, optional
            Where to write `y`. It may share memory with `x` and `state`.
        state_out : ndarray, optional
            Where to write the final state, shaped as it. It may be `state` itself, and share
            memory with `x`, but not with `out`.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray of shape (T, B, num_directions * H), laid out as `x`
            Of (T // k, B, ...) for every k-th output, (B, ...) for one per row. A list for a
            list. For `merge_mode` "separate" a tuple (forward, reverse).
        state : ndarray
            Final h, shaped as the initial one.

        Raises
        ------
        ValueError, TypeError
            An argument's shape, dtype or value does not fit; named in the message.
        """
        return self._run(
            x, state, lengths, mask, reset, return_, out, num_threads, state_out=state_out,
            attention=attention,
        )[:2]  # fmt: skip

    def forward(  # type: ignore[override]  # no call without attention
        self,
        x: Any,
        state: State = None,
        *,
        attention: Any,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        return_: str | int = "all",
        checkpoint: int | str | None = None,
        rng: Rng = None,
        out: Array | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, State, Tape]:
        """Run the layer for training: with dropout, zoneout and the like, keeping a tape.

        The output has the same bits as that of a plain call, unless something is random. The tape
        refers to `x` without copying it: do not overwrite it before `backward`.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's; CPU tensors of PyTorch and JAX are
            arrays here. Or a list of arrays (T_i, I), one for each row: no padding, no sorting;
            (T_i, 1, I) and nested lists count as well. Nested lists of numbers that all have the
            same shape are one array.
        state : array-like of shape (num_layers * num_directions, B, H), optional
            Initial h, without B if unbatched. One row, B = 1, stands for all. Default: zeros, or
            what `learn_initial_state` has learned. If layers differ in size, a tuple of one
            (num_directions, B, size) per layer.
        attention : array-like of shape (T, B), (B, T) or (T,), as x without its last axis
            a_t of each step and row, real numbers, usually from 0 to 1. All layers and directions
            get the same. A list of arrays (T_i,) for a list.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`. Others are
            passed over: the state stays as it is, the output is 0 and x is not looked at.
        reset : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: where a new episode begins. Before such a step, read or
            not, the state is the default initial one again, and gradients stop: the same bits as
            separate calls on the episodes. `state` is the one before the first step, so it does
            not count where that is a reset. A direction that reads backwards is cut at the same
            places: it starts from `state` after the last step and ends with the first episode. A
            list of arrays (T_i,) for a list.
        return_ : {"all", "final", "last", "mean", "max"} or int, default "all"
            Which outputs: of all steps; each direction's final hidden state, side by side or
            merged by `merge_mode` (Keras' `return_sequences=False`); at each row's last step that
            is read (``y`` there, so what the reverse direction has read is that step alone);
            every k-th, ``y[k-1::k]``; the mean or maximum over steps that are read, of each
            direction before merging. Of a row without a step that is read it is 0, and "final"
            its initial h. Only what is returned is made. With `reset` "all", "final" or "last".
        out : ndarray, optional
            Where to write `y`; it must not share memory with `x`.
        checkpoint : int or "sqrt", optional
            Keep the state every so many steps, or sqrt(T), instead of the tape, which `backward`
            then makes again piece by piece (Chen et al. 2016): the same bits for one more
            forward pass. Rounded up to a multiple of the kernels' chunk, ceil(256 / B) steps or
            so. See `workspace_nbytes` for what it saves.
        rng : int or numpy.random.Generator, optional
            Source of this call's masks; the same int gives the same ones. Default the layer's.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray of shape (T, B, num_directions * H), laid out as `x`
            Of (T // k, B, ...) for every k-th output, (B, ...) for one per row. A list for a
            list. For `merge_mode` "separate" a tuple (forward, reverse).
        state : ndarray
            Final h, shaped as the initial one.
        tape : Tape
            For `backward`. It remembers the weights, so they may change in between.

        Raises
        ------
        ValueError, TypeError
            An argument's shape, dtype or value does not fit; named in the message.
        """
        checkpoint = self._interval(checkpoint)
        generator = self._rng if rng is None else checks.generator("rng", rng)
        return self._run(
            x, state, lengths, mask, reset, return_, out, num_threads, True, checkpoint, generator,
            attention=attention,
        )  # fmt: skip

    def trace(  # type: ignore[override]  # no call without attention
        self,
        x: Any,
        state: State = None,
        *,
        attention: Any,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
    ) -> dict[str, dict[str, Array]]:
        """Run the layer for inference and return what went on inside.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's; CPU tensors of PyTorch and JAX are
            arrays here.
        state : array-like of shape (num_layers * num_directions, B, H), optional
            Initial h, without B if unbatched. One row, B = 1, stands for all. Default: zeros, or
            what `learn_initial_state` has learned. If layers differ in size, a tuple of one
            (num_directions, B, size) per layer.
        attention : array-like of shape (T, B), (B, T) or (T,), as x without its last axis
            a_t of each step and row, real numbers, usually from 0 to 1. All layers and directions
            get the same. A list of arrays (T_i,) for a list.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`. Others are
            passed over: the state stays as it is, the output is 0 and x is not looked at.
        reset : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: where a new episode begins. Before such a step, read or
            not, the state is the default initial one again, and gradients stop: the same bits as
            separate calls on the episodes. `state` is the one before the first step, so it does
            not count where that is a reset. A direction that reads backwards is cut at the same
            places: it starts from `state` after the last step and ends with the first episode.

        Returns
        -------
        dict of str to dict of str to ndarray
            For each layer and direction ("l0", "l0_reverse", "l1", ...), arrays of shape
            (T, B, H), laid out as `x`, at original time positions, zero at steps that are not
            read: "reset", "update" (z, before it is scaled by 1 - a_t) and "candidate", their
            pre-activations, before any clip, as "<gate>_preactivation", and "hidden".
        """
        return self._traced(x, state, lengths, mask, reset, attention)

    def backward(
        self,
        tape: Tape,
        dy: Any,
        dstate: State = None,
        *,
        clip_step: float | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, State, Any]:
        """Propagate gradients back through one `forward`, adding to `grads`.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`.
        dy : array-like shaped as y, or None
            Gradient of the output; None is zeros. Ignored at steps that were not read.
        dstate : array-like, optional
            Gradient of the final state, shaped as it; default zeros.
        clip_step : float, optional
            Bound of the gradient of every gate's pre-activation at every step, as Graves (2013)
            did against exploding gradients. Default none: the gradient is exact.
        num_threads : int, optional
            Most threads to use; never changes a bit of the result.

        Returns
        -------
        dx : ndarray shaped as x
            Zero at steps that were not read. A list for a list.
        dstate : ndarray
            Gradient of the initial state, shaped as it: of one row if one was given for all.
        dattention : ndarray shaped as `attention`
            Gradient of the attention, summed over all layers and directions. Zero at steps that
            were not read. A list for a list.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; `grads` is unchanged then.

        Notes
        -----
        Backpropagation through time (Werbos 1990). Where the maximum over time was returned, its
        gradient goes to the step that reached it, the one read last if there were several.
        """
        return self._backward(tape, dy, dstate, clip_step, num_threads)
