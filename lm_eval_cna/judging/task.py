"""The lm-eval Task class of judged tasks; their YAML files name it.

`process_results` sees one document at a time, so the judge is asked in `apply_filters`, which lm-eval calls once per
task and process. The judge comes with `--metadata '{"judge": {...}}'` and answers a trial question when the task is
built, before the model gets any request. `{"judge": "later"}` leaves the judge's metrics out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask
from tqdm import tqdm  # type: ignore[import-untyped]

from lm_eval_cna.judging.config import parse_judge
from lm_eval_cna.judging.judge import Judge, JudgeItem, judge_responses, shared_judge
from lm_eval_cna.judging.ledger import Ledger
from lm_eval_cna.scoring.strongreject import JudgeVerdict, is_evasion, reasons, verdict_metrics
from lm_eval_cna.scoring.tasks import response_text, score_response

logger = logging.getLogger(__name__)

#: The judge's entry in `--metadata` where the responses are judged after the run.
LATER = "later"


class JudgedTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval carries no type information
    """A task whose responses a judge grades.

    Args:
        data_dir: not used, as in lm-eval's own class.
        cache_dir: not used.
        download_mode: not used.
        config: the task's configuration with the metadata of the run.

    Raises:
        ConfigError: no judge is given, or it is described wrongly.
        JudgeError: the judge cannot be loaded or does not answer.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        settings = dict(config or {})
        settings.pop("class", None)  # names this class in the YAML; lm-eval's TaskConfig does not know it
        metadata = dict(settings.get("metadata") or {})
        self._judge: Judge | None = None
        self._verdicts: dict[JudgeItem, JudgeVerdict] = {}
        if metadata.get("judge") != LATER:
            self._judge = shared_judge(parse_judge(metadata.get("judge")))
            # The metadata go into the results file: with the fingerprint, without keys.
            metadata["judge"] = self._judge.config.public() | {"rubric_version": self._judge.rubric.version}
            self._judge.check()
        settings["metadata"] = metadata
        super().__init__(config=settings)

    def apply_filters(self) -> Any:
        """Apply lm-eval's filters, then ask the judge about all documents of this process at once."""
        filtered = super().apply_filters()
        if self._judge is not None and not self._only_predicts:
            items = [
                JudgeItem(self._prompt(instance.doc), response_text([text]))
                for instance in self._instances
                for text in instance.filtered_resps.values()
            ]
            with Ledger(self._judge.config.ledger_path) as ledger, tqdm(desc="Asking the judge", unit="") as bar:

                def show(stage: str, done: int, total: int, detail: str = "") -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                verdicts = judge_responses(items, self._judge, ledger, show)
            self._verdicts = dict(zip(items, verdicts, strict=True))
            for reason, count in reasons(verdicts).items():
                logger.warning("%s: %d of %d documents unscored: %s", self.config.task, count, len(items), reason)
        return filtered

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """The metrics of one document, the judge's included."""
        metrics: dict[str, Any] = super().process_results(doc, results)
        if self._judge is not None and not self._only_predicts:
            text = response_text(results)
            verdict = self._verdicts[JudgeItem(self._prompt(doc), text)]
            # The outcomes again: a response can count as evaded only with a verdict.
            metrics |= score_response(text, evaded=is_evasion(verdict))
            metrics |= verdict_metrics(verdict, self._judge.rubric.form)
        return metrics

    @property
    def _only_predicts(self) -> bool:
        """Whether lm-eval runs with --predict_only, whose only metric is a placeholder."""
        return "bypass" in self._metric_fn_list

    def _prompt(self, doc: Mapping[str, Any]) -> str:
        return str(self.doc_to_text(doc))


def total(values: Sequence[float]) -> float:
    """lm-eval's aggregation of `n_unscored`."""
    return float(sum(values))
