"""Progress of long computations: the caller decides whether a person or a log reads it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """One running task."""

    def update(self, n: int, **figures: float) -> None:
        """`n` more steps are done; `figures` are shown beside the rate."""
        ...


# `progress(label, total)` opens a bar with rate and remaining time; it closes with the context.
Progress = Callable[[str, int], AbstractContextManager[Bar]]


class _QuietBar:
    def update(self, n: int, **figures: float) -> None:
        """Show nothing."""


def quiet(label: str, total: int) -> AbstractContextManager[Bar]:
    """A `Progress` that shows nothing, for tests and services."""
    return nullcontext(_QuietBar())
