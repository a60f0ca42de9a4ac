"""What LSTM and GRU share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cylstm.engine.cells import Activation
from cylstm.layers import activations as known
from cylstm.layers.recurrent import Recurrent

if TYPE_CHECKING:
    pass


class Gated(Recurrent):
    """What LSTM and GRU share: an activation for each gate."""

    @property
    def activations(self) -> Mapping[str, Any]:
        """Activation by gate: its name, or a tuple of the name and numbers; read-only."""
        return MappingProxyType({g: known.public(a) for g, a in self._activations.items()})

    def _set_activations(
        self, given: Any, defaults: dict[str, Activation], groups: list[list[str]]
    ) -> None:
        self._usual = defaults
        self._activations = found = known.of_gates(given, defaults, groups)
        self._other_activations = {
            gate: known.public(a) for gate, a in found.items() if a != defaults[gate]
        }

    def _argument(self, name: str) -> Any:
        """Show the activations that are not the defaults."""
        if name == "activations":
            return self._other_activations or None
        return super()._argument(name)
