"""Which token prefixes of a set of texts are read once, and in which batches. Importable without torch.

The distinct texts, sorted, form a trie; each inner node is a prefix that several of them share. Reading it
once costs one more forward pass and saves its tokens in all texts but one. Two levels of sharing are planned, since
each level is one more forward pass:

- a trunk is shared by all batches of a block (the few-shot examples of a subject), read once as one row;
- a stem is shared by some rows of one batch (the question that four answers follow); a batch's stems are read together.

Costs are counted in tokens that are read; what a forward pass costs beside its tokens is given in tokens too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

# Stems of a batch differ in length and are filled up; a trunk is not, and its rows are sorted by length.
_PADDING = 1.05


class Text(NamedTuple):
    """A distinct sequence of tokens."""

    tokens: Tokens
    """What the model reads."""
    first: int
    """The first position whose logits are wanted; a shared prefix ends here at the latest."""


class Unit(NamedTuple):
    """Texts of one batch that share a stem, or one text alone."""

    depth: int
    """Where the stem ends, counted from the beginning of the text; that of the trunk where there is no stem."""
    texts: tuple[int, ...]
    """Their positions."""


class Block(NamedTuple):
    """Units that share a trunk."""

    depth: int
    """Length of the trunk, 0 without one."""
    units: tuple[Unit, ...]
    """What shares it."""


class PrefixBatch(NamedTuple):
    """Rows that are read together."""

    trunk: int
    """Length of the prefix that all rows share and that has been read before."""
    units: tuple[Unit, ...]
    """What is read; either all have a stem or none has."""

    @property
    def texts(self) -> tuple[int, ...]:
        """The texts, one row each."""
        return tuple(text for unit in self.units for text in unit.texts)

    @property
    def has_stems(self) -> bool:
        """Whether the units' stems are to be read first."""
        return self.units[0].depth > self.trunk


@dataclass
class _Node:
    """A node of the trie: the texts from `low` to `high` in sorted order share `depth` tokens."""

    depth: int
    low: int = 0
    high: int = 0
    first: int = 0
    tokens: int = 0  # of all its texts together
    cost: float = 0.0  # of the cheapest plan for its texts
    reading: str = "apart"  # "trunk", "stem" or "apart"
    children: list[_Node] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.high - self.low


def plan(texts: Sequence[Text], *, rows: int, pass_cost: float) -> list[Block]:
    """Decide what is read once.

    Args:
        texts: distinct sequences, in any order.
        rows: of a batch.
        pass_cost: what a forward pass costs beside its tokens, in tokens.

    Returns:
        Blocks that hold every text once; the one without a trunk, if any, comes last.
    """
    if not texts:
        return []
    order = sorted(range(len(texts)), key=lambda text: texts[text].tokens.astype(">i4").tobytes())
    root = _trie([texts[text] for text in order], rows, pass_cost)
    blocks, alone, pending = [], [], [root]
    while pending:
        node = pending.pop()
        if node.reading == "trunk":
            units = _units(node, order, node.depth, rows, pass_cost)
            blocks.append(Block(node.depth, tuple(units)))
        elif node.reading == "stem" or not node.children:
            alone.append(_unit(node, order, 0))
        else:
            pending += node.children
    return [*blocks, Block(0, tuple(alone))] if alone else blocks


def batches(block: Block, texts: Sequence[Text], *, rows: int, pass_cost: float, scored: int) -> Iterator[PrefixBatch]:
    """Cut a block into batches, long texts first, so that padding and further passes together cost least.

    Args:
        block: of `plan`.
        texts: as given to `plan`.
        rows: at most so many in a batch.
        pass_cost: as given to `plan`.
        scored: at most so many positions with logits in a batch, unless one unit alone has more.
    """
    sizes = {unit: _size(unit, texts, block.depth) for unit in block.units}
    with_stem = [unit for unit in block.units if unit.depth > block.depth]
    without = [unit for unit in block.units if unit.depth <= block.depth]
    for units in (with_stem, without):
        units.sort(key=lambda unit: (sizes[unit].stem, sizes[unit].tail), reverse=True)
        starts = _cuts([sizes[unit] for unit in units], rows, pass_cost, scored)
        for start, end in pairwise([*starts, len(units)]):
            yield PrefixBatch(block.depth, tuple(units[start:end]))


class _PassSize(NamedTuple):
    """Of a unit: tokens of its stem and of its longest tail, rows, positions with logits."""

    stem: int
    tail: int
    rows: int
    scored: int


def _size(unit: Unit, texts: Sequence[Text], trunk: int) -> _PassSize:
    lengths = [len(texts[text].tokens) for text in unit.texts]
    scored = sum(length - texts[text].first for length, text in zip(lengths, unit.texts, strict=True))
    return _PassSize(unit.depth - trunk, max(lengths) - unit.depth, len(unit.texts), scored)


def _cuts(sizes: Sequence[_PassSize], rows: int, pass_cost: float, scored: int) -> list[int]:
    """Where the batches of sorted units begin: the cheapest of all ways to cut, found from the left."""
    cheapest, begins = [0.0], [0]  # of the first n units: their cost, and where the last batch begins
    for end in range(1, len(sizes) + 1):
        best, begin = float("inf"), end - 1
        tail = held_rows = held_scored = 0
        for start in range(end - 1, -1, -1):
            size = sizes[start]
            tail, held_rows, held_scored = max(tail, size.tail), held_rows + size.rows, held_scored + size.scored
            if start < end - 1 and (held_rows > rows or held_scored > scored):
                break
            # The first stem is the longest.
            cost = cheapest[start] + tail * held_rows + pass_cost
            if size.stem:
                cost += size.stem * (end - start) + pass_cost
            if cost < best:
                best, begin = cost, start
        cheapest.append(best)
        begins.append(begin)
    starts: list[int] = []
    end = len(sizes)
    while end:
        end = begins[end]
        starts.insert(0, end)
    return starts


def _trie(texts: Sequence[Text], rows: int, pass_cost: float) -> _Node:
    """The inner nodes and leaves over sorted texts, closed from the left and from the bottom up."""
    stack = [_Node(0)]
    node = _leaf(texts, 0, rows, pass_cost)
    for index in range(1, len(texts)):
        shared = _shared(texts[index - 1].tokens, texts[index].tokens)
        while stack[-1].depth > shared:
            stack[-1].children.append(node)
            node = _close(stack.pop(), rows, pass_cost)
        if stack[-1].depth < shared:
            stack.append(_Node(shared))
        stack[-1].children.append(node)
        node = _leaf(texts, index, rows, pass_cost)
    while stack:
        stack[-1].children.append(node)
        node = _close(stack.pop(), rows, pass_cost)
    return node


def _leaf(texts: Sequence[Text], index: int, rows: int, pass_cost: float) -> _Node:
    size = len(texts[index].tokens)
    return _Node(size, index, index + 1, texts[index].first, size, size + pass_cost / rows)


def _close(node: _Node, rows: int, pass_cost: float) -> _Node:
    """Fill in a node whose children are complete, and choose how its texts are read."""
    node.low, node.high = node.children[0].low, node.children[-1].high
    node.first = min(child.first for child in node.children)
    node.tokens = sum(child.tokens for child in node.children)
    # Logits are taken from the last pass only, so what is read before ends before the first of them.
    node.depth = min(node.depth, node.first)
    node.cost = sum(child.cost for child in node.children)
    if node.count == 1 or node.depth == 0:
        return node
    read = node.tokens - (node.count - 1) * node.depth
    ways = {"trunk": read + pass_cost * (1 + -(-node.count // rows))}
    if node.count <= rows:
        ways["stem"] = read * _PADDING + pass_cost * 2 * node.count / rows
    way = min(ways, key=lambda name: ways[name])
    if ways[way] < node.cost:
        node.cost, node.reading = ways[way], way
    return node


def _units(top: _Node, order: Sequence[int], base: int, rows: int, pass_cost: float) -> Iterator[Unit]:
    """The stems and single texts under a trunk of `base` tokens."""
    nodes = [top]
    for node in nodes:  # grows: parents before children
        nodes += node.children
    costs: dict[int, float] = {}
    stems: set[int] = set()
    for node in reversed(nodes):
        if not node.children:
            costs[id(node)] = node.tokens - base
            continue
        costs[id(node)] = sum(costs[id(child)] for child in node.children)
        depth = node.depth - base
        read = node.tokens - node.count * base - (node.count - 1) * depth
        stem = read * _PADDING + pass_cost * node.count / rows
        if node.count <= rows and depth > 0 and stem < costs[id(node)]:
            costs[id(node)] = stem
            stems.add(id(node))
    pending = [top]
    while pending:
        node = pending.pop()
        if id(node) in stems or not node.children:
            yield _unit(node, order, base)
        else:
            pending += node.children


def _unit(node: _Node, order: Sequence[int], base: int) -> Unit:
    return Unit(node.depth if node.children else base, tuple(order[node.low : node.high]))


def _shared(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    where = int(differ.argmax()) if size else 0
    return where if size and differ[where] else size
