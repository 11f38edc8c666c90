"""Explaining an identifier: the caption that the model associates with it.

Paper, equation 6 and figures 3 and 7.
"""

from collections.abc import Sequence
from itertools import chain

import torch

from model.decoding.decoder import BeamCache, Decoder

# Captions end by themselves far earlier; the bound stops a model that has not learnt to end them.
MAX_CAPTION_TOKENS = 60


@torch.inference_mode()
def explain(decoder: Decoder, codes: Sequence[int]) -> str:
    """Greedy caption of the first `len(codes)` levels of an identifier."""
    sigma = decoder.sigma
    prompt = decoder.read_rows([sigma.prompts.explain_prompt(codes)])
    output_weight = sigma.backbone.lm_head.weight
    # A caption is plain text: the identifier tokens of all levels are forbidden in it.
    forbidden = torch.tensor(list(chain.from_iterable(sigma.levels)), device=decoder.device)
    states = prompt.state.unsqueeze(1)  # (1, 1, H)
    cache: BeamCache | None = None
    caption: list[int] = []
    for _ in range(MAX_CAPTION_TOKENS):
        logits = (states[0, 0] @ output_weight.T).float()
        logits[forbidden] = float("-inf")
        token = int(logits.argmax())
        if token == sigma.prompts.end:
            break
        caption.append(token)
        next_token = torch.tensor([[token]], device=decoder.device)
        states, cache = decoder.step(prompt, cache, next_token)
    return str(sigma.tokenizer.decode(caption, skip_special_tokens=True)).strip()
