"""Generations: which there are, and which of them answers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.errors import WorkFailedError
from schemas.records import JsonObject
from workers.api.addresses import GENERATIONS_PATH, PROMOTION_PATH, ROLLBACK_PATH
from workers.api.answers import CONFLICT, KEYED, only, refusals
from workers.api.context import ApiContext
from workers.api.images import ACCEPTED
from workers.api.json_body import RequestRefusedError
from workers.query.query_request import MAX_GENERATION
from workers.repository import generations as repository
from workers.repository.connection import Connection
from workers.repository.generations import Generation

# Longest wait for a change; a gate that asks two models takes minutes, and goes on.
_WAIT_S = 10.0


class GenerationAnswer(BaseModel):
    """One generation."""

    model_config = ConfigDict(extra="forbid")

    id: int
    state: str
    dropped: bool
    codebook: str | None
    created_at: AwareDatetime
    live_at: AwareDatetime | None
    gate: dict[str, Any] | None


class ChangeAnswer(BaseModel):
    """A promotion or rollback that was asked of this worker last."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["promote", "rollback"]
    generation: int | None
    state: Literal["running", "done", "failed"]
    problem: str | None


class GenerationsAnswer(BaseModel):
    """All generations, oldest first."""

    model_config = ConfigDict(extra="forbid")

    generations: list[GenerationAnswer]
    fallback: int | None = Field(description="the one that a rollback makes live")
    change: ChangeAnswer | None


@dataclass(frozen=True, slots=True)
class Change:
    """A promotion or rollback."""

    kind: str
    generation: int | None
    state: str
    problem: str | None = None

    def document(self) -> JsonObject:
        """The change as it is answered."""
        return {
            "kind": self.kind,
            "generation": self.generation,
            "state": self.state,
            "problem": self.problem,
        }


class GenerationChanges:
    """Makes one change at a time, for as long as that takes. For one event loop."""

    def __init__(self) -> None:
        self.last: Change | None = None
        self._running: asyncio.Task[None] | None = None

    async def make(self, kind: str, generation: int | None, change: Callable[[], None]) -> bool:
        """Make a change; returns whether it is done, or goes on.

        `RequestRefusedError` while another one goes on, or when the gate refuses it.
        """
        if self._running is not None and not self._running.done():
            raise RequestRefusedError(
                "another promotion or rollback is going on; wait until it is done", CONFLICT
            )
        running = asyncio.ensure_future(self._make(kind, generation, change))
        self._running = running
        done, _ = await asyncio.wait([running], timeout=_WAIT_S)
        if done:
            running.result()
        return bool(done)

    async def _make(self, kind: str, generation: int | None, change: Callable[[], None]) -> None:
        self.last = Change(kind, generation, "running")
        try:
            await asyncio.to_thread(change)
        except WorkFailedError as error:
            self.last = Change(kind, generation, "failed", str(error))
            raise RequestRefusedError(str(error), CONFLICT) from error
        except Exception as error:
            self.last = Change(kind, generation, "failed", str(error))
            raise
        self.last = Change(kind, generation, "done")


def generation_router(context: ApiContext) -> APIRouter:
    """The addresses of generations."""
    router = APIRouter(tags=["generations"])
    changes = GenerationChanges()
    maintenance = context.maintenance

    def listed(conn: Connection) -> JsonObject:
        known = repository.generations(conn)
        fallback = repository.find_fallback(known)
        return {
            "generations": [_document(generation) for generation in known],
            "fallback": None if fallback is None else fallback.id,
        }

    async def answer() -> JsonObject:
        change = None if changes.last is None else changes.last.document()
        return await context.calls.read(listed) | {"change": change}

    @router.get(
        GENERATIONS_PATH,
        operation_id="listGenerations",
        response_model=GenerationsAnswer,
        summary="List generations, with the verdicts of their gates",
        dependencies=[KEYED, only()],
        responses=refusals(),
    )
    async def all_generations() -> JsonObject:
        return await answer()

    @router.post(
        PROMOTION_PATH,
        operation_id="promoteGeneration",
        response_model=GenerationsAnswer,
        summary="Make a generation live, if its gate lets it",
        dependencies=[KEYED, only("force")],
        responses={ACCEPTED: {"model": GenerationsAnswer}, **refusals(CONFLICT)},
    )
    async def promoted(
        generation: Annotated[int, Path(ge=1, le=MAX_GENERATION)],
        force: Annotated[bool, Query(description="without asking the gate")] = False,
    ) -> Response:
        done = await changes.make(
            "promote", generation, lambda: maintenance.promote(generation, force)
        )
        return JSONResponse(await answer(), status_code=200 if done else ACCEPTED)

    @router.post(
        ROLLBACK_PATH,
        operation_id="rollBackGeneration",
        response_model=GenerationsAnswer,
        summary="Make the generation live that was live before",
        dependencies=[KEYED, only()],
        responses={ACCEPTED: {"model": GenerationsAnswer}, **refusals(CONFLICT)},
    )
    async def rolled_back() -> Response:
        done = await changes.make("rollback", None, maintenance.roll_back)
        return JSONResponse(await answer(), status_code=200 if done else ACCEPTED)

    return router


def _document(generation: Generation) -> JsonObject:
    gate = generation.config.gate
    live_at = generation.live_at
    return {
        "id": generation.id,
        "state": generation.display_state,
        "dropped": generation.dropped,
        "codebook": generation.codebook_version,
        "created_at": generation.created_at.isoformat(),
        "live_at": None if live_at is None else live_at.isoformat(),
        "gate": None if gate is None else gate.to_json(),
    }
