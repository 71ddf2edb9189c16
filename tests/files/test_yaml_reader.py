"""YAML that would break whoever reads on: text that UTF-8 cannot hold."""

from __future__ import annotations

import pytest

from lm_eval_cna.files.yaml_reader import load_yaml


@pytest.mark.parametrize("text", [rb'{"\ud800": x}', rb'{x: {y: ["a\udfff"]}}'])
def test_half_a_surrogate_pair_is_refused_as_key_and_as_value(text: bytes) -> None:
    with pytest.raises(ValueError, match="line 1: half of a surrogate pair"):
        load_yaml(text)


def test_a_whole_character_beyond_16_bits_is_read() -> None:
    assert load_yaml(rb'{x: "\U0001F600"}') == {"x": "\U0001f600"}
