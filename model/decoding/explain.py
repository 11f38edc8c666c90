"""Explaining an identifier: the caption that the model associates with it.

Paper, equation 6 and figures 3 and 7. The likeliest caption of an identifier is mostly one that is
likely of any: frequent words fill in what four codes do not say. So each token is chosen by
log p(token | identifier) + w·(log p(token | identifier) - log p(token | no identifier)), which
leans to what the identifier adds (Li et al. 2016, arXiv 1510.03055; Sanchez et al. 2023, arXiv
2306.17806). A token must be plausible by itself, or rare words would win by being rare (Li et al.
2023, arXiv 2210.15097).

Letters in shapes: B identifiers, V vocabulary, H hidden width.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from model.decoding.decoder import BeamCache, Decoder
from schemas.identifiers import LEVELS

# Captions end by themselves far earlier; the bound stops a model that has not learnt to end them.
MAX_CAPTION_TOKENS = 60

# Share of the likeliest token's probability that a token needs to be chosen.
PLAUSIBLE = 0.1

# Identifiers that are explained at once.
_BATCH = 64


def explain(decoder: Decoder, codes: Sequence[int]) -> str:
    """Caption of the first `len(codes)` levels of an identifier, without its suffix."""
    return explain_all(decoder, [codes])[0]


def explain_all(decoder: Decoder, identifiers: Sequence[Sequence[int]]) -> list[str]:
    """Captions of N identifiers, or of their first levels, without their suffixes.

    The suffix only tells images of a leaf apart. The profile says how far captions lean to what
    sets an identifier apart (`Profile.guidance`).
    """
    sigma = decoder.sigma
    # A model of a version without joint tokens was never shown a caption without an identifier.
    guidance = sigma.profile.guidance if sigma.prompts.joint else 0.0
    captions: list[str] = []
    for start in range(0, len(identifiers), _BATCH):
        codes = [identifier[:LEVELS] for identifier in identifiers[start : start + _BATCH]]
        captions += _explain_batch(decoder, codes, guidance)
    return captions


@torch.inference_mode()
def _explain_batch(
    decoder: Decoder, identifiers: Sequence[Sequence[int]], guidance: float
) -> list[str]:
    sigma = decoder.sigma
    end = sigma.prompts.end
    rows = [sigma.prompts.explain_prompt(codes) for codes in identifiers]
    if guidance:
        # The same captions behind no identifier, in the other half of the batch.
        rows += [sigma.prompts.explain_prompt(()) for _ in identifiers]
    prompt = decoder.read(decoder.read_rows(rows))
    output_weight = sigma.backbone.lm_head.weight
    forbidden = torch.tensor(sigma.prompts.identifier_vocabulary, device=decoder.device)
    states = prompt.state.unsqueeze(1)  # (B, 1, H), or (2B, 1, H)
    cache: BeamCache | None = None
    ended = torch.zeros(len(identifiers), dtype=torch.bool, device=decoder.device)
    steps: list[Tensor] = []
    for _ in range(MAX_CAPTION_TOKENS):
        logits = (states[:, 0] @ output_weight.T).float()
        logits[:, forbidden] = float("-inf")
        tokens = guided_tokens(torch.log_softmax(logits, -1), guidance).masked_fill(ended, end)
        ended = ended | (tokens == end)
        if bool(ended.all()):
            break
        steps.append(tokens)
        following = torch.cat([tokens, tokens]) if guidance else tokens
        states, cache = decoder.step(prompt, cache, following.unsqueeze(1))
    if not steps:
        return [""] * len(identifiers)
    captions: list[str] = []
    for row in torch.stack(steps, 1).tolist():
        caption = row[: row.index(end)] if end in row else row
        captions.append(str(sigma.tokenizer.decode(caption, skip_special_tokens=True)).strip())
    return captions


def guided_tokens(log_probabilities: Tensor, guidance: float) -> Tensor:
    """(B,) int64 next tokens of B captions.

    `log_probabilities` (2B, V): behind the identifiers, then behind none; (B, V) with guidance 0.
    """
    if not guidance:
        return log_probabilities.argmax(-1)
    own, prior = log_probabilities.chunk(2)
    scores = own + guidance * (own - prior)
    implausible = own < own.amax(-1, keepdim=True) + log(PLAUSIBLE)
    return scores.masked_fill(implausible, float("-inf")).argmax(-1)
