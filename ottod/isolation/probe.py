"""What this host can give: every layer's probe, and every layer's proof. Blocks; for a thread."""

from __future__ import annotations

import os

from ottod.isolation.enclosure import Enclosures
from ottod.isolation.layers import Layer, LayerReport
from ottod.isolation.memory_layer import MemoryLayer
from ottod.isolation.process_layer import ProcessLayer
from ottod.isolation.tool_layers import tool_layers


def host_layers(enclosures: Enclosures) -> tuple[Layer, ...]:
    """All layers, the innermost first."""
    return (ProcessLayer(), MemoryLayer(enclosures), *tool_layers())


def probe(enclosures: Enclosures | None = None) -> dict[str, str]:
    """Layer → one line that begins with yes, partly or no. `enclosures` are the daemon's own, if it has them."""
    found = Enclosures.find(environ=os.environ) if enclosures is None else enclosures
    return {layer.name: str(layer.probe()) for layer in host_layers(found)}


def prove(enclosures: Enclosures | None = None) -> list[LayerReport]:
    """The same by trying to break each layer, for `ottoctl doctor`. Takes some seconds."""
    if enclosures is not None:
        return [layer.prove() for layer in host_layers(enclosures)]
    found = Enclosures.find(environ=os.environ)
    found.settle()
    try:
        return [layer.prove() for layer in host_layers(found)]
    finally:
        found.close()
