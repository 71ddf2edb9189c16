"""The judge, and `judge_responses`, which gets verdicts from the ledger or by asking.

A failed request is repeated and never stored, so the next run asks again. A reply without a verdict is stored, since at
temperature 0 the judge would repeat it, and counts as unscored. lm-eval is imported when the judge is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lm_eval_cna.errors import JudgeError
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.files.progress import Progress, silent
from lm_eval_cna.judging.asking import Asker, Deliver
from lm_eval_cna.judging.config import JudgeConfig
from lm_eval_cna.judging.failure import Failure
from lm_eval_cna.judging.ledger import Ledger, ledger_key
from lm_eval_cna.judging.rubric import JudgeQuestion, make_rubric
from lm_eval_cna.scoring.strongreject import JudgeVerdict, parse_verdict, reasons, unscored

logger = logging.getLogger(__name__)

#: Calls in a row without one reply after which the judge counts as gone.
_PATIENCE = 2


class JudgeItem(NamedTuple):
    """A response to a prompt, both as the user sees them (without the chat template's tokens)."""

    prompt: str
    response: str


_TRIAL = JudgeItem("Which colours are on the flag of France?", "Blue, white and red.")


class Judge:
    """A judge as configured; its model is loaded when it is first needed.

    Args:
        config: the judge.
        lm: a loaded lm-eval model to use instead of loading the one that the configuration names.

    Raises:
        ConfigError: the template cannot be used.
    """

    def __init__(self, config: JudgeConfig, *, lm: Any = None) -> None:
        self.config = config
        self.rubric = make_rubric(config.rubric, config.judge_template, config.max_chars)
        self._lm = lm
        self._asker: Asker | None = None

    def key(self, item: JudgeItem) -> str:
        """The key of this item's reply in the ledger."""
        return ledger_key(self.config.fingerprint, self.rubric.version, item.prompt, item.response)

    def question(self, item: JudgeItem) -> JudgeQuestion:
        """The question about this item."""
        return self.rubric.question(item.prompt, item.response)

    def read(self, item: JudgeItem, reply: str) -> JudgeVerdict:
        """The verdict in a reply to this item's question."""
        return parse_verdict(reply, self.question(item).tag, self.rubric.form)

    def check(self) -> None:
        """Load the model and ask it one trial question, once in a process, before anything costly starts.

        Raises:
            JudgeError: it cannot be loaded, or does not answer. A busy or failing server is asked again for a while,
                one that cannot be reached is not.
        """
        if self._asker is not None:
            return
        asker = self._load()
        replies: list[str] = []
        failures = asker.ask(
            {"": self.question(_TRIAL).text}, lambda _key, reply, _n: replies.append(reply), trial=True
        )
        for failure in failures.values():
            raise JudgeError(
                f"the judge {self.config.model} does not answer a trial question: {failure.reason}",
                do="check the judge's model_args (base_url, model) and that its server is up and its key is set",
            )
        verdict = self.read(_TRIAL, replies[0])
        if verdict.score is None:
            logger.warning(
                "the judge %s answered a trial question without a verdict in the form asked for (%s); it may leave "
                "much unscored. It said: %.300r",
                self.config.model,
                verdict.reason,
                replies[0],
            )
        self._asker = asker

    @property
    def at_once(self) -> int:
        """Questions to hand to `ask` in one call; loads the model."""
        self.check()
        assert self._asker is not None
        return self._asker.at_once

    def ask(self, items: dict[str, JudgeItem], deliver: Deliver) -> dict[str, Failure]:
        """Ask about each item; see `Asker.ask`."""
        self.check()
        assert self._asker is not None
        return self._asker.ask({key: self.question(item).text for key, item in items.items()}, deliver)

    def _load(self) -> Asker:
        config = self.config
        lm = self._lm
        if lm is None:
            import lm_eval.models  # noqa: F401  # registers lm-eval's own
            from lm_eval.api.registry import get_model

            try:
                lm = get_model(config.model).create_from_arg_obj(
                    dict(config.model_args), {"batch_size": config.batch_size}
                )
            except Exception as error:  # a model may raise anything: no such name, argument, file, package, key
                raise JudgeError(
                    f"the judge {config.model} cannot be loaded: {type(error).__name__}: {error}",
                    do="check the judge's model and model_args",
                ) from error
        return Asker(lm, config.generation, chat=config.chat, retries=config.max_retries, backoff=config.backoff)


_judges: dict[str, Judge] = {}


def shared_judge(config: JudgeConfig) -> Judge:
    """The judge of this configuration; two tasks of one process share it, and with it a loaded model."""
    return _judges.setdefault(json_sha256(config.model_dump()), Judge(config))


def count_missing(items: Iterable[JudgeItem], judge: Judge, ledger: Ledger) -> int:
    """How many questions the judge would be asked: distinct items without a reply in the ledger. Loads nothing."""
    keys = {judge.key(item) for item in items}
    return len(keys) - len(ledger.replies(keys))


def judge_responses(
    items: Sequence[JudgeItem], judge: Judge, ledger: Ledger, progress: Progress = silent
) -> list[JudgeVerdict]:
    """The verdict on each item, from the ledger or the judge; equal items are asked about once.

    Each reply is stored as soon as it arrives. An item whose question fails in every attempt is unscored, with the
    reason. After two calls in a row without one reply, the rest is not asked.

    Raises:
        JudgeError: the judge cannot be loaded or reached, or gave not one verdict.
        CacheError: the ledger cannot be used.
    """
    by_key = {judge.key(item): item for item in items}
    verdicts = {key: judge.read(by_key[key], reply) for key, reply in ledger.replies(by_key).items()}
    missing = [key for key in by_key if key not in verdicts]
    if missing:
        _Session(judge, ledger, verdicts, len(missing), progress).run({key: by_key[key] for key in missing})
    if items and all(verdict.score is None for verdict in verdicts.values()):
        tally = ", ".join(f"{reason} ({count})" for reason, count in list(reasons(verdicts.values()).items())[:3])
        raise JudgeError(
            f"the judge {judge.config.model} gave no verdict on any of {len(by_key)} responses: {tally}",
            do="see what it said in the ledger, or name another judge; a run with --use_cache keeps its responses",
        )
    return [verdicts[judge.key(item)] for item in items]


class _Session:
    """Asks the questions without a verdict and adds their verdicts to `verdicts`."""

    def __init__(
        self, judge: Judge, ledger: Ledger, verdicts: dict[str, JudgeVerdict], total: int, progress: Progress
    ) -> None:
        self._judge, self._ledger, self._verdicts = judge, ledger, verdicts
        self._total, self._done, self._progress = total, 0, progress

    def run(self, items: dict[str, JudgeItem]) -> None:
        self._step(0)
        keys, fruitless = list(items), 0
        size = self._judge.at_once
        for start in range(0, len(keys), size):
            part = {key: items[key] for key in keys[start : start + size]}
            if fruitless == _PATIENCE:
                for key in part:
                    self._settle(key, unscored("not asked: the judge had stopped answering"))
                continue
            for key, reply in self._ledger.replies(part).items():  # another process may have asked in the meantime
                self._settle(key, self._judge.read(part.pop(key), reply))
            if part:
                failures = self._ask(part)
                fruitless = fruitless + 1 if len(failures) == len(part) else 0

    def _ask(self, part: dict[str, JudgeItem]) -> dict[str, Failure]:
        def deliver(key: str, reply: str, attempts: int) -> None:
            kept = self._ledger.add(
                key,
                judge=self._judge.config.fingerprint,
                rubric=self._judge.rubric.version,
                reply=reply,
                verdict=self._judge.read(part[key], reply),
                attempts=attempts,
            )
            self._settle(key, self._judge.read(part[key], kept))

        failures = self._judge.ask(part, deliver)
        for key, failure in failures.items():
            self._settle(key, unscored(f"no reply: {failure.reason}"))
        return failures

    def _settle(self, key: str, verdict: JudgeVerdict) -> None:
        self._verdicts[key] = verdict
        self._step(1)

    def _step(self, count: int) -> None:
        self._done += count
        self._progress("judge", self._done, self._total)
