"""The application: all resources of the API behind one interface.

`workers.query.access_gate` says who may ask it.
"""

from fastapi import FastAPI

from workers.api.addresses import DESCRIPTION_PATH
from workers.api.arrival_waits import ArrivalWaits
from workers.api.arrivals import arrival_router
from workers.api.context import ApiContext
from workers.api.dead_letters import dead_letter_router
from workers.api.documentation import add_documentation
from workers.api.generations import generation_router
from workers.api.head_requests import HeadAsGet
from workers.api.health import health_router
from workers.api.identifiers import identifier_router
from workers.api.images import image_router
from workers.api.page import page_router
from workers.api.parts import add_parts
from workers.api.pictures import picture_router
from workers.api.queries import query_router
from workers.api.reports import report_router
from workers.query.refusals import add_refusals


def _forget_keys(app: FastAPI) -> None:
    """Take the key out of the description of a worker that needs none."""
    description = app.openapi()
    description["components"].pop("securitySchemes", None)
    for operations in description["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)


def application(context: ApiContext) -> FastAPI:
    """Build the HTTP interface of one query worker."""
    app = FastAPI(
        title="sigma-stream",
        description="Generative text-to-image retrieval over a stream of images",
        version="1",
        # A redirection would repeat the host that the client named.
        redirect_slashes=False,
        openapi_url=DESCRIPTION_PATH,
        # Their pages load scripts from other servers.
        docs_url=None,
        redoc_url=None,
    )
    waits = ArrivalWaits(context.calls)
    for router in (
        query_router(context),
        image_router(context, waits),
        arrival_router(context, waits),
        picture_router(context),
        identifier_router(context),
        generation_router(context),
        dead_letter_router(context),
        report_router(context),
        health_router(context),
        page_router(),
    ):
        app.include_router(router)
    add_documentation(app)
    add_refusals(app)
    app.add_middleware(HeadAsGet)
    # Once all addresses are there: the application describes itself anew after each.
    add_parts(app)
    if not context.links.signed:
        _forget_keys(app)
    return app
