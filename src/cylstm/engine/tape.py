"""What `forward` of a recurrent layer keeps for `backward`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.engine import masks, states
    from cylstm.engine.batches import Batch
    from cylstm.engine.states import State
    from cylstm.kernels import sequence
    from cylstm.layers.recurrent import Recurrent


#: What `trace` calls the states, in their order.
TRACED = ("hidden", "cell", "normaliser", "stabiliser")


class Tape(NamedTuple):
    """What one `forward` keeps for `backward`. Opaque; may be used any number of times."""

    layer: Recurrent
    batch: Batch
    calls: list[sequence.Call]
    #: Random masks of each layer, by name.
    masks: list[masks.Masks]
    #: Outputs of both directions of each layer, where backward needs them.
    both: list[Array | None]
    #: Rows that each part of the initial state was given with.
    given: states.Given

    @classmethod
    def plain(
        cls, layer: Recurrent, batch: Batch, calls: list[sequence.Call], state: State
    ) -> Tape:
        """Make one of calls without random masks, each part of whose state has all rows."""
        given = layer._no_state
        if state is not None:
            parts = state if isinstance(state, tuple) else (state,)
            given = [tuple([None if part is None else batch.rows for part in parts])]
            given *= layer.num_layers
        return cls(layer, batch, calls, layer._no_masks, layer._no_outputs, given)

    def __repr__(self) -> str:
        """Show the layer and the size of the call, not what is kept."""
        return f"<tape of {self.layer!r}: {self.batch.steps} steps of {self.batch.rows} rows>"

    def __reduce__(self) -> Any:
        """Say why a tape cannot be pickled or copied."""
        raise TypeError(
            "a tape cannot be pickled or copied: it is memory of the kernels; "
            "call forward again where it is needed"
        )

    def recorded(self, index: int) -> dict[str, Array]:
        """Everything of one direction of one layer, by name."""
        layer, batch = self.layer, self.batch
        call, direction = self.calls[index // layer.num_directions], index % layer.num_directions
        slots, before, states, time, row = call.recorded(direction)
        named: dict[str, Array] = {}
        for name, (slot, _) in layer._slots().items():
            if name in layer.gates:
                named[name] = slots[:, slot]
                named[f"{name}_preactivation"] = slots[:, before + slot]
        if layer._cell.kind == "lstm_coupled":
            named["forget"] = 1 - named["input"]
        named |= dict(zip(TRACED, states, strict=False))
        for name, entries in named.items():
            full = np.zeros((batch.steps, batch.rows, entries.shape[1]), layer.dtype)
            full[time, row] = entries
            named[name] = batch.outward(full)
        return named
