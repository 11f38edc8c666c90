"""The drift report: the hourly look at what arrived, the alarms that come of it, and what Prometheus is told of them."""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

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
from model.identifiers.codebook import Codebook
from model.identifiers.quality import gini
from schemas.errors import RejectInputError, SigmaError
from schemas.events import SERVED, OperationsEvent, QueryServed, decode
from schemas.records import BoolArray, FloatArray
from stream.log.event_log import EventLog, message
from workers.repository import monitoring
from workers.repository.alarms import Alarm, clear_alarm, open_alarms, raise_alarm
from workers.repository.connection import Connection, transaction
from workers.repository.generations import Generation, generations, live
from workers.repository.images import images_by_key
from workers.runtime.metrics import DriftMetrics, MonitoringSnapshot
from workers.runtime.process import keep_running
from workers.runtime.services import Services

JOB, PROBES_JOB = "drift-report", "recall-probe"

CALM = 3
"""Windows without alarm after which a monitor's alarm is cleared."""

QUERIES = 500
"""Newest served queries whose best score is looked at."""

_LEAST_KNOWN, _DEPTH, _BATCH = 20, 10, 16
_WATCH_S = 15.0

Figures = dict[str, Any]
Probe = Callable[[Services, Connection, Generation, Sequence[int]], RecallCount | None]

log = structlog.get_logger()


def known_items(
    services: Services, conn: Connection, generation: Generation, keys: Sequence[int]
) -> RecallCount | None:
    """How many of the most novel of these images, which come first, are found by a caption of theirs among the first ten. None when
    too few have captions.

    It loads the generation, so it is done for a reference and for windows with an alarm only.
    """
    stored = images_by_key(conn, list(keys))
    known = [
        (key, texts[0])
        for key in keys
        if (image := stored.get(key)) and (texts := image.test_captions or image.captions)
    ]
    asked = known[: round(NOVEL_SHARE * len(known))]
    if len(asked) < _LEAST_KNOWN:
        return None
    from workers.query.searcher import Searcher

    with closing(Searcher(services, generation)) as searcher:
        hits = 0
        for start in range(0, len(asked), _BATCH):
            part = asked[start : start + _BATCH]
            answers = searcher.engine.answer(
                [text for _, text in part], _DEPTH, services.settings.retrieval
            )
            hits += sum(
                key in answer.image_keys.tolist()
                for (key, _), answer in zip(part, answers, strict=True)
            )
    return RecallCount(hits, len(asked))


def drift_report(
    services: Services,
    conn: Connection,
    *,
    sample: int = WINDOW_IMAGES,
    reference: int = REFERENCE_IMAGES,
    probe: Probe = known_items,
) -> Figures:
    """Look at one window of the live generation, once enough has arrived for one; before that, make its reference.

    The window is `sample` images drawn from all that arrived since the last one, so that windows never overlap and the chance of
    a false alarm does not depend on the rate of arrival.
    """
    generation = live(conn)
    if generation is None:
        return _idle(None, "no generation is live")
    _close_others(conn, generation.id)
    kept = monitoring.stored_reference(conn, generation.id)
    if kept is None:
        return _calibrate(services, conn, generation, sample, reference, probe)
    before = monitoring.examined_windows(conn, JOB, generation.id, limit=CALM - 1)
    after = max([kept.last_key, *(figures["last_key"] for figures in before)])
    keys = monitoring.sample_arrivals(conn, generation.id, after, sample)
    if len(keys) < sample:
        return _idle(
            generation.id, f"{len(keys)} of the {sample} images of the next window have arrived"
        )
    arrived = monitoring.arrivals(conn, generation.id, generation.shape, keys)
    window = _window(services, generation, arrived)
    learned = DriftReference.from_dict(kept.document)
    findings = examine(learned, window)
    recalls: tuple[RecallCount | None, RecallCount | None] = (None, None)
    if any(finding.alarm for finding in findings):
        recalls = (
            RecallCount(*kept.recall) if kept.recall else None,
            _asked(probe, services, conn, generation, learned, arrived),
        )
    level = alarm_level(findings, *recalls)
    raised = _speak(services, conn, generation.id, findings, level, recalls, before)
    return _figures(generation.id, arrived, window, learned, findings) | {
        "pages": raised if level == "page" else 0,
        "tickets": raised if level == "ticket" else 0,
    }


def watch(services: Services, metrics: DriftMetrics, stop: threading.Event) -> threading.Thread:
    """Keep a scheduler's metrics at what the database says, whoever leads."""

    def session(stop: threading.Event) -> None:
        with services.connect("drift metrics") as conn:
            while not stop.is_set():
                metrics.snapshot = seen(conn)
                stop.wait(_WATCH_S)

    thread = threading.Thread(
        target=keep_running,
        args=(session, stop, "drift metrics"),
        name="drift metrics",
        daemon=True,
    )
    thread.start()
    return thread


def seen(conn: Connection) -> MonitoringSnapshot:
    """What the metrics show: the newest window, open alarms, the newest probes, and how the jobs do."""
    generation = live(conn)
    windows = monitoring.examined_windows(conn, JOB, generation.id) if generation else []
    cohorts = monitoring.newest_figures(conn, PROBES_JOB).get("cohorts", {})
    return MonitoringSnapshot(
        effects={
            one["name"]: (one["effect"], one["effect_limit"])
            for figures in windows
            for one in figures["monitors"]
        },
        levels=tuple(alarm.level for alarm in open_alarms(conn)),
        recalls={
            name: (one["ours"]["R@10"], one["exact_dense"]["R@10"]) for name, one in cohorts.items()
        },
        jobs=tuple(monitoring.job_totals(conn)),
        refused=sum(
            one.state == "shadow" and one.config.gate is not None and not one.config.gate.passed
            for one in generations(conn)
        ),
    )


def _calibrate(
    services: Services,
    conn: Connection,
    generation: Generation,
    sample: int,
    wanted: int,
    probe: Probe,
) -> Figures:
    since = generation.live_at or generation.created_at
    keys = monitoring.first_arrivals(
        conn, generation.id, monitoring.first_key_since(conn, since) - 1, wanted
    )
    if len(keys) < wanted:
        return _idle(
            generation.id, f"calibrating: {len(keys)} of {wanted} reference images have arrived"
        )
    arrived = monitoring.arrivals(conn, generation.id, generation.shape, keys)
    learned = fit_reference(
        _window(services, generation, arrived), generation.shape, seed=generation.id, window=sample
    )
    recall = _asked(probe, services, conn, generation, learned, arrived)
    pair = None if recall is None else (recall.hits, recall.queries)
    monitoring.store_reference(
        conn, generation.id, monitoring.StoredReference(learned.to_dict(), keys[-1], pair)
    )
    return _idle(generation.id, f"calibrated on {len(arrived)} images") | {
        "watched": list(learned.monitors),
        "recall": pair,
    }


def _window(
    services: Services, generation: Generation, arrived: monitoring.Arrivals
) -> ArrivalWindow:
    return ArrivalWindow(
        arrived.codes,
        arrived.embeddings,
        arrived.confidences,
        _agreement(services, generation, arrived),
        arrived.loads,
        served_scores(services, generation.id),
    )


def _agreement(
    services: Services, generation: Generation, arrived: monitoring.Arrivals
) -> BoolArray:
    """Whether the codebook puts each image under the same id1. Nothing where the generation's folder is elsewhere."""
    folder = services.checkpoints / generation.folder
    if not (folder / "codebook.json").is_file():
        log.warning(
            "agreement is not watched: the codebook is not here",
            generation=generation.id,
            folder=str(folder),
        )
        return np.zeros(0, np.bool_)
    return np.asarray(Codebook.load(folder).encode(arrived.embeddings)[:, 0] == arrived.codes[:, 0])


def served_scores(services: Services, generation: int) -> FloatArray:
    """Best score of the newest queries that this generation answered, at most `QUERIES`."""
    with closing(services.open_log()) as events:
        served = [one for one in _newest(events) if one.generation == generation and one.scores]
    newest = sorted(served, key=lambda one: one.served_at)[-QUERIES:]
    return np.array([one.scores[0] for one in newest], np.float32)


def _newest(events: EventLog) -> list[QueryServed]:
    found = []
    for (topic, partition), end in events.end_offsets([SERVED]).items():
        for event in events.read(topic, partition, first=max(0, end - QUERIES), limit=QUERIES):
            try:
                record = decode(topic, event.value)
            except RejectInputError:
                continue
            if isinstance(record, QueryServed):
                found.append(record)
    return found


def _asked(
    probe: Probe,
    services: Services,
    conn: Connection,
    generation: Generation,
    learned: DriftReference,
    arrived: monitoring.Arrivals,
) -> RecallCount | None:
    """Recall of the most novel images, or None where it cannot be measured: a drift alarm must not depend on it."""
    novel_first = arrived.image_keys[learned.by_novelty(arrived.embeddings)]
    try:
        return probe(services, conn, generation, novel_first.tolist())
    except SigmaError:
        log.exception("recall of the window is unknown", generation=generation.id)
        return None


def _speak(
    services: Services,
    conn: Connection,
    generation: int,
    findings: Sequence[MonitorResult],
    level: str,
    recalls: tuple[RecallCount | None, RecallCount | None],
    before: Sequence[Figures],
) -> int:
    """Raise and clear alarms and tell the world, in one transaction. Returns how many were raised."""
    then, now = (
        None if one is None else {"hits": one.hits, "queries": one.queries} for one in recalls
    )
    with transaction(conn), closing(services.open_log()) as events:
        fresh = [
            raise_alarm(
                conn,
                generation,
                one.monitor,
                level,
                effect=one.effect,
                effect_limit=one.effect_limit,
                p=one.p,
                p_limit=one.p_limit,
                detail={"recall_then": then, "recall_now": now},
            )
            for one in findings
            if one.alarm
        ]
        there = open_alarms(conn)
        calm = [one for one in there if _calm(one, findings, before) and clear_alarm(conn, one.id)]
        notes = [
            OperationsEvent("alarm", f"{one}; see: sigma report drift")
            for one in there
            if one.id in fresh
        ]
        notes += [
            OperationsEvent(
                "alarm-cleared", f"{one.monitor} of generation {one.generation} is calm again"
            )
            for one in calm
        ]
        if notes:
            events.publish(conn, [message(note, f"generation-{generation}") for note in notes])
    return sum(number is not None for number in fresh)


def _calm(alarm: Alarm, findings: Sequence[MonitorResult], before: Sequence[Figures]) -> bool:
    """Whether the alarm's monitor has been calm in this window and in the ones before, as many as it takes."""
    alarming = [{one.monitor for one in findings if one.alarm}]
    alarming += [{one["name"] for one in figures["monitors"] if one["alarm"]} for figures in before]
    return len(alarming) >= CALM and not any(alarm.monitor in names for names in alarming)


def _close_others(conn: Connection, generation: int) -> None:
    """A generation that is not live any more cannot become calm: its alarms end with it."""
    for alarm in open_alarms(conn):
        if alarm.generation != generation:
            clear_alarm(conn, alarm.id)


def _idle(generation: int | None, why: str) -> Figures:
    return {
        "generation": generation,
        "images": 0,
        "monitors": [],
        "pages": 0,
        "tickets": 0,
        "why": why,
    }


def _figures(
    generation: int,
    arrived: monitoring.Arrivals,
    window: ArrivalWindow,
    reference: DriftReference,
    findings: Sequence[MonitorResult],
) -> Figures:
    _, first = np.unique(arrived.codes, axis=0, return_index=True)
    loads = window.leaf_loads[first]
    return {
        "generation": generation,
        "images": len(window),
        "first_key": int(arrived.image_keys[0]),
        "last_key": int(arrived.image_keys[-1]),
        "monitors": [
            {
                "name": f.monitor,
                "effect": f.effect,
                "effect_limit": f.effect_limit,
                "p": f.p,
                "p_limit": f.p_limit,
                "alarm": f.alarm,
            }
            for f in findings
        ],
        "histograms": code_shares(reference, window),
        "leaf": {
            "gini": gini(loads),
            "p99": float(np.percentile(loads, 99)),
            "max": int(loads.max()),
        },
        "suffix_pressure": float(under_suffix_pressure(window, reference.shape).mean()),
    }
