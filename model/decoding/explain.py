"""Explaining an identifier: the caption that the model associates with it (paper, equation 6, figures 3 and 7)."""

from collections.abc import Sequence

import torch

from model.decoding.decoder import BeamCache, Decoder

_LONGEST = 60


@torch.inference_mode()
def explain(decoder: Decoder, codes: Sequence[int]) -> str:
    """Greedy caption of the first `len(codes)` levels of an identifier, at most 60 tokens."""
    sigma = decoder.sigma
    prompt = decoder.read_rows([sigma.prompts.explain_prompt(codes)])
    states = prompt.state.unsqueeze(1)
    weight = sigma.backbone.lm_head.weight
    silent = torch.tensor(
        [token for level in sigma.levels for token in level], device=decoder.device
    )
    spoken: list[int] = []
    held: BeamCache | None = None
    for _ in range(_LONGEST):
        logits = (states[0, 0] @ weight.T).float()
        logits[silent] = float("-inf")
        token = int(logits.argmax())
        if token == sigma.prompts.end:
            break
        spoken.append(token)
        states, held = decoder.step(prompt, held, torch.tensor([[token]], device=decoder.device))
    return str(sigma.tokenizer.decode(spoken, skip_special_tokens=True)).strip()
