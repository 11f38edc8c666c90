"""Explaining an identifier: the caption that the model associates with it.

Paper, equation 6 and figures 3 and 7.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from model.decoding.decoder import BeamCache, Decoder

# Captions end by themselves far earlier; the bound stops a model that has not learnt to end them.
MAX_CAPTION_TOKENS = 60

# Identifiers that are explained at once.
_BATCH = 64


def explain(decoder: Decoder, codes: Sequence[int]) -> str:
    """Greedy caption of the first `len(codes)` levels of an identifier."""
    return explain_all(decoder, [codes])[0]


def explain_all(decoder: Decoder, identifiers: Sequence[Sequence[int]]) -> list[str]:
    """Greedy captions of N identifiers, or of their first levels."""
    captions: list[str] = []
    for start in range(0, len(identifiers), _BATCH):
        captions += _explain_batch(decoder, identifiers[start : start + _BATCH])
    return captions


@torch.inference_mode()
def _explain_batch(decoder: Decoder, identifiers: Sequence[Sequence[int]]) -> list[str]:
    sigma = decoder.sigma
    end = sigma.prompts.end
    prompt = decoder.read_rows([sigma.prompts.explain_prompt(codes) for codes in identifiers])
    output_weight = sigma.backbone.lm_head.weight
    # A caption is plain text: the identifier tokens of all levels are forbidden in it.
    forbidden = torch.tensor(list(chain.from_iterable(sigma.levels)), device=decoder.device)
    states = prompt.state.unsqueeze(1)  # (B, 1, H)
    cache: BeamCache | None = None
    ended = torch.zeros(len(identifiers), dtype=torch.bool, device=decoder.device)
    steps: list[Tensor] = []
    for _ in range(MAX_CAPTION_TOKENS):
        logits = (states[:, 0] @ output_weight.T).float()
        logits[:, forbidden] = float("-inf")
        tokens = logits.argmax(-1).masked_fill(ended, end)
        ended = ended | (tokens == end)
        if bool(ended.all()):
            break
        steps.append(tokens)
        states, cache = decoder.step(prompt, cache, tokens.unsqueeze(1))
    if not steps:
        return [""] * len(identifiers)
    captions: list[str] = []
    for row in torch.stack(steps, 1).tolist():
        caption = row[: row.index(end)] if end in row else row
        captions.append(str(sigma.tokenizer.decode(caption, skip_special_tokens=True)).strip())
    return captions
