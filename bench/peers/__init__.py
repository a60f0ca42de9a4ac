"""The engines that are compared: to add one, write a module with an `Engine` and list it here."""

from __future__ import annotations

import importlib
import importlib.util

from peers.base import Engine

# Engine name -> (package it needs, module here).
MODULES = {
    "torch": ("torch", "peers.pytorch"),
    "onnxruntime": ("onnxruntime", "peers.ort"),
    "openvino": ("openvino", "peers.ov"),
    "jax": ("jax", "peers.xla"),
    "cylstm": ("cylstm", "peers.own"),
}


def installed() -> list[str]:
    """Names of the engines this environment has."""
    return [n for n, (package, _) in MODULES.items() if importlib.util.find_spec(package)]


def load(names: list[str]) -> dict[str, type[Engine]]:
    """Import the classes of those of the named engines that are installed."""
    here = installed()
    return {n: importlib.import_module(MODULES[n][1]).PEER for n in names if n in here}
