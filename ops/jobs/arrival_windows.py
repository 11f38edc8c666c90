"""Arrival windows: what the drift monitors examine, from the database, a codebook and the log."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from model.drift.monitors import ArrivalWindow
from model.identifiers.codebook import Codebook
from schemas.errors import RejectInputError
from schemas.events import SERVED, QueryServed, decode
from schemas.records import BoolArray, FloatArray
from stream.log.event_log import EventLog
from workers.repository.generations import Generation
from workers.repository.monitoring import Arrivals

MAX_QUERIES = 500
"""Newest served queries whose best score is looked at."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ArrivalWindowReader:
    """Adds to arrivals what the database does not know of them."""

    checkpoints: Path
    """The folder of all generations' checkpoints."""
    open_log: Callable[[], EventLog]

    def read(self, generation: Generation, arrivals: Arrivals) -> ArrivalWindow:
        """The window of these arrivals of a generation, with its newest served queries."""
        with closing(self.open_log()) as events:
            scores = served_scores(events, generation.id)
        return ArrivalWindow(
            arrivals.codes,
            arrivals.embeddings,
            arrivals.confidences,
            self._agreement(generation, arrivals),
            arrivals.loads,
            scores,
        )

    def _agreement(self, generation: Generation, arrivals: Arrivals) -> BoolArray:
        """(n,) whether the codebook gives each image the id1 that the model gave it.

        (0,) where the generation's folder is not on this machine: agreement is not watched then.
        """
        folder = self.checkpoints / generation.folder
        if not (folder / "codebook.json").is_file():
            log.warning(
                "agreement not watched: no codebook on this machine",
                generation=generation.id,
                folder=str(folder),
            )
            return np.zeros(0, np.bool_)
        first_codes = Codebook.load(folder).encode(arrivals.embeddings)[:, 0]
        return np.asarray(first_codes == arrivals.codes[:, 0])


def served_scores(events: EventLog, generation: int) -> FloatArray:
    """(Q,) best score of the newest queries that a generation answered, Q at most `MAX_QUERIES`.

    Queries without an answer have no score and are left out.
    """
    served = []
    for query in _newest_served(events):
        if query.generation == generation and query.scores:
            served.append(query)
    # By time, because offsets of different partitions do not compare.
    served.sort(key=lambda query: query.served_at)
    return np.array([query.scores[0] for query in served[-MAX_QUERIES:]], np.float32)


def _newest_served(events: EventLog) -> list[QueryServed]:
    """The newest `MAX_QUERIES` of each partition."""
    served = []
    for (topic, partition), end in events.end_offsets([SERVED]).items():
        # As many of each partition as in all: the newest ones may be in a single partition.
        first = max(0, end - MAX_QUERIES)
        for event in events.read(topic, partition, first=first, limit=MAX_QUERIES):
            try:
                record = decode(topic, event.value)
            except RejectInputError:
                # Another program may write to the topic: its events are not ours to judge.
                continue
            if isinstance(record, QueryServed):
                served.append(record)
    return served
