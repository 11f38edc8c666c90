"""Prompts of the paper as token rows (section 3.2): image → identifier, identifier → caption, caption → identifier."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from model.network.tokenizer import (
    CAPTION,
    END,
    IDENTIFIER,
    IMAGE,
    VISION_END,
    VISION_START,
    token_id,
)

MEMORIZE = "Generate the identifier for this image."
COMPREHEND = "Describe the image represented by the identifier"
DESCRIBE = "Describe the image."


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One training sequence: `tokens`, how many of them are `prompt` (no loss), and what belongs to it.

    `image` is a row of the training images or None; `identifier` are the positions of identifier tokens whose hidden
    states feed the soft-label head; `soft_label` is the teacher's score of equation 7 or None.
    """

    tokens: tuple[int, ...]
    prompt: int
    image: int | None = None
    identifier: tuple[int, int] | None = None
    soft_label: float | None = None


class PromptBuilder:
    """Builds token rows with one tokenizer; caption texts are cut at `limit` tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, levels: Sequence[Sequence[int]], limit: int
    ) -> None:
        self.levels = levels
        self.limit = limit
        self._tokenizer = tokenizer
        special = {
            name: token_id(tokenizer, name)
            for name in (IMAGE, VISION_START, VISION_END, IDENTIFIER, CAPTION, END)
        }
        self.image, self.end, self.identifier_mark, self.caption_mark = (
            special[IMAGE],
            special[END],
            special[IDENTIFIER],
            special[CAPTION],
        )
        self._vision = special[VISION_START], special[VISION_END]
        self._memorize = self.text(MEMORIZE)
        self._comprehend = self.text(COMPREHEND)
        self._describe = self.text(DESCRIBE)

    def text(self, text: str) -> list[int]:
        """Plain text as at most `limit` tokens; what looks like a special token in it stays text."""
        return [
            int(i)
            for i in self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ][: self.limit]
        ]

    def identifier(self, codes: Sequence[int]) -> list[int]:
        """Tokens of the first `len(codes)` levels of an identifier."""
        return [self.levels[level][int(code)] for level, code in enumerate(codes)]

    def image_prompt(self, image_tokens: int) -> list[int]:
        """`<image> Generate the identifier for this image.`, ready for id1."""
        return [*self._picture(image_tokens), *self._memorize, self.identifier_mark]

    def query_prompt(self, text: str) -> list[int]:
        """A text query, ready for id1."""
        return [*self.text(text), self.identifier_mark]

    def explain_prompt(self, codes: Sequence[int]) -> list[int]:
        """`Describe the image represented by the identifier <image ID>`, ready for the caption."""
        return [*self._comprehend, *self.identifier(codes), self.caption_mark]

    def memorize(self, image: int, image_tokens: int, codes: Sequence[int]) -> TrainingExample:
        """Image → identifier (equation 4)."""
        prompt = self.image_prompt(image_tokens)
        return TrainingExample(
            tokens=(*prompt, *self.identifier(codes)), prompt=len(prompt), image=image
        )

    def comprehend(self, codes: Sequence[int], caption: str) -> TrainingExample:
        """Identifier → caption (equation 6)."""
        prompt = self.explain_prompt(codes)
        return TrainingExample(tokens=(*prompt, *self.text(caption), self.end), prompt=len(prompt))

    def align(
        self, caption: str, codes: Sequence[int], soft_label: float | None
    ) -> TrainingExample:
        """Caption → identifier, with the teacher's score for the soft-label head (equations 10 and 11)."""
        prompt = self.query_prompt(caption)
        tokens = (*prompt, *self.identifier(codes))
        return TrainingExample(
            tokens=tokens,
            prompt=len(prompt),
            identifier=(len(prompt), len(tokens)),
            soft_label=soft_label,
        )

    def describe(self, image: int, image_tokens: int, caption: str) -> TrainingExample:
        """Image → caption: what a pretrained vision-language model can do already (stage 0)."""
        prompt = [*self._picture(image_tokens), *self._describe, self.caption_mark]
        return TrainingExample(
            tokens=(*prompt, *self.text(caption), self.end), prompt=len(prompt), image=image
        )

    def _picture(self, image_tokens: int) -> list[int]:
        return [self._vision[0], *[self.image] * image_tokens, self._vision[1]]
