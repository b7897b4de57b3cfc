"""The tokenizer of a decoder made from scratch: byte-level BPE trained on the instructions, with a chat template."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cloc.mllm.boxtext import BINS
from cloc.mllm.conversation import IMAGE_TOKEN

_PAD, _BOS, _EOS, _USER, _ASSISTANT = "<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"
_SPECIAL = (_PAD, _BOS, _EOS, IMAGE_TOKEN, _USER, _ASSISTANT)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Times that the numbers of boxes are shown to the trainer, so that each becomes one token.
_NUMBER_WEIGHT = 1000


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on texts (streamed); equal texts give an equal tokenizer.

    Any text can be written (bytes are the fallback), and each bin of a box is one token where `vocab_size` has room.
    """
    bpe = Tokenizer(models.BPE())
    # A blank before the first word, so that a word is the same token wherever it stands.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_with_numbers(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        additional_special_tokens=[AddedToken(token, special=True) for token in (IMAGE_TOKEN, _USER, _ASSISTANT)],
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _with_numbers(texts: Iterable[str]) -> Iterable[str]:
    yield from texts
    for _ in range(_NUMBER_WEIGHT):
        for number in range(BINS):
            yield f"[{number} {number}]"


def number_ids(tokenizer: PreTrainedTokenizerFast) -> dict[int, float]:
    """Tokens that are a bin's number, with and without a blank before it, and the middle of the bin in [0, 1]."""
    found = {}
    for number in range(BINS):
        for written in (str(number), f"Ġ{number}"):
            token = tokenizer.convert_tokens_to_ids(written)
            if token is not None:
                found[int(token)] = (number + 0.5) / BINS
    return found
