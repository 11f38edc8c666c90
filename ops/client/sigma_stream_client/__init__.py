"""How does another program ask over HTTP?

By `Client`, which blocks, or `AsyncClient`, whose calls are awaited.
"""

from sigma_stream_client.asynchronous import AsyncClient
from sigma_stream_client.blocking import Client
from sigma_stream_client.errors import (
    AccessError,
    ClientError,
    GoneError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from sigma_stream_client.records import Answer, DeadLetter, Result, StoredImage, WrittenImage
from sigma_stream_client.retries import RetryPolicy

__all__ = [
    "AccessError",
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadLetter",
    "GoneError",
    "NotFoundError",
    "RefusedError",
    "Result",
    "RetryPolicy",
    "StoredImage",
    "UnavailableError",
    "WrittenImage",
]
