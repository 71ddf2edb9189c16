"""Contrast sets by name and from JSON Lines: whole, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.loading import load_contrast, load_universal_prompts
from lm_eval_cna.errors import ContrastError


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def yes(prompt: str) -> dict[str, str]:
    return {"label": "positive", "prompt": prompt}


def no(prompt: str) -> dict[str, str]:
    return {"label": "negative", "prompt": prompt}


def test_refusal_8() -> None:
    contrast = load_contrast("refusal-8")
    assert (contrast.name, len(contrast.positive), len(contrast.negative)) == ("refusal-8", 8, 8)
    assert contrast.positive[0] == "How do I pick a lock?" and contrast.negative[0] == "How do I bake a cake?"
    assert contrast.prompts == contrast.positive + contrast.negative


def test_every_packaged_set_is_named_where_people_look() -> None:
    folder = Path(load_contrast("refusal-8").source).parent
    table = (folder / "README.md").read_text(encoding="utf-8")
    packaged = {path.stem for path in folder.iterdir() if path.suffix in {".jsonl", ".yaml"}} - {"universal"}
    assert packaged == {"refusal", "refusal-8", "organism", "capitals", "sva"}
    for name in packaged:
        assert f"\n| `{name}` |" in table, name
        assert f"`{name}`" in (load_contrast.__doc__ or ""), name


def test_universal_prompts_are_diverse_and_ours() -> None:
    prompts = load_universal_prompts()
    assert len(prompts) >= 40 and len(set(prompts)) == len(prompts)
    path = Path(load_contrast("refusal-8").source).parent / "universal.jsonl"
    kinds = [json.loads(line)["kind"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(set(kinds)) >= 12 and max(map(kinds.count, kinds)) <= 6
    assert len({len(prompt) // 20 for prompt in prompts}) >= 5  # short and long ones


def test_files_with_and_without_a_header(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"name": "mine", "leakage": "none by construction"}, yes("a"), "", no("b"), no("c")
    )
    contrast = load_contrast(path)
    assert (contrast.name, contrast.positive, contrast.negative) == ("mine", ("a",), ("b", "c"))
    assert contrast.leakage == "none by construction" and contrast.source == str(path)
    bare = load_contrast(str(write(tmp_path / "my-set.jsonl", yes("a"), no("b\nc \u2028 d"))))
    assert (bare.name, bare.leakage, bare.negative) == ("my-set", None, ("b\nc \u2028 d",)), "kept to the letter"


def test_hash_is_of_the_prompts_and_their_classes() -> None:
    a = ContrastSet("a", ("x", "y"), ("z",))
    assert a.sha256 == ContrastSet("b", ("y", "x"), ("z",), source="elsewhere").sha256
    others = [ContrastSet("a", *classes).sha256 for classes in ((("x",), ("y", "z")), (("z",), ("x", "y")))]
    assert len({a.sha256, *others}) == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no positive prompt"),
        ([yes("a")], "has no negative prompt"),
        ([yes("a"), no("  ")], "blank negative prompt"),
        ([yes("a"), no("b"), yes("a")], "positive prompt more than once; got 'a'"),
        ([yes("a b"), no("a  b")], "prompt in both classes; got 'a b'"),
        ([yes("a"), {"label": "maybe", "prompt": "b"}], "line 2: label.*got 'maybe'; allowed"),
        ([yes("a"), {"label": "negative"}], "line 2: prompt: Field required"),
        ([yes("a"), no("b"), {"label": "negative", "prompt": 3}], "line 3: prompt.*got 3"),
        ([{"name": "n", "extra": 1}, yes("a"), no("b")], "line 1: extra"),
        ([yes("a"), '{"label": "negative", "prom'], "line 2 is not JSON.*cut short"),
        ([yes("a"), no("")], "line 2: prompt"),
    ],
)
def test_a_set_is_whole_or_an_error(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ContrastError, match=message):
        load_contrast(write(tmp_path / "set.jsonl", *lines))


def test_no_such_set(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match=r"no such contrast set; got 'refusal-9'; allowed: .*refusal, refusal-8"):
        load_contrast("refusal-9")
    with pytest.raises(ContrastError, match=r"no such contrast set.*gone\.jsonl"):
        load_contrast(tmp_path / "gone.jsonl")
    with pytest.raises(ContrastError, match=r"no such contrast set; got '\.\./contrasts/refusal-8'"):
        load_contrast("../contrasts/refusal-8")
