"""The tokenizer: a byte-level BPE for the `tiny` profile; identifier tokens for any."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.network.answering_tokenizer import AnsweringTokenizer
from model.network.hub import loading
from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS, IdentifierShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# The special tokens of Qwen2.5-VL that this project uses; the small tokenizer has the same names.
PAD = "<|endoftext|>"
END = "<|im_end|>"
VISION_START = "<|vision_start|>"
IMAGE = "<|image_pad|>"
VISION_END = "<|vision_end|>"
VIDEO = "<|video_pad|>"

# All of them, in the order of the small tokenizer's ids.
SPECIAL = (PAD, END, VISION_START, IMAGE, VISION_END, VIDEO)

# What a tokenizer is read from: the whole of it, or its words beside `merges.txt`.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")

# Added by this project: an identifier follows.
IDENTIFIER = "<|identifier|>"

# Added by this project: a description follows.
CAPTION = "<|caption|>"


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, *, uncased: bool = False
) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE of at most `vocabulary` tokens.

    All 256 bytes are among them, so any text of any language can be encoded. With `uncased` a
    text's capital letters are read as small ones.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    if uncased:
        tokenizer.normalizer = normalizers.Lowercase()
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


def load_tokenizer(source: Path, *, answering: bool = False) -> "PreTrainedTokenizerBase":
    """Read a tokenizer from a folder; with `answering`, without `transformers` where that can be.

    `RefuseToStartError` when it lacks tokens that prompts need.
    """
    # Without them the library makes a tokenizer that knows nothing.
    if not any((source / name).is_file() for name in _TOKENIZER_FILES):
        raise RefuseToStartError(
            f"{source} must hold a tokenizer, as {' or '.join(_TOKENIZER_FILES)}, got none; give "
            "the complete folder"
        )
    with loading(source):
        tokenizer = _read(source, answering)
    require_tokens(tokenizer, source)
    return tokenizer


def _read(source: Path, answering: bool) -> "PreTrainedTokenizerBase":
    own = AnsweringTokenizer.read(source) if answering else None
    if own is not None:
        # It has what is used of the interface.
        return own  # type: ignore[return-value]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(source), local_files_only=True)


def require_tokens(tokenizer: "PreTrainedTokenizerBase", source: Path) -> None:
    """`RefuseToStartError` for a tokenizer that lacks special tokens of Qwen2.5-VL."""
    unknown = (None, tokenizer.unk_token_id)
    missing = [token for token in SPECIAL if tokenizer.convert_tokens_to_ids(token) in unknown]
    if missing:
        raise RefuseToStartError(
            f"tokenizer {source} lacks {', '.join(missing)}; "
            "use one of the Qwen2.5-VL family or train one with stage 0"
        )


def token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of one token."""
    ids = tokenizer.convert_tokens_to_ids(token)
    return int(ids[0] if isinstance(ids, list) else ids)


def identifier_tokens(shape: IdentifierShape) -> list[list[str]]:
    """Token names of the five levels in code order, `<id1_0>` … `<id5_63>`."""
    names: list[list[str]] = []
    for level, count in enumerate((*shape.codes, shape.suffixes), start=1):
        names.append([f"<id{level}_{code}>" for code in range(count)])
    return names


def add_identifier_tokens(
    tokenizer: "PreTrainedTokenizerBase", shape: IdentifierShape
) -> list[list[int]]:
    """Add the identifier tokens of a shape, in place; tokens that exist stay as they are.

    Returns their ids: five lists in code order.
    """
    names = chain.from_iterable(identifier_tokens(shape))
    # Special tokens are never split, and are left out of decoded text.
    tokenizer.add_tokens([IDENTIFIER, CAPTION, *names], special_tokens=True)
    return level_token_ids(tokenizer, shape)


def joint_tokens(shape: IdentifierShape) -> list[list[list[str]]]:
    """Token names of the pairs of id1 and a finer code, `<id1_0,id2_0>` …

    Three lists, of id2, id3 and id4; in each one list for each id1, in code order. What a finer
    code means depends on id1: every cluster has directions of its own.
    """
    first, *finer = shape.codes
    names: list[list[list[str]]] = []
    for level, count in enumerate(finer, start=2):
        of_level: list[list[str]] = []
        for id1 in range(first):
            of_level.append([f"<id1_{id1},id{level}_{code}>" for code in range(count)])
        names.append(of_level)
    return names


def add_joint_tokens(tokenizer: "PreTrainedTokenizerBase", shape: IdentifierShape) -> None:
    """Add the joint tokens of a shape, in place; tokens that exist stay as they are."""
    names = chain.from_iterable(chain.from_iterable(joint_tokens(shape)))
    tokenizer.add_tokens(list(names), special_tokens=True)


def joint_token_ids(
    tokenizer: "PreTrainedTokenizerBase", shape: IdentifierShape
) -> list[list[list[int]]]:
    """Ids of the joint tokens, as `joint_tokens` orders them; empty for a tokenizer without any."""
    known = tokenizer.get_vocab()
    names = joint_tokens(shape)
    if names[0][0][0] not in known:
        return []
    ids: list[list[list[int]]] = []
    for of_level in names:
        ids.append([[known[name] for name in of_id1] for of_id1 in of_level])
    return ids


def level_token_ids(
    tokenizer: "PreTrainedTokenizerBase", shape: IdentifierShape
) -> list[list[int]]:
    """Ids of the identifier tokens: five lists in code order.

    `RefuseToStartError` when the tokenizer was made for another shape.
    """
    known = tokenizer.get_vocab()
    names = identifier_tokens(shape)
    missing = [name for name in chain.from_iterable(names) if name not in known]
    # One suffix more than the shape has: the tokenizer belongs to a larger shape.
    surplus = f"<id{LEVELS + 1}_{shape.suffixes}>"
    if missing or surplus in known:
        raise RefuseToStartError(
            "the tokenizer's identifier tokens do not fit the shape "
            f"{shape.codes}+{shape.suffixes}; retrain"
        )
    return [[token_id(tokenizer, name) for name in level] for level in names]
