"""YAML as plain data, from whoever wrote it.

`yaml.safe_load` makes no foreign objects, but an alias may stand for a list of aliases: ten short lines can mean a
billion values, which are harmless until somebody prints or checks them. So a document is measured before it is built.
It is also held to what JSON knows: dates, sets, bytes and keys that are no text would break whoever writes it on.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

#: Values that a document may mean, aliases written out. A sweep's file has some dozens.
MOST_VALUES = 10_000
#: How deep a document may nest.
DEEPEST = 50
_TOO_DEEP = f"nested more than {DEEPEST} deep"
# PyYAML reads a thousand letters ahead, and looks at all open brackets for each.
_OPEN = re.compile(rb"(?:[\[{]\s*+){%d}" % (DEEPEST + 1))
#: Letters of a number. Colons make sixties of it, whose digits are costly to add.
_LONGEST_NUMBER = 100
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_PLAIN = (*_NUMBERS, *(_TAG + name for name in ("str", "bool", "null", "seq", "map", "merge")))


class _PlainLoader(yaml.SafeLoader):
    """Counts values while it reads, so that reading ends early."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._values += 1
        if self._values > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")
        if self._depth == DEEPEST:
            raise ValueError(_TOO_DEEP)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def load_yaml(data: bytes) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: it is not YAML in UTF-8, holds a value that JSON does not know or that cannot be made, nests too
            deeply, or means too much.
    """
    if _OPEN.search(data):
        raise ValueError(_TOO_DEEP)
    try:
        loader = _PlainLoader(data.decode("utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    # PyYAML lets the errors of its scalar constructors through: !!int "", !!bool x.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _measure(node: yaml.Node, known: dict[int, int | None]) -> int:
    """The values that a node means."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError("an alias stands for what holds it")
        return size
    known[id(node)] = None
    _check_plain(node)
    size = 1
    for child in _children(node):
        size += _measure(child, known)
        if size > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
    known[id(node)] = size
    return size


def _check_plain(node: yaml.Node) -> None:
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN:
        kind = node.tag.removeprefix(_TAG)
        raise ValueError(f"line {line}: a {kind:.40}, where text, numbers, lists and mappings are known; quote a text")
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise ValueError(f"line {line}: a number of {len(node.value)} characters")
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise ValueError(f"line {line}: a key that is no text; quote it")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
