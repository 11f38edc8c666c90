"""The peer: beam search of `transformers`, with the tokens of a level as all that is allowed."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.network.sigma import SigmaModel
from ops.bench.query_texts import query_texts
from schemas.identifiers import LEVELS


def peer_p50_ms(sigma: SigmaModel, beams: int, queries: int, seed: int) -> float:
    """Milliseconds of one query, the median. Easier than ours: it knows no gallery."""
    backbone: Any = sigma.backbone.eval()
    levels: Sequence[Sequence[int]] = sigma.levels

    def answer(text: str) -> None:
        prompt = sigma.prompts.query_prompt(text)

        def allowed(_: int, tokens: Tensor) -> Sequence[int]:
            return levels[len(tokens) - len(prompt)]

        row = torch.tensor([prompt], device=sigma.device)
        with torch.inference_mode():
            backbone.generate(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                max_new_tokens=LEVELS,
                min_new_tokens=LEVELS,
                num_beams=beams,
                num_return_sequences=beams,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
            ).cpu()

    texts = query_texts(queries + 1, seed)
    answer(texts[0])
    took = []
    for text in texts[1:]:
        began = time.perf_counter()
        answer(text)
        took.append(time.perf_counter() - began)
    return float(np.median(took)) * 1e3
