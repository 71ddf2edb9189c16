"""YAML as plain data, from whoever wrote it. Floor 0.

`yaml.safe_load` makes no objects, but an alias may stand for a list of aliases: ten short lines can mean a billion
values, which are harmless until somebody prints or checks them. So a document is measured before it is built.
"""

from __future__ import annotations

from typing import Any

import yaml

#: Values that a document may mean, aliases written out. A sweep's file has some dozens.
MOST_VALUES = 100_000


def load_yaml(data: bytes) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: it is not YAML in UTF-8, holds a value that cannot be made, nests too deeply, or means too much.
    """
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # PyYAML lets the errors of its scalar constructors through: 2020-13-45, !!int "", !!timestamp x.
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
    size = 1
    for child in _children(node):
        size += _measure(child, known)
        if size > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
    known[id(node)] = size
    return size


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
