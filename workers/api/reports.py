"""Reports: drift and recall as the jobs recorded them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path

from schemas.records import JsonObject
from workers.api.addresses import REPORT_PATH
from workers.api.answers import KEYED, only, refusals
from workers.api.context import ApiContext


def report_router(context: ApiContext) -> APIRouter:
    """The address of reports."""
    router = APIRouter(tags=["reports"])
    maintenance = context.maintenance

    @router.get(
        REPORT_PATH,
        operation_id="getReport",
        response_model=dict[str, Any],
        summary="Read the drift or recall report of the last 30 days",
        dependencies=[KEYED, only()],
        responses=refusals(),
    )
    async def report(report: Annotated[Literal["drift", "recall"], Path()]) -> JsonObject:
        made = maintenance.drift_report if report == "drift" else maintenance.recall_report
        return await context.calls.read(made)

    return router
