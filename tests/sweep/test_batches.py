"""The batch plan: every pair once, whole documents together, and the same plan every time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lm_eval_cna.sweep.batches import Request, plan_batches

OPTIONS = {"until": [], "do_sample": False}


def generated(number: int, options: dict[str, object] | None = None) -> Request:
    return Request("generate_until", (f"p{number}", options or OPTIONS), f"g{number}", "jbb", number)


def scored(document: int, choice: int, task: str = "mmlu") -> Request:
    return Request("loglikelihood", (f"d{document}", f"c{choice}"), f"{task}-{document}-{choice}", task, document)


def test_rows_of_all_cells_share_batches_longest_prompt_first() -> None:
    requests = [generated(n) for n in range(5)]
    plan = plan_batches([requests] * 3, {f"g{n}": 10 + n for n in range(5)}, rows=4, packed=True)
    assert [len(batch.rows) for batch in plan] == [4, 4, 4, 3]
    assert [(cell, request.key) for cell, request in plan[0].rows] == [(0, "g4"), (1, "g4"), (2, "g4"), (0, "g3")]


def test_unpacked_batches_hold_one_cell() -> None:
    requests = [generated(n) for n in range(5)]
    plan = plan_batches([requests] * 3, {f"g{n}": n for n in range(5)}, rows=4, packed=False)
    assert [len(batch.cells) for batch in plan] == [1] * 6 and [len(batch.rows) for batch in plan] == [4, 1] * 3


def test_other_generation_settings_stand_apart() -> None:
    requests = [generated(0), generated(1, {**OPTIONS, "max_gen_toks": 7}), generated(2)]
    plan = plan_batches([requests], {f"g{n}": n for n in range(3)}, rows=8, packed=True)
    assert [request.key for request in plan[0].requests] in (["g1", "g2", "g0"], ["g2", "g0", "g1"])


def test_scored_documents_stay_whole_and_tasks_apart() -> None:
    requests = [scored(d, c, task) for task in ("a", "b") for d in range(200) for c in range(4)]
    plan = plan_batches([requests, requests], {}, rows=4, packed=True)
    assert [len(batch.requests) for batch in plan] == [512, 288] * 2
    for batch in plan:
        assert batch.cells == (0, 1) and len({request.task for request in batch.requests}) == 1
        assert set(Counter(request.document for request in batch.requests).values()) == {4}


def test_cells_that_are_not_asked_are_not_in_it() -> None:
    everything, controls = [generated(0), scored(0, 0)], [generated(0)]
    plan = plan_batches([everything, controls], {"g0": 3}, rows=8, packed=True)
    assert [(batch.kind, batch.cells) for batch in plan] == [("generate_until", (0, 1)), ("loglikelihood", (0,))]


@given(
    cells=st.integers(1, 5),
    prompts=st.lists(st.integers(1, 40), max_size=30),
    documents=st.integers(0, 300),
    rows=st.integers(1, 50),
    packed=st.booleans(),
)
def test_every_pair_is_in_exactly_one_batch(
    cells: int, prompts: list[int], documents: int, rows: int, packed: bool
) -> None:
    requests = [generated(n) for n in range(len(prompts))]
    requests += [scored(d, c) for d in range(documents) for c in range(2)]
    lengths = {f"g{n}": length for n, length in enumerate(prompts)}
    plan = plan_batches([requests] * cells, lengths, rows=rows, packed=packed)
    pairs = Counter((cell, request.key) for batch in plan for cell, request in batch.rows)
    assert pairs == Counter((cell, request.key) for cell in range(cells) for request in requests)
    assert all(batch.rows and len({request.kind for _, request in batch.rows}) == 1 for batch in plan)
    assert all(len(batch.rows) <= rows for batch in plan if batch.kind == "generate_until")
    assert plan == plan_batches([requests] * cells, lengths, rows=rows, packed=packed)
