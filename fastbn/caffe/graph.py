"""Which layers a net has in a phase, and which layer reads a layer's result."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from fastbn.caffe.checks import PHASES
from fastbn.caffe.files import text


@dataclass(eq=False)
class Node:
    """A layer that is kept: its index in the file, its message, and the nodes that read its first top."""

    index: int
    layer: Any
    readers: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The layer's name."""
        return text(self.layer.name)

    @property
    def type(self) -> str:
        """The layer's type."""
        return text(self.layer.type)

    @property
    def only_reader(self) -> Node | None:
        """The layer that reads the result, if it alone does so, with one bottom."""
        alone = len(self.readers) == 1 and len(self.readers[0].layer.bottom) == 1
        return self.readers[0] if alone else None


def nodes(definition: Any, phase: str) -> list[Node]:
    """The layers of a phase in order, linked: a blob's name means what the last layer before wrote to it."""
    writer: dict[bytes, Node] = {}
    found = []
    for index, layer in enumerate(definition.layer):
        if not _is_kept(layer, definition.state, phase):
            continue
        node = Node(index, layer)
        for bottom in layer.bottom:
            if bottom in writer:
                writer[bottom].readers.append(node)
        for place, top in enumerate(layer.top):
            if place == 0:
                writer[top] = node
            else:
                writer.pop(top, None)
        found.append(node)
    return found


def _is_kept(layer: Any, state: Any, phase: str) -> bool:
    """Caffe's rules: with include, one of them must be met; without, no exclude may be met."""
    if len(layer.include) and len(layer.exclude):
        raise ValueError(f"layer {text(layer.name)!r}: expected include or exclude rules, got both")
    if len(layer.include):
        return any(_is_met(rule, state, phase) for rule in layer.include)
    return not any(_is_met(rule, state, phase) for rule in layer.exclude)


def _is_met(rule: Any, state: Any, phase: str) -> bool:
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or PHASES[rule.phase] == phase)
        and (not rule.HasField("min_level") or rule.min_level <= state.level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )


def by_name(layers: Any) -> dict[bytes, list[int]]:
    """Indices of layers by name."""
    found = defaultdict(list)
    for index, layer in enumerate(layers):
        found[layer.name].append(index)
    return found
