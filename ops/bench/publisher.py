"""The publisher: arrivals at a steady rate, as a producer would send them.

And the arrivals of benchmarks with the stub model: pictures of noise.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from schemas.errors import RetryLaterError
from schemas.events import ImageArrived
from stream.log.event_log import EventLog, Message, message

# Side of a noise picture: decoding takes no time, and no two are alike.
_NOISE_SIDE_PX = 12

# Batches a second in which a publisher sends its events.
_SLICES_PER_S = 10

# Seconds before a batch is tried again; arrivals that are due meanwhile wait.
_RETRY_PAUSE_S = 0.5

# Tries of one batch. Pauses alone are half a minute, and each try waits for the log besides.
_TRIES = 60


class Publisher(threading.Thread):
    """Publishes events evenly over some seconds, 0 for all at once.

    What an unavailable log does not take is published again.
    """

    def __init__(self, log: EventLog, events: Sequence[ImageArrived], seconds: float) -> None:
        super().__init__(daemon=True)
        self.unpublished = 0
        """Events that the log did not take in all tries."""
        self._log = log
        self._events = events
        self._seconds = seconds

    def run(self) -> None:
        """Publish all events. Call it to publish in the caller's thread."""
        slices = max(1, int(self._seconds * _SLICES_PER_S))
        began = time.monotonic()
        for number in range(slices):
            # Bounds by integers: each event is in exactly one slice.
            first = number * len(self._events) // slices
            end = (number + 1) * len(self._events) // slices
            self._publish(arrival_messages(self._events[first:end]))
            if self._seconds:
                # From the begin, so that a slow log does not lower the rate of what follows.
                next_due = began + (number + 1) / _SLICES_PER_S
                time.sleep(max(0.0, next_due - time.monotonic()))

    def _publish(self, messages: Sequence[Message]) -> None:
        for _ in range(_TRIES):
            try:
                self._log.publish(None, messages)
                return
            except RetryLaterError:
                time.sleep(_RETRY_PAUSE_S)
        self.unpublished += len(messages)


def arrival_messages(events: Sequence[ImageArrived]) -> list[Message]:
    """The messages of arrivals, each with its image id as the key."""
    # The key decides the partition, so all events of an image stay in their order.
    return [message(event, event.image_id) for event in events]


def noise_arrivals(folder: Path, count: int, seed: int) -> list[ImageArrived]:
    """Write pictures of noise below `folder`; return their arrivals."""
    rng = np.random.default_rng(seed)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    events = []
    for number in range(count):
        pixels = rng.integers(0, 256, (_NOISE_SIDE_PX, _NOISE_SIDE_PX, 3), dtype=np.uint8)
        path = images / f"{number}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        events.append(ImageArrived(f"image-{number:06}", path.as_uri()))
    return events
