"""Health: whether the worker runs, whether it answers, and its metrics."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict

from workers.api.addresses import HEALTH_PATH, READINESS_PATH
from workers.api.answers import KEYED, refusals
from workers.api.context import ApiContext
from workers.runtime.metrics_server import METRICS_PATH

# What `/readyz` tells somebody without a key, where keys are configured.
_NOT_TOLD = "not ready; the reason is told to whoever sends a key"

_OK = 200
_UNAVAILABLE = 503


class HealthAnswer(BaseModel):
    """Whether the threads of the worker run."""

    model_config = ConfigDict(extra="forbid")

    alive: bool


class ReadinessAnswer(BaseModel):
    """Whether the worker answers, and why not."""

    model_config = ConfigDict(extra="forbid")

    ready: bool
    problem: str


def health_router(context: ApiContext) -> APIRouter:
    """The addresses that load balancers and Prometheus ask."""
    router = APIRouter(tags=["operation"])
    server = context.server
    registry = context.metrics.registry

    @router.get(
        HEALTH_PATH,
        operation_id="getHealth",
        response_model=HealthAnswer,
        summary="Alive",
        responses={**refusals(), _UNAVAILABLE: {"model": HealthAnswer}},
    )
    async def healthz() -> Response:
        alive = server.alive
        return JSONResponse({"alive": alive}, status_code=_OK if alive else _UNAVAILABLE)

    @router.get(
        READINESS_PATH,
        operation_id="getReadiness",
        response_model=ReadinessAnswer,
        summary="Model warm, trie loaded, queries answered",
        responses={**refusals(), _UNAVAILABLE: {"model": ReadinessAnswer}},
    )
    async def readyz(request: Request) -> Response:
        problem = server.problem
        if problem and not (request.state.trusted or server.problem_is_public):
            problem = _NOT_TOLD
        return JSONResponse(
            {"ready": not problem, "problem": problem},
            status_code=_UNAVAILABLE if problem else _OK,
        )

    @router.get(
        METRICS_PATH,
        operation_id="getMetrics",
        response_class=Response,
        summary="Prometheus metrics",
        dependencies=[KEYED],
        responses={_OK: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals()},
    )
    async def measured() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
