"""Dead letters: events that could not be used, listed and published again."""

from contextlib import closing
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict

from schemas.records import JsonObject
from stream.log.dead_letters import DeadLetter, Replay, dead_letters, replay
from workers.api.addresses import DEAD_LETTERS_PATH, REPLAY_PATH
from workers.api.answers import KEYED, only, refusals
from workers.api.context import ApiContext
from workers.repository.connection import Connection

# Dead letters of one answer.
_MOST_LETTERS = 500


class DeadLetterAnswer(BaseModel):
    """An event that could not be used, and where it is in the log."""

    model_config = ConfigDict(extra="forbid")

    place: str
    image_id: str
    code: str
    reason: str
    stage: str
    origin_topic: str | None
    origin_partition: int | None
    origin_offset: int | None
    published_at: AwareDatetime


class DeadLettersAnswer(BaseModel):
    """Dead letters, newest first."""

    model_config = ConfigDict(extra="forbid")

    dead_letters: list[DeadLetterAnswer]


class ReplayAnswer(BaseModel):
    """What a replay did."""

    model_config = ConfigDict(extra="forbid")

    replayed: int
    lost: int


def dead_letter_router(context: ApiContext) -> APIRouter:
    """The addresses of dead letters."""
    router = APIRouter(tags=["dead letters"])
    open_log = context.services.open_log

    def newest(limit: int) -> list[DeadLetter]:
        with closing(open_log()) as log:
            return dead_letters(log, limit=limit)

    def replayed(conn: Connection) -> Replay:
        with closing(open_log()) as log:
            return replay(log, conn)

    @router.get(
        DEAD_LETTERS_PATH,
        operation_id="listDeadLetters",
        response_model=DeadLettersAnswer,
        summary="List events that could not be used, newest first",
        dependencies=[KEYED, only("limit")],
        responses=refusals(),
    )
    async def listed(
        limit: Annotated[int, Query(ge=1, le=_MOST_LETTERS)] = 100,
    ) -> JsonObject:
        letters = await context.calls.run(lambda: newest(limit))
        return {"dead_letters": [_document(letter) for letter in letters]}

    @router.post(
        REPLAY_PATH,
        operation_id="replayDeadLetters",
        response_model=ReplayAnswer,
        summary="Publish the events of all dead letters again that are still refused",
        dependencies=[KEYED, only()],
        responses=refusals(),
    )
    async def replay_all() -> JsonObject:
        done = await context.calls.write(replayed)
        return {"replayed": done.replayed, "lost": done.lost}

    return router


def _document(letter: DeadLetter) -> JsonObject:
    return {
        "place": letter.place,
        "image_id": letter.image_id,
        "code": letter.code,
        "reason": letter.reason,
        "stage": letter.stage,
        "origin_topic": letter.origin_topic,
        "origin_partition": letter.origin_partition,
        "origin_offset": letter.origin_offset,
        "published_at": letter.published_at.isoformat(),
    }
