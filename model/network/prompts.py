"""Prompts and training examples as token rows (paper, section 3.2).

Image → identifier, identifier → caption, caption → identifier, and image → caption for stage 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from model.network.tokenizer import (
    CAPTION,
    END,
    IDENTIFIER,
    IMAGE,
    VISION_END,
    VISION_START,
    token_id,
)
from schemas.identifiers import LEVELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Behind an image (section 3.2.1).
MEMORIZE = "Generate the identifier for this image."

# Before an identifier (section 3.2.2).
COMPREHEND = "Describe the image represented by the identifier"

# Behind an image, in stage 0.
DESCRIBE = "Describe the image."


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One training sequence: `tokens`, the first `prompt_length` of which carry no loss.

    `image` is the row of a training image. `identifier_span`: begin and end of the identifier
    tokens, whose hidden states feed the soft-label head (equation 8). `soft_label` is the teacher's
    score of equation 7, in 0..1. Each is None where the example has no such part.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    image: int | None = None
    identifier_span: tuple[int, int] | None = None
    soft_label: float | None = None
    vector: int | None = None
    """Row of the training set's vectors that stands in the image's place."""
    is_query: bool = False
    """Whether that vector stands for a query: see `model.training.vector_set`."""

    hidden: tuple[int, ...] = ()
    """Places of the row that the model does not see, though it is to predict what stands there."""

    query: int | None = None
    """Row of the encoder's vectors of queries that the query head is to give for the prompt."""

    @property
    def is_visual(self) -> bool:
        """Whether an image, or a vector in its place, is in the sequence."""
        return self.image is not None or self.vector is not None


class PromptBuilder:
    """Builds token rows with one tokenizer; texts are cut at `limit` tokens."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        levels: Sequence[Sequence[int]],
        limit: int,
        joint: Sequence[Sequence[Sequence[int]]] = (),
    ) -> None:
        """`levels`: token ids of the five identifier levels in code order.

        `joint`: those of the joint tokens (`Profile.joint_tokens`), or none.
        """
        self.levels = levels
        self.joint = joint
        self.limit = limit
        self.image = token_id(tokenizer, IMAGE)
        self.end = token_id(tokenizer, END)
        self.identifier_mark = token_id(tokenizer, IDENTIFIER)
        self.caption_mark = token_id(tokenizer, CAPTION)
        self._tokenizer = tokenizer
        self._vision_start = token_id(tokenizer, VISION_START)
        self._vision_end = token_id(tokenizer, VISION_END)
        self._memorize = self.text(MEMORIZE)
        self._comprehend = self.text(COMPREHEND)
        self._describe = self.text(DESCRIBE)

    @property
    def identifier_vocabulary(self) -> list[int]:
        """All tokens that spell identifiers, which no plain text has."""
        joint = chain.from_iterable(chain.from_iterable(self.joint))
        return [*chain.from_iterable(self.levels), *joint]

    def text(self, text: str) -> list[int]:
        """At most `limit` tokens of plain text; what looks like a special token stays text."""
        # A query must not be able to forge an image or an identifier.
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return [int(token) for token in encoded["input_ids"][: self.limit]]

    def identifier(self, codes: Sequence[int]) -> list[int]:
        """Tokens of the first `len(codes)` levels of an identifier."""
        return [self.levels[level][int(code)] for level, code in enumerate(codes)]

    def image_prompt(self, image_tokens: int) -> list[int]:
        """`<image> Generate the identifier for this image.`, ready for id1."""
        return [*self._image(image_tokens), *self._memorize, self.identifier_mark]

    def query_prompt(self, text: str) -> list[int]:
        """A text query, ready for id1."""
        return [*self.text(text), self.identifier_mark]

    def vector_prompt(self, tokens: int) -> list[int]:
        """An encoder's vector of a picture, as so many tokens; ready for id1."""
        return [*self._image(tokens), self.identifier_mark]

    def vector_query_prompt(self, tokens: int, text: str = "") -> list[int]:
        """An encoder's vector of a query, as so many tokens, and a text behind it; ready for id1.

        Without the marks of an image: what a query means is less certain than what a picture is.
        """
        return [*[self.image] * tokens, *self.text(text), self.identifier_mark]

    def explain_prompt(self, codes: Sequence[int]) -> list[int]:
        """`Describe the image represented by the identifier <image ID>`, ready for the caption.

        With joint tokens the identifier and those, behind the mark that announces an identifier in
        the other stages. No codes at all ask for a caption of any image.
        """
        # There is no token for a suffix beyond the shape, which means nothing anyway.
        beyond = len(codes) > LEVELS and int(codes[-1]) >= len(self.levels[-1])
        known = codes[:LEVELS] if beyond else codes
        identifier = self.identifier(known)
        if self.joint:
            return [self.identifier_mark, *identifier, *self._joint(known), self.caption_mark]
        return [*self._comprehend, *identifier, self.caption_mark]

    def _joint(self, codes: Sequence[int]) -> list[int]:
        """Joint tokens of the first `len(codes)` levels; the suffix has none."""
        tokens: list[int] = []
        for of_level, code in zip(self.joint, codes[1:], strict=False):
            tokens.append(of_level[int(codes[0])][int(code)])
        return tokens

    def memorize(self, image: int, image_tokens: int, codes: Sequence[int]) -> TrainingExample:
        """Image → identifier (equation 4). `image` is a row, `image_tokens` its visual tokens."""
        prompt = self.image_prompt(image_tokens)
        tokens = (*prompt, *self.identifier(codes))
        return TrainingExample(tokens, prompt_length=len(prompt), image=image)

    def comprehend(self, codes: Sequence[int], caption: str) -> TrainingExample:
        """Identifier → caption (equation 6)."""
        prompt = self.explain_prompt(codes)
        tokens = (*prompt, *self.text(caption), self.end)
        return TrainingExample(tokens, prompt_length=len(prompt))

    def align(
        self, caption: str, codes: Sequence[int], soft_label: float | None
    ) -> TrainingExample:
        """Caption → identifier, with the teacher's score of the pair (equations 10 and 11)."""
        prompt = self.query_prompt(caption)
        tokens = (*prompt, *self.identifier(codes))
        return TrainingExample(
            tokens,
            prompt_length=len(prompt),
            identifier_span=(len(prompt), len(tokens)),
            soft_label=soft_label,
        )

    def read_vector(self, vector: int, tokens: int, codes: Sequence[int]) -> TrainingExample:
        """Vector of a picture → identifier. `vector` is a row, `tokens` what it becomes."""
        prompt = self.vector_prompt(tokens)
        row = (*prompt, *self.identifier(codes))
        return TrainingExample(row, prompt_length=len(prompt), vector=vector)

    def read_query_vector(
        self, vector: int, tokens: int, codes: Sequence[int], text: str = ""
    ) -> TrainingExample:
        """Vector that stands for a query → identifier."""
        prompt = self.vector_query_prompt(tokens, text)
        row = (*prompt, *self.identifier(codes))
        return TrainingExample(row, prompt_length=len(prompt), vector=vector, is_query=True)

    def with_identifier(self, example: TrainingExample, codes: Sequence[int]) -> TrainingExample:
        """The same prompt before another identifier."""
        prompt = example.tokens[: example.prompt_length]
        return replace(example, tokens=(*prompt, *self.identifier(codes)))

    def with_hidden_words(
        self, example: TrainingExample, share: float, seed: Sequence[int]
    ) -> TrainingExample:
        """A caption of which the model sees not all words behind its prompt; others as they are.

        The same seed hides the same of the same sequence.
        """
        start = example.prompt_length
        if not share or start >= len(example.tokens):
            return example
        if example.tokens[start - 1] != self.caption_mark:
            return example
        rng = np.random.default_rng((*seed, *example.tokens))
        hidden = np.flatnonzero(rng.random(len(example.tokens) - start) < share) + start
        return replace(example, hidden=tuple(hidden.tolist()))

    def judge(self, caption: str, codes: Sequence[int], soft_label: float) -> TrainingExample:
        """A caption beside an identifier, for the soft-label head alone: no token is learnt.

        What equation 11 needs of pairs that do not belong together.
        """
        pair = self.align(caption, codes, soft_label)
        return replace(pair, prompt_length=len(pair.tokens))

    def describe(self, image: int, image_tokens: int, caption: str) -> TrainingExample:
        """Image → caption: what a pretrained vision-language model can do already (stage 0)."""
        prompt = [*self._image(image_tokens), *self._describe, self.caption_mark]
        tokens = (*prompt, *self.text(caption), self.end)
        return TrainingExample(tokens, prompt_length=len(prompt), image=image)

    def _image(self, image_tokens: int) -> list[int]:
        """Placeholders that visual tokens replace, between the marks of Qwen2.5-VL."""
        return [self._vision_start, *[self.image] * image_tokens, self._vision_end]
