"""The captioner: a vision-language model that says what pictures without captions show.

Any model that `transformers` loads for pictures to text, such as Qwen2.5-VL or BLIP, from a folder
or the hub, without code of the checkpoint's own.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from model.network.encoders.pretrained import ready
from model.network.hub import loading, open_snapshot
from model.network.resize import Pixels
from schemas.errors import RefuseToStartError

# What a model that follows instructions is asked; the others continue an empty text.
_INSTRUCTION = "Describe this picture in one short sentence."

# Tokens of a caption at most: a sentence has fewer.
_MOST_TOKENS = 48

# Letters of a caption at most. A model that repeats itself would not end.
_MOST_LETTERS = 300

# The end of the first sentence: what follows is more often invented than seen.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


class VisionLanguageCaptioner:
    """Says one sentence of each picture; greedy, so that the same picture gets the same one."""

    def __init__(self, model: Any, processor: Any, source: str) -> None:
        """`source`: the folder, or the hub name with its revision."""
        self.source = source
        self._model = model
        self._processor = processor
        self._chats = getattr(processor, "chat_template", None) is not None

    @classmethod
    def load(cls, source: str) -> "VisionLanguageCaptioner":
        """Read it from a folder or a hub name.

        `RefuseToStartError` for a model that turns no pictures into text, or is not all there;
        `UsageError` and `RetryLaterError` as `open_snapshot`.
        """
        snapshot = open_snapshot(source, "captioner")
        folder = str(snapshot.folder)
        with loading(folder):
            read: Any = AutoModelForImageTextToText.from_pretrained
            model, report = read(
                folder, local_files_only=True, output_loading_info=True, dtype=_number_format()
            )
            processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        _require_whole(snapshot.folder, processor, report["missing_keys"])
        # Behind padding on the right a model would go on from the padding.
        processor.tokenizer.padding_side = "left"
        return cls(ready(model), processor, snapshot.source)

    @torch.inference_mode()
    def caption(self, images: Pixels) -> list[str]:
        """One sentence of each of N images, empty where the model says nothing."""
        pictures = [Image.fromarray(np.asarray(image)) for image in images]
        inputs = self._inputs(pictures).to(self._model.device)
        floats = {name: part for name, part in inputs.items() if part.is_floating_point()}
        for name, part in floats.items():
            inputs[name] = part.to(self._model.dtype)
        tokens = self._model.generate(**inputs, max_new_tokens=_MOST_TOKENS, do_sample=False)
        if self._chats:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        said = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [first_sentence(text) for text in said]

    def _inputs(self, pictures: Sequence[Image.Image]) -> Any:
        if not self._chats:
            return self._processor(images=list(pictures), return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": _INSTRUCTION}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return self._processor(
            text=[prompt] * len(pictures),
            # A list for each text: models that read several pictures want to know whose they are.
            images=[[picture] for picture in pictures],
            return_tensors="pt",
            padding=True,
        )


def first_sentence(text: str) -> str:
    """The first sentence of what a model says, without space around it, of bounded length."""
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0].strip()[:_MOST_LETTERS]


def _require_whole(folder: Path, processor: Any, missing: Sequence[str]) -> None:
    if missing:
        raise RefuseToStartError(
            f"{folder} must hold all weights of a captioner, got none for "
            f"{', '.join(sorted(missing)[:3])}; give the complete folder"
        )
    if getattr(processor, "image_processor", None) is None:
        raise RefuseToStartError(
            f"{folder} must hold the processor of a model that reads pictures, got a "
            f"{type(processor).__name__}; give the complete folder"
        )


def _number_format() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
