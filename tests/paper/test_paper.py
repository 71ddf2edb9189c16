"""The paper's tables before anything runs: models, sizes, plans, and what inside and outside mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.cli.paper import ProtocolChoice, TableChoice
from lm_eval_cna.errors import CNAError, ConfigError
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.paper import page, rows
from lm_eval_cna.paper.memory import Machine, memory_for, this_machine, tokens_of
from lm_eval_cna.paper.plan import PaperRequest, check, prompts_task, read_prompts
from lm_eval_cna.paper.presets import PRESETS, PresetTask, statement
from lm_eval_cna.paper.targets import ModelSize, Target, known_models, pairs_of, resolve
from lm_eval_cna.resources import published_dir
from lm_eval_cna.statistics.rates import Interval
from lm_eval_cna.sweep.config import parse_config

MACHINE = Machine("a card", 80 * 2**30)
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"


def request(table: str, models: str | None = None, **more: Any) -> PaperRequest:
    preset = PRESETS[table]
    given: dict[str, Any] = {"protocol": "corrected", "output": Path("out"), **more}
    return PaperRequest(preset=preset, targets=resolve(preset, models), **given)


def test_every_table_has_a_command_and_every_protocol_a_statement() -> None:
    assert [table.value for table in TableChoice] == list(PRESETS)
    assert all(protocol.value in statement(protocol.value) for protocol in ProtocolChoice)


# Models


def test_published_rows_and_presets_name_the_same_models() -> None:
    for file, table in (("jbb_refusal", "jbb-refusal"), ("cna_vs_caa", "cna-vs-caa"), ("base_vs_instruct", "overlap")):
        lines = (published_dir() / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["model"] for line in lines} == set(PRESETS[table].models)
    assert set(PRESETS["jbb-refusal"].models) | set(PRESETS["overlap"].models) <= set(known_models())


@pytest.mark.parametrize("row", known_models().values(), ids=lambda row: row["model"])
def test_parameters_follow_from_the_shape(row: dict[str, Any]) -> None:
    hidden, queries, keys = row["hidden_size"], row["heads"] * row["head_dim"], row["kv_heads"] * row["head_dim"]
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * row["mlp_width"] + 2 * hidden
    layer += (queries + 2 * keys) * row["attention_bias"]
    embeddings = row["vocabulary"] * hidden * (1 if row["tied_embeddings"] else 2)
    assert row["parameters"] == embeddings + row["layers"] * layer + hidden
    assert row["source"] and (row["base"] is None) == (row["variant"] == "base")


def test_a_published_half_brings_its_twin_and_others_are_given_two_by_two() -> None:
    both = [Target("Qwen/Qwen2.5-3B", "base"), Target("Qwen/Qwen2.5-3B-Instruct", "instruct")]
    assert resolve(PRESETS["overlap"], "Qwen/Qwen2.5-3B-Instruct") == both
    assert resolve(PRESETS["overlap"], "Qwen/Qwen2.5-3B,Qwen/Qwen2.5-3B-Instruct") == both
    found = resolve(PRESETS["overlap"], "organism,my/base,my/chat")
    assert [(base.name, instruct.name) for base, instruct in pairs_of(found)] == [
        ("organism:base", "organism:instruct"),
        ("my/base", "my/chat"),
    ]
    assert [target.variant for target in found] == ["base", "instruct"] * 2


def test_the_organism_by_name_and_by_path(tmp_path: Path) -> None:
    assert resolve(PRESETS["mmlu"], "organism") == [Target("organism:instruct", "instruct", True)]
    assert [t.name for t in resolve(PRESETS["layers"], "organism")] == ["organism:base", "organism:instruct"]
    (tmp_path / "organism.json").write_text("{}")
    path = str(tmp_path / "base")
    assert resolve(PRESETS["mmlu"], path) == [Target(path, "base", True)]


@pytest.mark.parametrize(
    ("table", "models", "says"),
    [
        ("mmlu", "a,,b", "--models"),
        ("mmlu", "a,a", "each once"),
        ("overlap", "my/base", "instruct twin.*give both"),
        ("layers", "organism:dog", "no such organism.*organism:diffuse"),
    ],
)
def test_wrong_models(table: str, models: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(PRESETS[table], models)


# Plans


@pytest.mark.parametrize("table", [table for table, preset in PRESETS.items() if preset.asked])
@pytest.mark.parametrize("protocol", ["corrected", "as-published"])
def test_every_sweep_is_a_valid_configuration(table: str, protocol: Any) -> None:
    asked = request(table, LLAMA if table != "base-vs-instruct" else None, protocol=protocol)
    config = parse_config(asked.sweep(asked.targets[-1], "a path"))
    assert 0.0 in config.multipliers and config.random == 0 and config.model_args["dtype"] == "bfloat16"
    if protocol == "corrected":
        assert (config.fraction, config.top_k, config.excluded_layers) == (0.001, (), ())
        assert config.universal_filter and max(config.multipliers) == 1
    else:
        assert (config.top_k, config.excluded_layers, config.universal_filter) == ((1600,), (0, 1), False)
        assert (2.0 in config.multipliers) == ("caa" in config.compared)


def test_base_models_are_asked_raw_and_instruct_models_in_chat() -> None:
    asked = request("base-vs-instruct")
    chats = {t.variant: asked.sweep(t, "p")["tasks"][0]["chat_template"] for t in asked.targets}
    assert chats == {"base": False, "instruct": True}


@pytest.mark.parametrize(
    ("table", "more", "differs"),
    [
        ("jbb-refusal", {}, ["discovery prompts: refusal"]),
        ("jbb-refusal", {"contrast": "c.jsonl", "limit": 3}, ["only 3 documents"]),
        ("cna-vs-caa", {}, ["prompts: JBB-Behaviors", "direction of CAA"]),
        ("cna-vs-caa", {"protocol": "as-published", "prompts": Path("p")}, []),
        ("overlap", {"contrast": "c.jsonl"}, ["discovery prompts: of --contrast"]),
        ("overlap", {"models": "organism"}, ["the organism: a check of the machinery"]),
        ("strongreject", {"contrast": "c"}, ["judge's question"]),
    ],
)
def test_what_is_not_like_for_like(table: str, more: dict[str, Any], differs: list[str]) -> None:
    asked = request(table, **more)
    found = asked.differs(asked.targets[0])
    assert len(found) == len(differs)
    assert all(start in told for start, told in zip(differs, found, strict=True))


def test_prompts_of_the_users(tmp_path: Path) -> None:
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n\n two \n", encoding="utf-8")
    lines.write_text('{"prompt": "one"}\n{"prompt": "two"}\n', encoding="utf-8")
    assert read_prompts(plain) == read_prompts(lines) == ["one", "two"]
    (jbb,) = PRESETS["jbb-refusal"].asked
    name = prompts_task(jbb, plain)
    assert name == prompts_task(jbb, lines)
    plain.write_text("one\nthree\n", encoding="utf-8")
    assert prompts_task(jbb, plain) != name
    asked = request("cna-vs-caa", LLAMA, prompts=lines)
    assert asked.documents(asked.preset.asked[0]) == 2
    assert asked.sweep(asked.targets[0], "p")["tasks"][0]["task"] == name


@pytest.mark.parametrize("text", ["", '{"prompt": " "}\n', "not json\n", "[1]\n"])
def test_prompts_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="--prompts"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("table", "more", "says"),
    [
        ("overlap", {"prompts": Path("p")}, "--prompts has no meaning for overlap"),
        ("jbb-refusal", {"contrast": "nothing.jsonl"}, "no such contrast set"),
        ("jbb-refusal", {"judge": parse_judge({"model": "m"})}, "--judge-model has no meaning"),
    ],
)
def test_what_has_no_meaning_is_refused(table: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(CNAError, match=says):
        check(request(table, **more))


# Estimates


def test_an_estimate_is_the_stated_formula() -> None:
    size = ModelSize(10**9, 16, 512, 32_000, "a test")
    task = PresetTask("t", None, "m", 100, 60, 150)
    found = memory_for(size, [task], width=2)
    assert (found.weights, found.cache) == (2 * 10**9, 2 * 2 * 16 * 512 * 210 * 32)
    assert found.total == found.weights + found.cache + 4 * 32_000 * 32 + 2**30
    assert tokens_of([(task, 100)], cells=2) == (2 * 60 * 100, 2 * 150 * 100)


def test_a_plan_of_the_eight_models_on_a_card() -> None:
    asked = request("jbb-refusal")
    planned = [dict(zip(page.PLAN_HEAD, page.shown_plan(asked, t, MACHINE), strict=True)) for t in asked.targets]
    assert [row["model"] for row in planned] == list(PRESETS["jbb-refusal"].models)
    assert [row["model"] for row in planned if row["fits"] == "no: skipped"] == [
        "meta-llama/Llama-3.1-70B-Instruct",
        "Qwen/Qwen2.5-72B-Instruct",
    ]
    first = planned[0]
    assert first["parameters"].startswith("1.24 B") and first["fits"] == "yes"
    read, generated = (int(part.replace(",", "")) for part in first["tokens in + out"].split(" + "))
    assert generated == 2 * 100 * 150 and read > 2 * 100 * 60


def test_a_model_that_nobody_knows_is_planned_without_figures() -> None:
    asked, machine = request("mmlu", "nobody/knows-it"), this_machine({"device": "cpu"})
    assert machine.name == "cpu" and machine.memory > 2**20
    assert page.shown_plan(asked, asked.targets[0], machine)[1:4] == ("not known",) * 3


# Rows


def test_rates_have_wilsons_interval_and_published_figures_lie_inside_or_outside() -> None:
    measured = rows.rate([1.0] * 34 + [0.0] * 66)
    assert measured is not None and measured.interval is not None and measured.value == pytest.approx(34)
    # Wilson (1927) for 34 of 100, by hand: (0.34 + z2/200 -+ z sqrt(0.34 * 0.66 / 100 + z2 / 40000)) / (1 + z2 / 100).
    assert (measured.interval.low, measured.interval.high) == pytest.approx((25.46, 43.73), abs=0.01)
    assert rows.row("m", "q", "s", rows.figure(30), measured).verdict == "inside"
    assert rows.row("m", "q", "s", rows.figure(90), measured).verdict == "outside"
    assert rows.row("m", "q", "s", None, measured).verdict == "nothing published"
    assert rows.row("m", "q", "s", rows.figure(1), rows.rate([])).verdict == "not measured"
    assert rows.row("m", "q", "s", rows.Published(40, 99, ""), measured).verdict == "inside"  # reaches to 43.7
    assert rows.row("m", "q", "s", rows.Published(44, 99, ""), measured).verdict == "outside"


def test_changes_are_paired_and_in_points() -> None:
    before = dict.fromkeys(range(50), 1.0)
    found = rows.change({**before, 0: 0.0, 1: 0.0}, before, "rate")
    assert found is not None and found.value == pytest.approx(-4) and "Tango" in found.kind
    assert rows.change({}, before, "rate") is None


def test_the_range_over_folds_holds_the_whole() -> None:
    found = rows.over_folds(0.5, [0.6, 0.55])
    assert found.interval == Interval(low=50, high=60) and "2 circuits" in found.kind and found.value == 50
