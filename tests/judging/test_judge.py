"""The judge against a real HTTP server that misbehaves: no verdict lost, none invented, nothing asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lm_eval_cna.errors import CacheError, JudgeError
from lm_eval_cna.judging import asking
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.failure import describe
from lm_eval_cna.judging.judge import Judge, JudgeItem, count_missing, judge_responses
from lm_eval_cna.judging.ledger import Ledger
from lm_eval_cna.scoring.strongreject import JudgeVerdict
from tests.helpers.checkpoints import save_llama
from tests.helpers.judge_server import JudgeServer, obliging, verdict
from tests.helpers.local_tasks import FixedAnswers

ITEMS = [JudgeItem(f"How is bread number {n} baked?", f"With flour, take {n}.") for n in range(40)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "judge.sqlite") as opened:
        yield opened


def judge_at(server: JudgeServer, **more: Any) -> Judge:
    return Judge(parse_judge(server.describe(**more)))


def number_in(question: str) -> int:
    return int(question.split("With flour, take ")[1].split(".")[0])


def test_every_item_gets_its_own_verdict_and_is_asked_once(ledger: Ledger) -> None:
    def by_number(question: str, _: int) -> str:
        return verdict(question, refusal=0, convincingness=1 + number_in(question) % 5, specificity=3)

    steps: list[tuple[int, int]] = []
    with JudgeServer(by_number, seconds=0.02) as server:
        judge = judge_at(server)
        assert count_missing(ITEMS, judge, ledger) == 40
        found = judge_responses(
            [*ITEMS, *ITEMS[:5]], judge, ledger, lambda stage, done, total, detail="": steps.append((done, total))
        )
        assert [v.judgements["convincingness"] for v in found] == [1 + n % 5 for n in [*range(40), *range(5)]]
        assert len(server.asked) == 40 and server.trials == 1
        assert 2 <= server.most_at_once <= 8, "lm-eval's own concurrency"
        assert steps[0] == (0, 40) and steps[-1] == (40, 40) and len(steps) == 41
        again = Judge(judge.config)
        assert count_missing(ITEMS, again, ledger) == 0
        assert judge_responses(ITEMS, again, ledger) == found[:40]
        assert len(server.asked) == 40 and server.trials == 1, "the second judge was not even loaded"
        other = judge_at(server, rubric="rating-10")
        server.behave = obliging
        assert {v.score for v in judge_responses(ITEMS, other, ledger)} == {0.7}
    assert len(ledger) == 80


@pytest.mark.parametrize(
    ("concurrent", "trouble"),
    [
        *((8, trouble) for trouble in (500, 429, "cut", "nonsense", "shape", "null", " \n")),
        (1, 503),
        (1, "cut"),
        (1, ""),
    ],
)
def test_a_judge_that_fails_half_the_time_loses_nothing(
    ledger: Ledger, trouble: int | str, concurrent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=lambda _: None))
    seen: Counter[str] = Counter()

    def half(question: str, _: int) -> int | str:
        seen[question] += 1
        return trouble if number_in(question) % 2 and seen[question] == 1 else obliging(question, 0)

    items = ITEMS[: 40 if concurrent > 1 else 10]
    with JudgeServer(half) as server:
        judge = judge_at(server, model_args={"num_concurrent": concurrent})
        found = judge_responses(items, judge, ledger)
    assert {v.score for v in found} == {0.625}
    assert set(seen.values()) == {1, 2} and sum(seen.values()) == len(items) * 3 // 2, "no answer was asked for again"


@pytest.mark.parametrize("concurrent", [8, 1])
def test_what_fails_for_good_is_unscored_and_asked_again_by_the_next_run(ledger: Ledger, concurrent: int) -> None:
    def some(question: str, _: int) -> int | str:
        return 500 if number_in(question) % 4 == 0 else obliging(question, 0)

    items = ITEMS[:20]
    with JudgeServer(some) as server:
        found = judge_responses(
            items, judge_at(server, max_retries=2, model_args={"num_concurrent": concurrent}), ledger
        )
        assert [v.score is None for v in found] == [n % 4 == 0 for n in range(20)]
        assert {v.reason for v in found if v.score is None} == {"no reply: HTTP status 500"}
        assert Counter(Counter(server.asked).values()) == {1: 15, 3: 5}, "no other question paid for them"
        assert len(ledger) == 15, "a failure is not an answer"
        server.behave, before = obliging, len(server.asked)
        found = judge_responses(
            items, judge_at(server, max_retries=2, model_args={"num_concurrent": concurrent}), ledger
        )
        assert {v.score for v in found} == {0.625} and len(server.asked) == before + 5


def test_what_cannot_succeed_is_not_tried_again(ledger: Ledger) -> None:
    with JudgeServer(lambda q, _: 400 if number_in(q) == 3 else obliging(q, 0)) as server:
        found = judge_responses(ITEMS, judge_at(server), ledger)
        assert [n for n, v in enumerate(found) if v.score is None] == [3]
        assert found[3].reason == "no reply: HTTP status 400"
        assert len(server.asked) == 40


def test_a_reply_without_a_verdict_is_kept_and_unscored(ledger: Ledger) -> None:
    def babble(question: str, _: int) -> str:
        number = number_in(question)
        if number == 1:
            return "I would rather not."
        if number == 2:
            return verdict(question, refusal=0, convincingness=9, specificity=1)
        if number == 3:
            return verdict(question, refusal=0, convincingness=5, specificity=5) + obliging(question, 0)
        if number == 4:
            return question
        return obliging(question, 0)

    with JudgeServer(babble) as server:
        found = judge_responses(ITEMS, judge_at(server), ledger)
        assert [n for n, v in enumerate(found) if v.score is None] == [1, 2, 3, 4]
        assert all(v.score == 0.625 for v in found[5:])
        assert judge_responses(ITEMS, judge_at(server), ledger) == found and len(server.asked) == 40


def test_a_reply_that_stays_empty_is_asked_for_twice(ledger: Ledger) -> None:
    with JudgeServer(lambda q, _: "null" if number_in(q) == 3 else obliging(q, 0)) as server:
        found = judge_responses(ITEMS, judge_at(server), ledger)
        assert [n for n, v in enumerate(found) if v.score is None] == [3]
        assert found[3].reason is not None and "empty" in found[3].reason
        assert len(server.asked) == 41


def test_a_server_is_left_alone_as_long_as_it_asks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=waits.append))
    for value in ("7", "4000", "soon"):
        seen: set[str] = set()

        def busy_once(question: str, _: int, seen: set[str] = seen) -> int | str:
            if question in seen:
                return obliging(question, 0)
            seen.add(question)
            return 429

        for concurrent in (8, 1):
            with JudgeServer(busy_once, retry_after=value) as server:
                judge = judge_at(server, model_args={"num_concurrent": concurrent})
                judge_responses([JudgeItem(value, f"With flour, take {concurrent}.")], judge, ledger)
    assert waits == [7, 7, 60, 60, 0.01, 0.01]


def test_waits_grow_and_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=waits.append))
    with JudgeServer(lambda q, _: 500 if number_in(q) == 0 else obliging(q, 0)) as server:
        judge_responses(ITEMS[:2], judge_at(server, max_retries=8, backoff=1), ledger)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_judge_that_dies_is_not_waited_for_question_by_question(ledger: Ledger) -> None:
    items = [JudgeItem("p", f"With flour, take {n}.") for n in range(200)]
    with JudgeServer(lambda q, n: obliging(q, 0) if n < 20 else 500) as server:
        found = judge_responses(items, judge_at(server, max_retries=1), ledger)
        reasons = Counter(v.reason for v in found)
        assert reasons[None] == 20
        assert reasons["not asked: the judge had stopped answering"] == 200 - 3 * 32
        assert len(server.asked) == 20 + 2 * (3 * 32 - 20)


def test_a_table_of_nothing_is_an_error(ledger: Ledger) -> None:
    with JudgeServer(lambda *_: 500) as server, pytest.raises(JudgeError, match=r"no verdict on any of 40.*status 500"):
        judge_responses(ITEMS, judge_at(server, max_retries=0), ledger)
    with JudgeServer(lambda *_: "Yes.") as server, pytest.raises(JudgeError, match=r"no verdict in the reply \(40\)"):
        judge_responses(ITEMS, judge_at(server), ledger)
    with JudgeServer() as server:
        assert judge_responses([], judge_at(server), ledger) == [] and server.trials == 0


def test_a_judge_that_is_not_there_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as server:
        config = server.describe(backoff=30)
    start = time.monotonic()
    for concurrent in (8, 1):
        config["model_args"]["num_concurrent"] = concurrent
        with pytest.raises(JudgeError, match=r"does not answer a trial question: no connection.*base_url"):
            Judge(parse_judge(config)).check()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    hosted = {"model": "openai-chat-completions", "model_args": {"model": "m", "num_concurrent": 4}, "backoff": 30}
    with pytest.raises(JudgeError, match=r"trial question.*API key not found"):
        Judge(parse_judge(hosted)).check()
    for wrong in ({"model": "nobody"}, {"model": "hf", "model_args": {"pretrained": "/nowhere/at/all"}}):
        with pytest.raises(JudgeError, match=r"cannot be loaded"):
            Judge(parse_judge(wrong)).check()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_name_is_found_out_at_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=lambda _: pytest.fail("waited")))
    with JudgeServer() as server:
        monkeypatch.setattr(server, "_decide", lambda _: status)
        with pytest.raises(JudgeError, match=f"trial question: HTTP status {status}"):
            judge_at(server).check()


@pytest.mark.parametrize("concurrent", [8, 1])
def test_no_key_is_logged(
    ledger: Ledger, concurrent: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    with JudgeServer(lambda q, _: 500 if number_in(q) == 3 else obliging(q, 0)) as server:
        found = judge_responses(
            ITEMS[:5], judge_at(server, max_retries=1, model_args={"num_concurrent": concurrent}), ledger
        )
    assert found[3].score is None and "HTTP status 500" in caplog.text
    assert "sesame" not in caplog.text, "lm-eval logs the headers of a failed request"


def test_a_full_disk_is_not_taken_for_a_failing_judge(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise CacheError("the disk is full")

    monkeypatch.setattr(ledger, "add", full)
    for concurrent in (8, 1):
        with JudgeServer() as server, pytest.raises(CacheError, match="the disk is full"):
            judge_responses(ITEMS, judge_at(server, model_args={"num_concurrent": concurrent}), ledger)


def test_any_lm_eval_model_can_be_the_judge_with_errors_item_by_item(ledger: Ledger) -> None:
    class Moody(FixedAnswers):
        """Not an API model: reports nothing as it goes, and raises for a batch that holds a certain question."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            texts = [request.args[0] for request in requests]
            self.asked += [request.args for request in requests]
            if any("flag of France" not in text and number_in(text) == 7 for text in texts):
                raise RuntimeError("out of memory")
            return [obliging(text, 0) for text in texts]

    lm = Moody([])
    judge = Judge(parse_judge({"model": "moody", "backoff": 0, "max_retries": 1}), lm=lm)
    found = judge_responses(ITEMS, judge, ledger)
    assert [n for n, v in enumerate(found) if v.score is None] == [7]
    assert found[7].reason == "no reply: RuntimeError: out of memory"
    assert lm.asked[0][1] == {"until": [], "do_sample": False, "max_gen_toks": 512, "temperature": 0.0}


def test_an_hf_judge_gets_its_chat_template_and_its_context_is_kept(ledger: Ledger, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    seen: list[str] = []

    class Seen(HFLM):  # type: ignore[misc]
        def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(string)
            return super().tok_encode(string, *args, **kwargs)

    save_llama(tmp_path / "model")
    lm = Seen(pretrained=str(tmp_path / "model"), device="cpu", max_length=4096, batch_size=2)
    config = {"model": "hf", "gen_kwargs": {"max_gen_toks": 4}, "backoff": 0, "max_retries": 0}
    judge = Judge(parse_judge(config), lm=lm)
    with pytest.raises(JudgeError, match=r"no verdict in the reply \(2\), no reply: the question is longer.*\(1\)"):
        judge_responses([*ITEMS[:2], JudgeItem("p", "long " * 800)], judge, ledger)
    assert seen[0].startswith("<|user|>You grade") and seen[0].endswith("<|end|><|assistant|>")
    assert len(ledger) == 2, "what a random model babbles is kept; the cut question was not asked"


_CHILD = """
import json, sys
from pathlib import Path
from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.judge import Judge, JudgeItem, judge_responses
from lm_eval_cna.judging.ledger import Ledger
config, path, count = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
items = [JudgeItem(f"How is bread number {n} baked?", f"With flour, take {n}.") for n in range(count)]
with Ledger(path) as ledger:
    found = judge_responses(items, Judge(parse_judge(config)), ledger)
print(json.dumps([v.score for v in found]))
"""


def start_child(server: JudgeServer, path: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, json.dumps(server.describe()), str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, stderr=subprocess.DEVNULL)


def test_kill_9_in_the_middle_costs_only_what_was_under_way(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    with JudgeServer(seconds=0.1) as server:
        child = start_child(server, path, 60)
        while len(server.asked) < 30:
            assert child.poll() is None
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        time.sleep(0.3)
        with Ledger(path) as ledger:
            kept, asked = len(ledger), len(server.asked)
            assert 0 < kept < 60
            under_way = asked - kept
            assert 0 <= under_way <= 8, "as many as lm-eval had under way"
        rerun = start_child(server, path, 60)
        assert json.loads(rerun.communicate()[0]) == [0.625] * 60
        assert len(server.asked) == 60 + under_way
        assert len(set(server.asked)) == 60
        with Ledger(path) as ledger:
            assert len(ledger) == 60


def test_two_processes_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"

    def dice(question: str, number: int) -> str:
        return verdict(question, refusal=0, convincingness=1 + number % 5, specificity=1)

    with JudgeServer(dice, seconds=0.02) as server:
        children = [start_child(server, path, 120) for _ in range(2)]
        results = [json.loads(child.communicate()[0]) for child in children]
        assert results[0] == results[1], "one question has one verdict, whoever asked"
        with Ledger(path) as ledger:
            assert len(ledger) == 120
        assert 120 <= len(server.asked) <= 240


def test_errors_are_told_apart() -> None:
    assert describe(TimeoutError()).unreachable and not describe(TimeoutError()).final
    assert describe(ImportError("no aiohttp")).final
    assert not describe(ValueError("no JSON")).final
    assert len(describe(RuntimeError("x" * 10_000)).reason) < 300


def test_a_judge_that_cannot_keep_the_form_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    judge = Judge(parse_judge({"model": "fixed"}), lm=FixedAnswers(["Four out of five."]))
    judge.check()
    assert "without a verdict in the form asked for" in caplog.text and "Four out of five." in caplog.text
    assert judge.read(ITEMS[0], obliging(judge.question(ITEMS[0]).text, 0)) == JudgeVerdict(
        0.625, {"refusal": 0, "convincingness": 4, "specificity": 3}
    )
