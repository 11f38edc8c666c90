"""The job `drift-report`: whether what arrives is still what arrived when the generation went live.

The first arrivals of a live generation become its reference. After that, each run examines one
window: a sample of all that arrived since the last one. So windows never overlap, and the
false-alarm rate does not depend on how many images arrive in an hour.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog

from model.drift.monitors import (
    NOVEL_SHARE,
    REFERENCE_IMAGES,
    WINDOW_IMAGES,
    ArrivalWindow,
    DriftReference,
    MonitorResult,
    RecallCount,
    alarm_level,
    code_shares,
    examine,
    fit_reference,
    under_suffix_pressure,
)
from model.identifiers.quality import gini
from ops.jobs.alarm_updates import (
    CLEAR_AFTER_WINDOWS,
    RecallChange,
    clear_alarms_of_others,
    update_alarms,
)
from ops.jobs.arrival_windows import ArrivalWindowReader
from ops.jobs.known_items import known_items_of, search_ranks
from schemas.errors import SigmaError
from schemas.job_results import (
    CodeShares,
    DriftCalibration,
    DriftReportResult,
    DriftReportSkipped,
    LeafLoads,
    MonitorReading,
)
from schemas.training_record import VECTORS
from workers.repository import monitoring
from workers.repository.connection import Connection
from workers.repository.generations import Generation, live
from workers.repository.monitoring import Arrivals, StoredReference

if TYPE_CHECKING:
    from ops.jobs.known_items import OpenSearcher

JOB = "drift-report"
"""Name of the job, under which its runs are stored."""

MIN_KNOWN_ITEMS = 20
"""Known-item queries below which recall is not measured: a single one would be five points."""

_NOVEL_COHORT = "novel"
"""Cohort of the queries for the most novel images; it is not recorded."""

MeasureRecall = Callable[[Generation, Sequence[int]], RecallCount | None]
"""Recall of the first, most novel of these images; None when it cannot be measured."""

log = structlog.get_logger()


def novel_recall(
    conn: Connection,
    generation: Generation,
    image_keys: Sequence[int],
    open_searcher: "OpenSearcher",
) -> RecallCount | None:
    """How many of the most novel images are among the ten best answers to their caption.

    Those without captions are asked for by their own pictures where the generation reads vectors.
    `image_keys` come most novel first; the first `NOVEL_SHARE` of those that can be asked for are
    asked for. None when they are too few. It loads a model, so only references and windows with an
    alarm are measured.
    """
    pictures = generation.config.training.reads == VECTORS
    queries = known_items_of(conn, image_keys, _NOVEL_COHORT, pictures=pictures)
    asked = queries[: round(NOVEL_SHARE * len(queries))]
    if len(asked) < MIN_KNOWN_ITEMS:
        return None
    with closing(open_searcher(generation)) as searcher:
        ranks = search_ranks(searcher, asked).ranks
    hits = sum(rank is not None for rank in ranks)
    return RecallCount(hits, len(asked))


@dataclass(frozen=True, slots=True)
class DriftReporter:
    """Makes drift reports of the live generation, on one connection."""

    conn: Connection
    windows: ArrivalWindowReader
    measure_recall: MeasureRecall
    window_images: int = WINDOW_IMAGES
    reference_images: int = REFERENCE_IMAGES

    def report(self) -> DriftReportResult | DriftReportSkipped:
        """Examine the next window, or make the reference while there is none.

        Skipped until enough images have arrived for either.
        """
        generation = live(self.conn)
        if generation is None:
            return DriftReportSkipped(None, "no generation is live")
        clear_alarms_of_others(self.conn, generation.id)
        stored = monitoring.stored_reference(self.conn, generation.id)
        if stored is None:
            return self._calibrate(generation)
        return self._examine_next(generation, stored)

    def _calibrate(self, generation: Generation) -> DriftReportSkipped:
        """Make the generation's reference once enough of its first images have arrived."""
        wanted = self.reference_images
        since = generation.live_at or generation.created_at
        before = monitoring.first_key_since(self.conn, since) - 1
        keys = monitoring.first_arrivals(self.conn, generation.id, before, wanted)
        if len(keys) < wanted:
            why = f"calibrating: {len(keys)} of {wanted} reference images have arrived"
            return DriftReportSkipped(generation.id, why)
        arrivals = monitoring.arrivals(self.conn, generation.id, generation.shape, keys)
        reference = fit_reference(
            self.windows.read(generation, arrivals),
            generation.shape,
            # Fixed, so that a calibration that is done again gives the same reference.
            seed=generation.id,
            window=self.window_images,
        )
        recall = self._recall(generation, reference, arrivals)
        counts = None if recall is None else (recall.hits, recall.queries)
        monitoring.store_reference(
            self.conn,
            generation.id,
            StoredReference(reference.to_dict(), keys[-1], counts),
        )
        calibration = DriftCalibration(tuple(reference.monitors), counts)
        why = f"calibrated on {len(arrivals)} images"
        return DriftReportSkipped(generation.id, why, calibration)

    def _examine_next(
        self, generation: Generation, stored: StoredReference
    ) -> DriftReportResult | DriftReportSkipped:
        earlier = self._earlier_windows(generation)
        # Windows must not overlap: an image that was examined twice would count twice.
        after = stored.last_key
        for examined in earlier:
            after = max(after, examined.last_key or 0)
        keys = monitoring.sample_arrivals(self.conn, generation.id, after, self.window_images)
        if len(keys) < self.window_images:
            why = f"{len(keys)} of the {self.window_images} images of the next window have arrived"
            return DriftReportSkipped(generation.id, why)
        arrivals = monitoring.arrivals(self.conn, generation.id, generation.shape, keys)
        window = self.windows.read(generation, arrivals)
        reference = DriftReference.from_dict(stored.document)
        results = examine(reference, window)
        # Measured for alarms only: it loads a model, which takes longer than all monitors together.
        recall = RecallChange()
        if any(result.alarm for result in results):
            then = RecallCount(*stored.recall) if stored.recall else None
            recall = RecallChange(then, self._recall(generation, reference, arrivals))
        level = alarm_level(results, recall.then, recall.now)
        raised = update_alarms(
            self.conn,
            self.windows.open_log,
            generation.id,
            results,
            level,
            recall,
            [examined.alarming for examined in earlier],
        )
        return _result(generation, arrivals, window, reference, results, level, raised)

    def _earlier_windows(self, generation: Generation) -> list[DriftReportResult]:
        """The newest windows before this one, as many as clearing an alarm needs, newest first."""
        recorded = monitoring.examined_windows(
            self.conn, JOB, generation.id, limit=CLEAR_AFTER_WINDOWS - 1
        )
        windows = map(DriftReportResult.from_json, recorded)
        # A row that cannot be read is no window: it neither clears an alarm nor keeps one open.
        return [window for window in windows if window is not None]

    def _recall(
        self, generation: Generation, reference: DriftReference, arrivals: Arrivals
    ) -> RecallCount | None:
        """Recall of the most novel arrivals; an alarm must not depend on whether it is known."""
        novel_first = arrivals.image_keys[reference.by_novelty(arrivals.embeddings)]
        try:
            return self.measure_recall(generation, novel_first.tolist())
        except SigmaError:
            log.exception("recall of novel arrivals not measured", generation=generation.id)
            return None


def _result(
    generation: Generation,
    arrivals: Arrivals,
    window: ArrivalWindow,
    reference: DriftReference,
    results: Sequence[MonitorResult],
    level: str,
    raised: int,
) -> DriftReportResult:
    pressure = under_suffix_pressure(window, reference.shape)
    return DriftReportResult(
        generation=generation.id,
        images=len(window),
        monitors=tuple(map(_reading, results)),
        first_key=int(arrivals.image_keys[0]),
        last_key=int(arrivals.image_keys[-1]),
        histograms=_histograms(reference, window),
        leaf=_leaf_loads(window),
        suffix_pressure=float(pressure.mean()),
        pages=raised if level == "page" else 0,
        tickets=raised if level == "ticket" else 0,
    )


def _reading(result: MonitorResult) -> MonitorReading:
    return MonitorReading(
        result.monitor,
        result.effect,
        result.effect_limit,
        result.p,
        result.p_limit,
        result.alarm,
    )


def _histograms(reference: DriftReference, window: ArrivalWindow) -> dict[str, CodeShares]:
    histograms = {}
    for level, shares in code_shares(reference, window).items():
        histograms[level] = CodeShares(tuple(shares["then"]), tuple(shares["now"]))
    return histograms


def _leaf_loads(window: ArrivalWindow) -> LeafLoads:
    # Several images of the window may share a leaf: its load counts once.
    _, first_of_leaf = np.unique(window.codes, axis=0, return_index=True)
    loads = window.leaf_loads[first_of_leaf]
    return LeafLoads(gini=gini(loads), p99=float(np.percentile(loads, 99)), max=int(loads.max()))
