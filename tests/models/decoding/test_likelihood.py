"""Log-likelihoods of cna-hf against stock hf: every family, every shape of request, steered and not, two processes."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from lm_eval.models.huggingface import HFLM

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.models.decoding.likelihood import can_share, score_tokens
from lm_eval_cna.models.decoding.prefix_reader import PrefixReader
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from tests.helpers.checkpoints import byte_tokenizer, save_llama
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, MIXTURES, TINY, VOCAB, tiny
from tests.helpers.requests import instances
from tests.helpers.scores import alike

Request = tuple[Any, list[int], list[int]]
MAX_LENGTH = 128


def shapes(seed: int = 0) -> dict[str, list[Request]]:
    """Requests in tokens, by what is special about them; everything but `sliding` is longer than the window of 16."""
    rng = random.Random(seed)

    def tokens(low: int, high: int | None = None) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(low if high is None else rng.randrange(low, high))]

    def asked(name: str, contexts: list[list[int]], answers: int, *size: int) -> list[Request]:
        return [((name, str((n, a))), c, tokens(*size)) for n, c in enumerate(contexts) for a in range(answers)]

    examples, cut = tokens(40), tokens(MAX_LENGTH - 10)
    found = {
        "letters": asked("letters", [[*examples, *tokens(3, 12)] for _ in range(9)], 4, 1),
        "answers": asked("answers", [[*examples, *tokens(3, 12)] for _ in range(9)], 4, 1, 6),
        "stems": asked("stems", [tokens(20, 30) for _ in range(5)], 4, 1, 6),
        "within the window": asked("within the window", [tokens(5, 9) for _ in range(5)], 4, 1, 6),
        "alone": asked("alone", [tokens(1, 30) for _ in range(7)], 1, 1, 9),
        "cut on the left": asked("cut on the left", [[*cut, *tokens(1, 30)] for _ in range(6)], 2, 1, 5),
        "no context": asked("no context", [[1]] * 4, 1, 1, 40),
        "one after the other": [(("grows", str(n)), cut[:n], cut[n : n + 2]) for n in range(1, 30)],
    }
    found["duplicates"] = [found["letters"][3]] * 3 + [found["answers"][5]] * 2
    found["rolling"] = [(None, context, continuation) for _, context, continuation in found["no context"]]
    found["everything"] = [request for requests in found.values() for request in requests]
    rng.shuffle(found["everything"])
    return found


SHAPES = shapes()


class Hook:
    """Stands for lm-eval's response cache."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def add_partial(self, *told: Any) -> None:
        self.told.append(told)


def wrapped(model: Any, cls: type[HFLM] = CNAHFLM, **arguments: Any) -> Any:
    settings = {"batch_size": 8, "max_length": MAX_LENGTH, "device": "cpu"} | arguments
    lm = cls(pretrained=model, tokenizer=byte_tokenizer(), **settings)
    lm.set_cache_hook = None  # nobody calls it
    lm.cache_hook = Hook()
    return lm


def scores(lm: Any, requests: list[Request], **arguments: Any) -> list[tuple[float, bool]]:
    """Stock's scores of stock; ours of cna-hf, which uses them only where the model is steered."""
    shared = isinstance(lm, CNAHFLM) and can_share(lm)
    score = partial(score_tokens, lm) if shared else lm._loglikelihood_tokens
    found: list[tuple[float, bool]] = score(requests, disable_tqdm=True, **arguments)
    return found


def both(model: Any, requests: list[Request], **arguments: Any) -> list[tuple[float, bool]]:
    """Stock's scores, after making sure that ours are the same and that the response cache was told the same."""
    stock, ours = wrapped(model, HFLM, **arguments), wrapped(model, **arguments)
    expected = scores(stock, requests)
    assert alike(scores(ours, requests), expected)
    told = [sorted(lm.cache_hook.told, key=lambda told: told[1]) for lm in (ours, stock)]
    assert alike(*told)
    return expected


def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the tokens of every forward pass from here on."""
    counts: list[int] = []
    forward = PrefixReader._forward

    def counted(self: PrefixReader, tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
        counts.append(tokens.numel())
        return forward(self, tokens, **arguments)

    monkeypatch.setattr(PrefixReader, "_forward", counted)
    return counts


def alibi_falcon() -> tf.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tf.FalconConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_hidden_size=48, alibi=True
        )
        model = tf.FalconForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, 0.15)
    return model.eval()


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES, "falcon with alibi"])
def test_every_family_says_what_stock_says(family: str) -> None:
    model = alibi_falcon() if family == "falcon with alibi" else tiny(family)
    foretold = []
    for name, context, _ in SHAPES["stems"]:
        said = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, len(context) :].tolist()
        foretold.append((("foretold", *name), context, said))
    expected = both(model, [*SHAPES["everything"], *foretold])
    assert all(greedy for _, greedy in expected[-len(foretold) :])
    assert not all(greedy for _, greedy in expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["mistral", "gemma2"])  # with sliding windows
def test_every_shape_of_request(family: str, shape: str) -> None:
    both(tiny(family), SHAPES[shape])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_sizes_and_attention(attention: str, batch_size: int) -> None:
    model = tiny("mistral")
    model.set_attn_implementation(attention)
    both(model, SHAPES["everything"], batch_size=batch_size)


def test_prefixes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, counts = wrapped(tiny("llama"), batch_size=4), read(monkeypatch)
    scores(lm, SHAPES["letters"])
    contexts = {tuple(context) for _, context, _ in SHAPES["letters"]}
    assert sum(counts) < 40 + sum(len(context) - 40 for context in contexts) * 1.5 < sum(map(len, contexts)) / 3
    assert len(counts) <= 1 + 4


def test_texts_that_share_nothing_are_read_as_stock_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(("q", str(n)), [n, *range(3, 40)], [5]) for n in range(3, 19)]
    lm, counts = wrapped(tiny("llama")), read(monkeypatch)
    scores(lm, requests)
    assert counts == [8 * 38] * 2


def test_logits_are_computed_only_where_something_is_scored() -> None:
    lm = wrapped(tiny("llama"))
    sizes: list[int] = []
    lm.model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1].numel()))
    scores(lm, SHAPES["letters"])
    # One for each of 9 distinct contexts, and one for what is read without wanting any.
    assert 9 < sum(sizes) <= 9 + len(sizes)


def test_the_model_is_left_as_it_was() -> None:
    lm = wrapped(tiny("llama"))
    scores(lm, SHAPES["everything"])
    assert not lm.model.lm_head._forward_pre_hooks
    whole = lm.model(torch.tensor([SHAPES["alone"][0][1]])).logits
    assert whole.shape[:2] == (1, len(SHAPES["alone"][0][1]))
    with pytest.raises(IndexError):
        lm._loglikelihood_tokens([(None, [VOCAB + 5], [3])], disable_tqdm=True)
    assert not lm.model.lm_head._forward_pre_hooks, "nor after an error"


@pytest.mark.parametrize(
    ("family", "mode"),
    [("llama", "fold"), ("gemma2", "fold"), ("gpt2", "fold"), ("llama", "hook"), ("gemma2", "vectors")],
)
def test_under_steering(family: str, mode: Any) -> None:
    stock, ours = (wrapped(tiny(family), cls) for cls in (HFLM, CNAHFLM))
    architecture = find_architecture(stock.model)
    setting = Setting(circuit(architecture, per_layer=16), 0.0)
    if mode == "vectors":
        mode, setting = "hook", Setting(vectors(architecture), 0.5)
    untouched = scores(stock, SHAPES["everything"])
    with steer(stock.model, setting, mode=mode), steer(ours.model, setting, mode=mode):
        expected = scores(stock, SHAPES["everything"])
        assert alike(scores(ours, SHAPES["everything"]), expected)
    assert not alike(untouched, expected)
    assert alike(scores(ours, SHAPES["everything"]), untouched)


def test_log_likelihoods_in_the_dtype_asked_for() -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    stock = wrapped(model, HFLM, softmax_dtype="float32")
    ours = wrapped(model, softmax_dtype="float32")
    for one, other in zip(scores(ours, SHAPES["letters"]), scores(stock, SHAPES["letters"]), strict=True):
        assert one[0] == pytest.approx(other[0], abs=0.25), "bfloat16 rounds by what is in the batch"


@pytest.mark.parametrize("batch_size", ["auto", "auto:2"])
def test_automatic_batch_size(batch_size: str) -> None:
    requests = SHAPES["everything"]
    ours = wrapped(tiny("llama"), batch_size=batch_size, max_batch_size=4)
    assert scores(ours, []) == []
    expected = scores(wrapped(tiny("llama"), HFLM), requests)
    assert alike(scores(ours, requests), expected)
    assert alike(scores(ours, requests, override_bs=5), expected)


@pytest.mark.parametrize(
    ("context", "continuation"), [([], [3]), ([3], []), ([3], [4] * (MAX_LENGTH + 1))], ids=["context", "empty", "long"]
)
def test_impossible_requests(context: list[int], continuation: list[int]) -> None:
    with pytest.raises(ConfigError, match="at most the model's 128 of the continuation"):
        scores(wrapped(tiny("llama")), [(None, context, continuation)])


def test_what_is_not_understood_is_left_to_stock() -> None:
    unknown = wrapped(TINY["granitemoe"]())
    assert not can_share(unknown)
    expected = scores(wrapped(TINY["granitemoe"](), HFLM), SHAPES["everything"])
    assert scores(unknown, SHAPES["everything"]) == expected, "to the last digit"
    stock = wrapped(tiny("llama"), HFLM)
    assert can_share(stock), "the functions take stock hf too"
    assert alike(score_tokens(stock, SHAPES["letters"], disable_tqdm=True), scores(stock, SHAPES["letters"]))


def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    both(peft.get_peft_model(tiny("llama"), lora).eval(), SHAPES["everything"])
    virtual = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    assert not can_share(wrapped(peft.get_peft_model(tiny("llama"), virtual).eval()))


def test_the_text_part_of_a_model_that_sees() -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    text = tiny("gemma3_text").config.to_dict()
    model = tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision))
    assert can_share(wrapped(model.eval()))
    both(model.eval(), SHAPES["everything"])


def test_recurrent_models_and_encoders_with_decoders_are_left_to_stock() -> None:
    recurrent = tf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert not can_share(wrapped(tf.MambaForCausalLM(recurrent).eval()))
    config = tf.T5Config(vocab_size=VOCAB, d_model=32, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    lm = wrapped(tf.T5ForConditionalGeneration(config).eval(), backend="seq2seq")
    assert not can_share(lm)
    assert len(scores(lm, SHAPES["stems"])) == 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


EXAMPLES = "".join(f"Question: What is {n} and {n}?\nAnswer: {2 * n}\n\n" for n in range(4))
QUESTIONS = [f"{EXAMPLES}Question: What is {n} and {n + 1}?\nAnswer:" for n in range(12)]
ASKED = [(question, f" {answer}") for question in QUESTIONS for answer in (1, 7, 13, "many")] + [("", "Hello")]


def test_strings_and_rolling_through_lm_eval(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = HFLM(pretrained=str(checkpoint), device="cpu", batch_size=4)
    ours = CNAHFLM(pretrained=str(checkpoint), device="cpu", batch_size=4)
    passes = read(monkeypatch)
    texts = [(text,) for text in ("A text.", *QUESTIONS[:2], "Much longer. " * 60)]
    setting = Setting(circuit(ours.architecture, per_layer=16), 0.0)
    for kind, arguments in (("loglikelihood", ASKED), ("loglikelihood_rolling", texts)):
        asked = instances(kind, arguments)
        ours.unsteer()
        untouched = getattr(stock, kind)(asked, disable_tqdm=True)
        assert getattr(ours, kind)(asked, disable_tqdm=True) == untouched, "to the last digit"
        assert not passes
        with steer(stock.model, setting):
            expected = getattr(stock, kind)(asked, disable_tqdm=True)
        ours.steer(setting)
        assert alike(getattr(ours, kind)(asked, disable_tqdm=True), expected) and not alike(expected, untouched)
        assert passes
        passes.clear()
