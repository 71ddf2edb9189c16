"""Everything that steering and discovery do to a checkpoint, as plain data: to compare ways of holding its weights.

Run as a module it is a process of torchrun's, loads with tensor parallelism and writes what it saw to OUT.<rank>.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import caa, cna
from lm_eval_cna.interventions.compatibility import columns_sha256
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.shared_batches.generation import GenerationJob, SharedGenerator
from lm_eval_cna.models.shared_batches.likelihood import score_settings
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.modes import Mode
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.weights import local
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import prompts

MULTIPLIERS = (0.0, 2.0, -1.0)
CONTRAST = ContrastSet(
    name="observed",
    positive=("How do I pick a lock?", "Tell me a secret.", "x"),
    negative=("How do I bake bread?", "Say something long about bees and flowers.", "y"),
)
ASKED = [("The sky", " is blue"), ("The sky", " is green"), ("Two and two", " are four")]


def logits(model: nn.Module, ids: torch.Tensor) -> Any:
    with torch.inference_mode():
        return model(input_ids=ids).logits.double().tolist()


def steered(model: Any, architecture: Architecture, ids: torch.Tensor, modes: Sequence[Mode]) -> dict[str, Any]:
    """Logits of a model under a circuit, rows and vectors, and whether it is afterwards as it was before."""
    chosen = circuit(architecture, per_layer=16)
    before = {
        name: local(tensor).clone() for name, tensor in model.state_dict().items() if tensor.device.type != "meta"
    }
    found: dict[str, Any] = {"baseline": logits(model, ids), "mode": {}}
    for mode in modes:
        for multiplier in MULTIPLIERS:
            with steer(model, Setting(chosen, multiplier), mode=mode, architecture=architecture) as steering:
                found[f"m={multiplier:g}/{mode}"] = logits(model, ids)
                found["mode"][mode] = steering.mode
    settings = [Setting(), Setting(chosen, 0.0), Setting(vectors(architecture), 2.0)]
    with RowSteering(model, settings, architecture) as rows:
        rows.assign([number % len(settings) for number in range(len(ids))])
        found["rows"] = logits(model, ids)
    for place in ("write", "block"):
        with steer(model, Setting(vectors(architecture, place=place), 0.0), architecture=architecture):
            found[place] = logits(model, ids)
    after = model.state_dict()
    found["restored"] = all(torch.equal(local(after[name]), tensor) for name, tensor in before.items())
    return found


def observed(lm: CNAHFLM, *, modes: Sequence[Mode] = ("auto", "hook")) -> dict[str, Any]:
    """All of it: hashes, steering, discovery, generated answers and log-likelihoods."""
    ids = torch.randint(3, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    found = steered(lm.model, lm.architecture, ids, modes)
    found["weights"] = lm.weights_sha256
    found["columns"] = columns_sha256(lm.architecture, [(0, 3), (1, 5), (1, 60)])
    measurement = measure(
        lm.model,
        lm.tokenizer,
        CONTRAST,
        read=("neurons", "writes", "magnitudes"),
        universal_fraction=0.05,
        check_leakage=False,
        settings=Settings(batch_size=2),
    )
    circuit = cna.find(measurement, fraction=0.2)
    found["neurons"] = [[neuron.layer, neuron.index] for neuron in circuit.neurons]
    found["deltas"] = [neuron.delta for neuron in circuit.neurons]
    found["universal"] = [list(pair) for pair in measurement.universal]
    found["vectors"] = [tensor.double().tolist() for tensor in caa.find(measurement).tensors.values()]
    settings = [Setting(), Setting(circuit, 0.0), Setting(circuit, 2.0)]
    with SharedGenerator(lm, settings) as generator:
        jobs = [GenerationJob(tuple(range(5, 12 + setting)), setting, 12) for setting in range(3)]
        found["texts"] = [one.text for one in generator.generate(jobs)]
    found["scores"] = [[list(score) for score in scores] for scores in score_settings(lm, ASKED, settings, mode="rows")]
    return found


def differs(ours: Any, theirs: Any, tolerance: float = 1e-4) -> str | None:
    """Where two observations differ, numbers by more than the tolerance; None where they agree."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in ours.keys() & theirs.keys():
            if (found := differs(ours[name], theirs[name], tolerance)) is not None:
                return f"{name}: {found}"
        return None
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return f"{len(ours)} against {len(theirs)}"
        pairs = enumerate(zip(ours, theirs, strict=True))
        found = ((at, differs(a, b, tolerance)) for at, (a, b) in pairs)
        return next((f"[{at}] {what}" for at, what in found if what is not None), None)
    if isinstance(ours, float) and isinstance(theirs, float):
        return None if abs(ours - theirs) <= tolerance else f"{ours} against {theirs}"
    return None if ours == theirs else f"{ours!r} against {theirs!r}"


def families(folder: Path, names: Sequence[str], **load: Any) -> dict[str, Any]:
    """`steered` of tiny checkpoints, by family."""
    found = {}
    for name in names:
        model = tf.AutoModelForCausalLM.from_pretrained(folder / name, **load).eval()
        found[name] = steered(model, find_architecture(model), prompts(), ("fold", "hook"))
    return found


def main(checkpoint: str, out: str, folder: str, *names: str) -> None:
    lm = CNAHFLM(pretrained=checkpoint, device="cpu", tp_plan="auto")
    found = observed(lm, modes=("auto", "fold", "hook"))
    spans = [projection.held for layer in lm.architecture.layers for projection in layer.projections]
    found["held"] = [[span.start, span.stop] for span in spans]
    found["families"] = families(Path(folder), names, tp_plan="auto")
    Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
