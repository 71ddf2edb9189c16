"""Read YAML of unknown origin as plain data.

`yaml.safe_load` builds no foreign objects, but aliases of aliases can make ten short lines stand for a billion values,
so the values are counted before they are built. Only types that JSON has are allowed: dates, sets, bytes and keys that
are not text could not be written to JSON later.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

#: Most values in a document, with aliases expanded. A sweep's file has dozens.
MOST_VALUES = 10_000
#: Most levels of nesting.
DEEPEST = 50
_TOO_DEEP = f"nested more than {DEEPEST} deep"
# PyYAML reads a thousand characters ahead and checks all open brackets for each, which is slow.
_OPEN = re.compile(rb"(?:[\[{]\s*+){%d}" % (DEEPEST + 1))
#: Most characters of a number. With colons YAML reads it in base 60, which is slow for a long one.
_LONGEST_NUMBER = 100
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_PLAIN = (*_NUMBERS, *(_TAG + name for name in ("str", "bool", "null", "seq", "map", "merge")))


class _PlainLoader(yaml.SafeLoader):
    """Counts values while it parses, so that it can stop early."""

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
        ValueError: the data is not YAML in UTF-8, holds a value that JSON does not have or that cannot be built, nests
            too deeply, or holds too many values.
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
    # PyYAML lets errors of its scalar constructors escape: !!int "", !!bool x.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _measure(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Count the values under a node, with aliases expanded."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError("an alias refers to the value that contains it")
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
        raise ValueError(f"line {line}: a {kind:.40}, allowed: text, numbers, lists and mappings; quote text")
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ValueError(f"line {line}: half of a surrogate pair, which cannot be hashed, tokenized or printed")
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise ValueError(f"line {line}: a number of {len(node.value)} characters")
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise ValueError(f"line {line}: a key that is not text; quote it")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
