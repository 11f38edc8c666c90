"""Progress bars on standard error with rate and remaining time; plain lines when nobody watches a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from model.progress import Bar


class _TqdmBar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, n: int, **figures: float) -> None:
        """Advance; the figures are shown at most as often as the bar is redrawn."""
        if figures:
            self._bar.set_postfix(
                {name: f"{value:.3f}" for name, value in figures.items()}, refresh=False
            )
        self._bar.update(n)


@contextmanager
def bar(label: str, total: int) -> Iterator[Bar]:
    """A bar on standard error. Without a terminal it is redrawn every ten seconds, so that logs stay readable."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=total,
        desc=f"{label:<22}",
        mininterval=interval,
        maxinterval=interval,
        file=sys.stderr,
        dynamic_ncols=True,
    ) as inner:
        yield _TqdmBar(inner)
