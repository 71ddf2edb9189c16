"""The paper's presets on tiny checkpoints that stand where an organism's would: every table runs, and goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.errors import RunError
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.task import LATER
from lm_eval_cna.paper import circuits, run
from lm_eval_cna.paper.memory import Machine
from lm_eval_cna.paper.page import Result
from lm_eval_cna.paper.plan import PaperRequest, write_prompt_tasks
from lm_eval_cna.paper.presets import PRESETS
from lm_eval_cna.paper.targets import resolve
from lm_eval_cna.resources import tasks_dir
from tests.helpers.checkpoints import save_llama
from tests.helpers.judge_server import JudgeServer

pytestmark = pytest.mark.usefixtures("no_environment_report")

MACHINE = Machine("a test", 2**35)
SWEPT = [table for table, preset in PRESETS.items() if preset.asked and not preset.judged]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two checkpoints that the presets take for organisms, as `--models` names them."""
    folder = tmp_path_factory.mktemp("organism")
    (folder / "organism.json").write_text("{}", encoding="utf-8")
    # 1600 neurons, as the scripts take, must be there above layer 1.
    base, instruct = (
        save_llama(folder / name, seed=seed, width=2048, layers=3) for seed, name in enumerate(("base", "instruct"))
    )
    return f"{base},{instruct}"


def request(table: str, models: str, output: Path, **more: Any) -> PaperRequest:
    preset = PRESETS[table]
    given: dict[str, Any] = {"protocol": "corrected", "limit": 3, "model_args": {"device": "cpu"}, **more}
    return PaperRequest(preset=preset, targets=resolve(preset, models), output=output, **given)


def done(asked: PaperRequest) -> Result:
    folders = [str(tasks_dir()), *(str(f) for f in [write_prompt_tasks(asked)] if f is not None)]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata={"judge": LATER})
    return run.run(asked, machine=MACHINE, task_manager=manager, command=["typed"])


@pytest.mark.parametrize(
    ("table", "protocol"), [*((table, "corrected") for table in SWEPT), ("cna-vs-caa", "as-published")]
)
def test_tables_of_responses(table: str, protocol: str, pair: str, tmp_path: Path) -> None:
    result = done(request(table, pair, tmp_path, protocol=protocol))
    assert result.rows and not result.skipped
    assert {row.model for row in result.rows} == set(pair.split(","))
    for row in result.rows:
        assert row.verdict in ("nothing published", "not measured", "follows from the rates") and row.differs
        assert row.measured is not None or row.quantity.startswith("relative")
        if row.quantity == "refusal, %" and row.setting == "baseline, m = 1":
            (file,) = tmp_path.glob(f"*{Path(row.model).name}/cells/baseline/chat.json")
            (samples,) = json.loads(file.read_text(encoding="utf-8"))["samples"].values()
            assert row.measured == pytest.approx(100 * sum(s["refusal_rate"] for s in samples) / 3) and row.n == 3
    settings = {row.setting for row in result.rows}
    if "caa" in PRESETS[table].methods:
        strength = "CAA, m = 0 (suppressing)" if protocol == "corrected" else "CAA, m = 2 (amplifying)"
        assert strength in settings
    manifest = json.loads(next(tmp_path.glob("*/manifest.json")).read_text(encoding="utf-8"))
    circuit = json.loads(next(tmp_path.glob("*/circuit.json")).read_text(encoding="utf-8"))
    found = circuit["discovery"]
    if protocol == "corrected":
        assert (len(circuit["neurons"]), found["excluded_layers"]) == (31, []) and found["universal_filter"]
    else:
        assert (len(circuit["neurons"]), found["excluded_layers"]) == (1600, [0, 1])
        assert found["universal_filter"] is None and {neuron["layer"] for neuron in circuit["neurons"]} == {2}
    assert manifest["plan"]["random"] == 0
    document = json.loads((tmp_path / "paper.json").read_text(encoding="utf-8"))
    assert document["schema"] == "lm-eval-cna/paper/1" and document["protocol"] == protocol
    assert (tmp_path / "paper.md").read_text(encoding="utf-8").startswith(f"# {PRESETS[table].title}")


def test_tables_of_circuits(pair: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("overlap", pair, tmp_path, limit=None)
    result = done(asked)
    (row,) = result.rows
    assert row.measured is not None and row.interval is not None and row.interval.low <= row.measured
    assert "31 neurons each" in row.setting and "without a fifth" in row.interval_is
    with monkeypatch.context() as patched:  # another run reads what is there: no model is loaded
        patched.setattr(circuits, "CNAHFLM", None)
        assert done(asked).rows == result.rows
        layers = done(request("layers", pair, tmp_path, limit=None))
    assert len(layers.rows) == 4 and all(row.measured is not None for row in layers.rows)
    # All three layers are the last three.
    assert [row.measured for row in layers.rows if "last three" in row.quantity] == [100.0, 100.0]
    other = request("overlap", pair, tmp_path, limit=None, protocol="as-published")
    with pytest.raises(RunError, match="circuits with another protocol"):
        done(other)
    (row,) = done(dataclasses.replace(other, output=tmp_path / "other")).rows
    assert "1600 neurons each; 78 % by chance" in row.setting  # 1600 of the 2048 of layer 2; two layers are left out


def test_circuits_are_compared_with_published_ranges(pair: str, tmp_path: Path) -> None:
    asked = request("overlap", pair, tmp_path, limit=None)
    base, instruct = asked.targets
    found = circuits.find(asked, base, base.name)
    (row,) = circuits.overlap_rows(asked, base, instruct, found, found)  # the model with itself
    assert row.measured == 100 and row.interval is not None and row.interval.low == 100
    assert "0.5 % by chance" in row.setting  # 31 of 6144
    known = request("overlap", "Qwen/Qwen2.5-3B", tmp_path, limit=None)
    (row,) = circuits.overlap_rows(known, *known.targets, found, found)
    assert row.published == "8 to 29 over all pairs" and row.verdict == "outside" and row.differs == ()
    llama = request("layers", "meta-llama/Llama-3.2-1B", tmp_path, limit=None)
    first, second = circuits.layer_rows(llama, llama.targets[0], found)
    assert (first.published, second.published) == ("87", None)


def test_own_prompts_and_a_judge(pair: str, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("How?\nWhy is that?\nWhat for?\n", encoding="utf-8")
    model = pair.split(",")[1]
    with JudgeServer() as server:
        judge = parse_judge({**server.describe(), "ledger": str(tmp_path / "ledger.sqlite")})
        asked = request("strongreject", model, tmp_path / "out", prompts=prompts, judge=judge, limit=None)
        result = done(asked)
        questions = len(server.asked)
        assert questions >= 1
        assert done(asked).rows == result.rows and len(server.asked) == questions  # nothing is asked twice
    (row,) = [row for row in result.rows if row.model == model]
    assert row.measured == 0 and row.n == 3  # the judge gives every answer the same
    (row,) = done(request("strongreject", model, tmp_path / "no judge", prompts=prompts, limit=1)).rows
    assert row.verdict == "not measured" and "no judge" in row.differs[-1]


def test_what_cannot_run_is_skipped_with_a_word_and_the_rest_goes_on(pair: str, tmp_path: Path) -> None:
    models = f"{tmp_path / 'nowhere'},meta-llama/Llama-3.1-70B-Instruct,{pair.split(',')[1]}"
    result = done(request("jbb-refusal", models, tmp_path / "out"))
    assert {row.model for row in result.rows} == {pair.split(",")[1]}
    words = {one.model: one.why for one in result.skipped}
    assert "GiB" in words["meta-llama/Llama-3.1-70B-Instruct"] and "nowhere" in words[str(tmp_path / "nowhere")]
    assert "Skipped:" in (tmp_path / "out" / "paper.md").read_text(encoding="utf-8")


def test_the_organism_has_no_harm_to_grade(pair: str, tmp_path: Path) -> None:
    result = done(request("strongreject", pair, tmp_path))
    assert not result.rows and all("--prompts" in one.why for one in result.skipped) and len(result.skipped) == 2


# The command


def test_the_command_prints_the_table(pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["paper", "overlap", "--models", pair, "--model-args", "device=cpu", "--output", str(tmp_path)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Protocol corrected" in out and "nothing published" in out and "range over 5 circuits" in out
    assert (tmp_path / "paper.md").is_file() and (tmp_path / "paper.json").is_file()


def test_a_dry_run_of_all_eight_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["paper", "jbb-refusal", "--dry-run", "--model-args", "device=cpu,dtype=float32"]
    assert main([*arguments, "--output", str(output)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for model in PRESETS["jbb-refusal"].models:
        assert model in out
    assert "70.6 B" in out and "Estimates: memory" in out and "GiB for a model" in out and not output.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table-9"], "table-9"),
        (["jbb-refusal", "--prompts", "no/such/file"], "cannot read"),
        (["jbb-refusal", "--judge-model-args", "a=1"], "without a judge"),
        (["jbb-refusal", "--model-args", "nonsense"], "--model-args"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and says in err and err.startswith("error: ")
