"""Peer libraries: vector indexes that others made, installed by the extra `bench`."""

import importlib
from types import ModuleType

from schemas.errors import RefuseToStartError


def peer_library(name: str) -> ModuleType:
    """Import one. `RefuseToStartError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RefuseToStartError(
            f"{name} is compared with and is not installed; install sigma-stream[bench], or leave"
            " the peers of sigma bench stream out with --alone"
        ) from error
