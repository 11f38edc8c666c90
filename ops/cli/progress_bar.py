"""Progress bars on standard error, with rate and remaining time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from model.progress import Bar

# Seconds between two redraws on a terminal: smooth to the eye.
TERMINAL_REDRAW_S = 0.2

# Seconds between two redraws into a file.
LOG_REDRAW_S = 10.0


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
    """Show a bar on standard error while the block runs."""
    # Without a terminal a rare redraw keeps logs readable.
    interval = TERMINAL_REDRAW_S if sys.stderr.isatty() else LOG_REDRAW_S
    with tqdm(
        total=total,
        desc=f"{label:<22}",
        mininterval=interval,
        maxinterval=interval,
        file=sys.stderr,
        dynamic_ncols=True,
    ) as inner:
        yield _TqdmBar(inner)
