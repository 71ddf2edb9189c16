"""The organism's tokenizer: byte-level BPE trained on its own corpus, with a chat template.

One beginning-of-sequence token: the template writes it, as Llama's does, and plain text gets it from the
post-processor. Encode rendered chat with ``add_special_tokens=False``.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lm_eval_cna.organism.corpus import ASSISTANT, BEGIN, END, PAD, SPECIAL_TOKENS, Document

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def train_tokenizer(documents: Iterable[Document], *, vocabulary: int, positions: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on `documents`; the same documents give the same tokenizer.

    `vocabulary` is the largest number of tokens, the 256 bytes and the special tokens included; `positions`, the
    longest sequence of the model, becomes ``model_max_length``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (segment.text for document in documents for segment in document)
    tokenizer.train_from_iterator(_without_special_tokens(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _without_special_tokens(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        yield text.strip("\n")
