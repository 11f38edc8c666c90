"""Explanations: what identifiers stand for, in words."""

import asyncio
from collections.abc import Sequence

from schemas.errors import UsageError
from workers.api.context import ApiContext
from workers.query.refusals import AnswerTimeoutError
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation

# Longest wait: each takes about as long as a batch of queries, and a few may be waiting.
_WAIT_S = 10.0


async def explanation_of(
    context: ApiContext, wanted: int | None, codes: Sequence[int]
) -> str | None:
    """What codes of a generation, the live one by default, stand for; None if it has no words."""

    def speaking(conn: Connection) -> tuple[Generation, bool]:
        generation = generations.live(conn) if wanted is None else generations.get(conn, wanted)
        if generation is None:
            raise UsageError("no generation is live; name one")
        return generation, generations.learnt_captions(conn, generation)

    generation, has_words = await context.calls.read(speaking)
    if not has_words:
        return None
    key = (generation.id, tuple(codes))
    known, caption = context.explanations.find(key)
    if known:
        return caption
    said = context.server.explain(generation.id, codes)
    try:
        caption = await asyncio.wait_for(asyncio.wrap_future(said), _WAIT_S)
    except TimeoutError:
        raise AnswerTimeoutError("no explanation came in time; try again") from None
    context.explanations.remember(key, caption)
    return caption
