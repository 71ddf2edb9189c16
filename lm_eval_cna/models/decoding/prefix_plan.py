"""Plan which token prefixes of a set of texts the model reads once, and in which batches. Importable without torch.

A prefix can be shared on two levels: an outer prefix by all batches of a block (the few-shot examples of a subject), an
inner prefix by some rows of one batch (the question before four answers). The rest of a text is its suffix.

The cost of a plan is the number of tokens that the model reads, padding included, plus `pass_cost` for every forward
pass. `pass_cost` is what a forward pass costs beside its tokens, expressed in tokens. A prefix is read once where the
tokens that this saves outweigh the pass that it adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

# Inner prefixes of a batch differ in length and are padded: by about 5 %.
_PADDING = 1.05


class Text(NamedTuple):
    """A distinct sequence of tokens."""

    tokens: Tokens
    """What the model reads."""
    first_scored: int
    """The first position whose logits are scored; a shared prefix ends before it."""


class TextGroup(NamedTuple):
    """Texts of one batch that share an inner prefix, or one text alone."""

    prefix_end: int
    """Where the inner prefix ends, counted from the beginning of the text; without one, where the outer prefix ends."""
    texts: tuple[int, ...]
    """The texts' positions in the list that was planned."""


class Block(NamedTuple):
    """Groups that share an outer prefix."""

    outer: int
    """Length of the outer prefix, 0 without one."""
    groups: tuple[TextGroup, ...]


class SuffixBatch(NamedTuple):
    """Rows that the model reads together, each behind its prefixes."""

    outer: int
    """Length of the outer prefix, which all rows share and which has been read before."""
    groups: tuple[TextGroup, ...]
    """Either all of them have an inner prefix or none has."""

    @property
    def texts(self) -> tuple[int, ...]:
        """The texts, one row each."""
        return tuple(text for group in self.groups for text in group.texts)

    @property
    def has_inner_prefixes(self) -> bool:
        """Whether the groups' inner prefixes must be read first."""
        return self.groups[0].prefix_end > self.outer


@dataclass
class _Node:
    """A node of the prefix tree: the texts from `low` to `high` in sorted order share `depth` tokens."""

    depth: int
    low: int = 0
    high: int = 0
    first_scored: int = 0
    tokens: int = 0  # of all its texts together
    cost: float = 0.0  # of the cheapest plan for its texts
    shared_as: str | None = None  # "outer" or "inner" prefix, if it is cheapest to share this node's tokens
    children: list[_Node] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.high - self.low


def plan(texts: Sequence[Text], *, rows: int, pass_cost: float) -> list[Block]:
    """Decide which prefixes of distinct texts are read once, in batches of at most `rows` rows.

    Returns blocks that together hold every text once; the one without an outer prefix, if any, comes last.

    Example:
        >>> few_shot = list(range(100))
        >>> texts = [Text(np.array([*few_shot, 200 + n]), first_scored=100) for n in range(10)]
        >>> (block,) = plan(texts, rows=4, pass_cost=16.0)
        >>> block.outer
        100
    """
    if not texts:
        return []
    order = sorted(range(len(texts)), key=lambda text: texts[text].tokens.astype(">i4").tobytes())
    root = _prefix_tree([texts[text] for text in order], rows, pass_cost)
    blocks, alone, pending = [], [], [root]
    while pending:
        node = pending.pop()
        if node.shared_as == "outer":
            blocks.append(Block(node.depth, tuple(_groups(node, order, node.depth, rows, pass_cost))))
        elif node.shared_as == "inner" or not node.children:
            alone.append(_group(node, order, 0))
        else:
            pending += node.children
    return [*blocks, Block(0, tuple(alone))] if alone else blocks


def batches(block: Block, texts: Sequence[Text], *, rows: int, pass_cost: float, scored: int) -> Iterator[SuffixBatch]:
    """Cut a block of `plan` into the batches that cost least, long texts first.

    A batch has at most `scored` scored positions, unless one group alone has more.
    """
    sizes = {group: _size(group, texts, block.outer) for group in block.groups}
    for has_inner in (True, False):
        groups = [group for group in block.groups if (sizes[group].inner > 0) == has_inner]
        groups.sort(key=lambda group: (sizes[group].inner, sizes[group].suffix), reverse=True)
        starts = _cuts([sizes[group] for group in groups], rows, pass_cost, scored)
        for start, end in pairwise([*starts, len(groups)]):
            yield SuffixBatch(block.outer, tuple(groups[start:end]))


class _GroupSize(NamedTuple):
    inner: int  # tokens of the inner prefix
    suffix: int  # tokens of the longest suffix
    rows: int
    scored: int


def _size(group: TextGroup, texts: Sequence[Text], outer: int) -> _GroupSize:
    lengths = [len(texts[text].tokens) for text in group.texts]
    scored = sum(length - texts[text].first_scored for length, text in zip(lengths, group.texts, strict=True))
    return _GroupSize(group.prefix_end - outer, max(lengths) - group.prefix_end, len(group.texts), scored)


def _cuts(sizes: Sequence[_GroupSize], rows: int, pass_cost: float, scored: int) -> list[int]:
    """Where the batches of sorted groups begin, in the cheapest of all ways to cut (dynamic programming)."""
    cheapest, begins = [0.0], [0]  # for the first n groups: their cost, and where their last batch begins
    for end in range(1, len(sizes) + 1):
        best, begin = float("inf"), end - 1
        suffix = held_rows = held_scored = 0
        for start in range(end - 1, -1, -1):
            size = sizes[start]
            suffix = max(suffix, size.suffix)
            held_rows, held_scored = held_rows + size.rows, held_scored + size.scored
            if start < end - 1 and (held_rows > rows or held_scored > scored):
                break
            cost = cheapest[start] + suffix * held_rows + pass_cost
            if size.inner:  # the batch's first inner prefix is its longest
                cost += size.inner * (end - start) + pass_cost
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


def _prefix_tree(texts: Sequence[Text], rows: int, pass_cost: float) -> _Node:
    """The prefix tree of sorted texts. A node is complete when the next text does not share all its tokens."""
    stack = [_Node(0)]
    node = _leaf(texts, 0, rows, pass_cost)
    for index in range(1, len(texts)):
        shared = _common_length(texts[index - 1].tokens, texts[index].tokens)
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
    return _Node(size, index, index + 1, texts[index].first_scored, size, size + pass_cost / rows)


def _close(node: _Node, rows: int, pass_cost: float) -> _Node:
    """Fill in a node whose children are complete, and choose whether to share its tokens."""
    node.low, node.high = node.children[0].low, node.children[-1].high
    node.first_scored = min(child.first_scored for child in node.children)
    node.tokens = sum(child.tokens for child in node.children)
    # Only the pass over the suffixes gives logits, so a shared prefix ends before the first scored position.
    node.depth = min(node.depth, node.first_scored)
    node.cost = sum(child.cost for child in node.children)
    if node.count == 1 or node.depth == 0:
        return node
    read = node.tokens - (node.count - 1) * node.depth
    costs = {"outer": read + pass_cost * (1 + -(-node.count // rows))}
    if node.count <= rows:
        costs["inner"] = read * _PADDING + pass_cost * 2 * node.count / rows
    cheapest = min(costs, key=lambda level: costs[level])
    if costs[cheapest] < node.cost:
        node.cost, node.shared_as = costs[cheapest], cheapest
    return node


def _groups(top: _Node, order: Sequence[int], outer: int, rows: int, pass_cost: float) -> Iterator[TextGroup]:
    """The inner prefixes and single texts behind an outer prefix of `outer` tokens."""
    nodes = [top]
    for node in nodes:  # grows: parents before children
        nodes += node.children
    costs: dict[int, float] = {}
    shared: set[int] = set()
    for node in reversed(nodes):
        if not node.children:
            costs[id(node)] = node.tokens - outer
            continue
        costs[id(node)] = sum(costs[id(child)] for child in node.children)
        depth = node.depth - outer
        read = node.tokens - node.count * outer - (node.count - 1) * depth
        cost = read * _PADDING + pass_cost * node.count / rows
        if node.count <= rows and depth > 0 and cost < costs[id(node)]:
            costs[id(node)] = cost
            shared.add(id(node))
    pending = [top]
    while pending:
        node = pending.pop()
        if id(node) in shared or not node.children:
            yield _group(node, order, outer)
        else:
            pending += node.children


def _group(node: _Node, order: Sequence[int], outer: int) -> TextGroup:
    return TextGroup(node.depth if node.children else outer, tuple(order[node.low : node.high]))


def _common_length(one: Tokens, other: Tokens) -> int:
    """Length of the longest common prefix of two sequences."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    where = int(differ.argmax()) if size else 0
    return where if size and differ[where] else size
