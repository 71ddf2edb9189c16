from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.judging.config import JudgeConfig, parse_judge

GIVEN = {
    "model": "local-chat-completions",
    "model_args": {"model": "m", "base_url": "http://127.0.0.1:1/v1/chat/completions", "num_concurrent": 8},
}


def test_arguments_as_a_mapping_and_as_one_string_are_one_judge() -> None:
    text = "model=m,base_url=http://127.0.0.1:1/v1/chat/completions,num_concurrent=8"
    one, other = parse_judge(GIVEN), parse_judge({**GIVEN, "model_args": text})
    assert one == other and one.fingerprint == other.fingerprint
    assert one.generation["max_gen_toks"] == 512 and one.generation["do_sample"] is False


def test_the_fingerprint_is_of_what_decides_an_answer() -> None:
    base = parse_judge(GIVEN).fingerprint

    def changed(**args: object) -> str:
        return parse_judge({**GIVEN, "model_args": {**GIVEN["model_args"], **args}}).fingerprint  # type: ignore[dict-item]

    assert changed(num_concurrent=1, timeout=5, auth_token="secret", max_retries=9) == base
    assert changed(model="n") != base
    assert changed(base_url="http://127.0.0.1:2/") != base
    assert parse_judge({**GIVEN, "gen_kwargs": {"max_gen_toks": 9}}).fingerprint != base
    assert parse_judge({**GIVEN, "model": "hf"}).fingerprint != base
    assert parse_judge({**GIVEN, "max_retries": 0, "backoff": 3, "ledger": "x.sqlite"}).fingerprint == base


def test_no_secret_is_shown() -> None:
    config = parse_judge({**GIVEN, "model_args": {"model": "m", "auth_token": "sesame", "header": {"A": "sesame"}}})
    shown = json.dumps(config.public())
    assert "sesame" not in shown and '"model": "m"' in shown and config.fingerprint in shown


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "needs a judge and none is given.*--metadata"),
        ("gpt", "not described by a mapping"),
        ({}, "judge: model: Field required.*an lm-eval model"),
        ({**GIVEN, "rubrik": 1}, "rubrik.*allowed: model, model_args, rubric"),
        ({**GIVEN, "rubric": "official"}, "rubric.*'official'"),
        ({**GIVEN, "max_retries": -1}, "max_retries"),
        ({**GIVEN, "backoff": float("nan")}, "backoff"),
        ({**GIVEN, "model_args": 3}, "model_args"),
    ],
)
def test_what_is_wrong_is_named(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_judge(given)


def test_the_ledger_stands_where_it_is_told_or_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = JudgeConfig(model="hf")
    monkeypatch.setenv("LM_EVAL_CNA_CACHE", str(tmp_path))
    assert config.ledger_path == tmp_path / "judge.sqlite"
    monkeypatch.delenv("LM_EVAL_CNA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.ledger_path == tmp_path / "lm-eval-cna" / "judge.sqlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert config.ledger_path == Path.home() / ".cache" / "lm-eval-cna" / "judge.sqlite"
    assert parse_judge({**GIVEN, "ledger": "x.sqlite"}).ledger_path == Path("x.sqlite")


def test_lm_eval_is_imported_only_when_a_judge_is_used() -> None:
    code = (
        "import sys; from lm_eval_cna.judging import judge, ledger, rubric, config, asking;"
        "config.parse_judge({'model': 'hf', 'model_args': {'pretrained': 'm'}});"
        "print([name for name in ('lm_eval', 'torch', 'transformers') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
