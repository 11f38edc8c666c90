"""HEAD: whatever answers GET answers it too, with the same head and no body (RFC 9110, 9.3.2)."""

from starlette.types import ASGIApp, Receive, Scope, Send

HEAD = "HEAD"
GET = "GET"


class HeadAsGet:
    """The ASGI middleware that lets an application see GET where HEAD was asked.

    The server leaves the body out: it still knows what was asked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == HEAD:
            # A copy: the server's own scope decides whether a body is sent.
            scope = {**scope, "method": GET}
        await self._app(scope, receive, send)
