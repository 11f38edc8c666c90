"""The errors of the client, by what the caller does next."""


class ClientError(Exception):
    """Any error of the client; its text is the service's own sentence."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """`status`: the HTTP status, None where no answer came."""
        super().__init__(message)
        self.status = status


class RefusedError(ClientError):
    """The request can never be answered; correct it."""


class AccessError(ClientError):
    """The key is missing, unknown, or its scope is not enough."""


class NotFoundError(ClientError):
    """There is no such image, or it was deleted."""


class GoneError(ClientError):
    """The cursor has expired, or its generation was dropped; ask anew."""


class UnavailableError(ClientError):
    """No good answer came within the client's patience; try again later."""


_BY_STATUS: dict[int, type[ClientError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    410: GoneError,
}


def error_of(status: int, sentence: str) -> ClientError:
    """The error of a refusal."""
    if status == 429 or status >= 500:
        return UnavailableError(sentence, status)
    return _BY_STATUS.get(status, RefusedError)(sentence, status)
