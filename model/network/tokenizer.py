"""The text side of a profile: a byte-level BPE tokenizer, and the identifier tokens added to any tokenizer."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS, IdentifierShape

PAD, END = "<|endoftext|>", "<|im_end|>"
VISION_START, IMAGE, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
VIDEO = "<|video_pad|>"
SPECIAL = (PAD, END, VISION_START, IMAGE, VISION_END, VIDEO)
"""The special tokens of Qwen2.5-VL that this project uses; the small tokenizer has the same names."""

IDENTIFIER = "<|identifier|>"
CAPTION = "<|caption|>"
"""Added by this project: what follows is an identifier, or a description."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocabulary` tokens, all 256 bytes among them: any text of any language is encodable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, IDENTIFIER, CAPTION],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder (or a hub name for the `qwen-*` profiles), with the tokens that prompts need."""
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    missing = [
        token
        for token in SPECIAL
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id)
    ]
    if missing:
        raise RefuseToStartError(
            f"tokenizer {source} lacks {missing}; use one of the Qwen2.5-VL family or train one with stage 0"
        )
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    return int(found[0] if isinstance(found, list) else found)


def identifier_tokens(shape: IdentifierShape) -> list[list[str]]:
    """Token names of the five levels in code order: `<id1_0>` … `<id5_63>`, one set per level plus the suffixes."""
    counts = [*shape.codes, shape.suffixes]
    return [
        [f"<id{level}_{code}>" for code in range(count)]
        for level, count in enumerate(counts, start=1)
    ]


def add_identifier_tokens(
    tokenizer: PreTrainedTokenizerBase, shape: IdentifierShape
) -> list[list[int]]:
    """Add the identifier tokens (harmless when they are there); returns five lists of token ids in code order."""
    names = identifier_tokens(shape)
    tokenizer.add_tokens(
        [IDENTIFIER, CAPTION, *(name for level in names for name in level)], special_tokens=True
    )
    return level_token_ids(tokenizer, shape)


def level_token_ids(tokenizer: PreTrainedTokenizerBase, shape: IdentifierShape) -> list[list[int]]:
    """Five lists of token ids in code order; refuses a tokenizer made for another shape."""
    known = tokenizer.get_vocab()
    last = f"<id{LEVELS + 1}_{shape.suffixes}>"
    if (
        any(name not in known for level in identifier_tokens(shape) for name in level)
        or last in known
    ):
        raise RefuseToStartError(
            f"the tokenizer's identifier tokens do not fit the shape {shape.codes}+{shape.suffixes}; retrain"
        )
    return [[token_id(tokenizer, name) for name in level] for level in identifier_tokens(shape)]
