"""Promotion of candidates: measure them beside the live generation, judge them by the gate, switch.

The rule itself is `ops.jobs.promotion_gate.refusal_reasons`.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import structlog

from ops.jobs.known_items import (
    KnownItemQuery,
    KnownItemRanks,
    decoder_ranks,
    sample_known_items,
    search_ranks,
)
from ops.jobs.promotion_gate import (
    MIN_LATENCY_QUERIES,
    GateMeasurements,
    compare_cohorts,
    decoder_recall,
    refusal_reasons,
)
from schemas.errors import SigmaError, UsageError, WorkFailedError
from schemas.events import now
from schemas.generation_config import GateVerdict
from schemas.maintenance_results import GateResult, GateSkipped
from schemas.training_record import VECTORS
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.generations.switching import SwitchResult
from workers.generations.switching import promote as switch_generation
from workers.repository import generations
from workers.repository.connection import Connection, transaction
from workers.repository.generations import Generation
from workers.repository.shadow_queries import shadow_summary
from workers.repository.stored_images import newest_image
from workers.runtime.services import Services

if TYPE_CHECKING:
    from ops.jobs.known_items import OpenSearcher
    from workers.query.engine import QueryEngine
    from workers.query.searcher import Searcher

QUERIES = 600
"""Known-item queries asked of both generations: with one in ten answered differently, chance
explains 2.1 points of R@10."""

MIN_CAPTION_IMAGES = 1000
"""Images of a training below which its captions are compared on fewer than 100 of them."""

_PROMOTABLE_STATES = ("shadow", "live", "retired")

log = structlog.get_logger()


def caption_wins(live: Generation, candidate: Generation) -> dict[str, float] | None:
    """How often own identifiers predict captions better than exchanged ones, in both generations.

    As alignment was measured at the end of each training; None for a re-clustering, which trains
    nothing, for generations of versions that did not measure it, and after trainings on so few
    images that the share is mostly chance.
    """
    wins: dict[str, float] = {}
    for name, generation in (("live", live), ("candidate", candidate)):
        evaluation = generation.config.training.evaluations.get("align")
        figures = {} if evaluation is None else evaluation.figures
        if "caption_wins" not in figures or figures.get("images", 0) < MIN_CAPTION_IMAGES:
            return None
        wins[name] = figures["caption_wins"]
    return wins


@dataclass(frozen=True)
class CandidatePromoter:
    """Judges candidates and makes them live, on one connection."""

    conn: Connection
    open_searcher: "OpenSearcher"
    """Loads a generation, which is judged by the search and the settings that will serve it."""
    catch_up: Callable[[Generation], int]
    """Assigns the images that a generation lacks; returns how many found a place."""
    switch: Callable[[int], SwitchResult]
    """Makes a generation live, complete."""
    queries: int = QUERIES

    @classmethod
    def on_services(
        cls, services: Services, conn: Connection, *, queries: int = QUERIES
    ) -> "CandidatePromoter":
        """A promoter that loads models with PyTorch, whatever engine answers queries here.

        vLLM would want the memory of an accelerator that the query worker uses.
        """
        load = assigner_loader(services.checkpoints, services.settings.retrieval)

        def open_generation(generation: Generation) -> "Searcher[QueryEngine]":
            # Imported here: it loads PyTorch, which listing generations does without.
            from workers.query.loading import open_searcher

            return open_searcher(services, generation, engine="torch")

        return cls(
            conn,
            open_generation,
            lambda generation: CatchUp(conn, generation, services.store, load).run(),
            lambda number: switch_generation(conn, number, services.store, load),
            queries,
        )

    def promote(self, number: int, *, force: bool = False) -> SwitchResult:
        """Make a generation live if the gate lets it.

        The first generation is not judged, nor one that is forced. `WorkFailedError` gives the
        gate's reasons; `UsageError` for a generation in another state than shadow or retired.
        """
        live = generations.live(self.conn)
        candidate = generations.get(self.conn, number)
        if candidate.state not in _PROMOTABLE_STATES:
            raise UsageError(
                f"generation {number} must be shadow or retired to become live, got "
                f"{candidate.state}; list them with: sigma generations list"
            )
        if live is not None and live.id != number and not force:
            verdict = self.judge(candidate, live)
            if not verdict.passed:
                raise WorkFailedError(
                    f"generation {number} is refused and {live.id} stays live: "
                    f"{'; '.join(verdict.reasons)}. "
                    f"To make it live nevertheless: sigma generations promote {number} --force"
                )
        return self.switch(number)

    def judge(self, candidate: Generation, live: Generation) -> GateVerdict:
        """Measure a candidate, judge it by the gate, and record the verdict in its row."""
        # Before anything is asked: a candidate must not lose for images that it would get anyway.
        missing = self._missing_after_catch_up(candidate, live)
        # Both are asked the same queries, so that only differing answers count, not a lucky sample.
        # A picture can be asked for by itself only where both read vectors.
        reads = {live.config.training.reads, candidate.config.training.reads}
        queries = sample_known_items(self.conn, live.id, self.queries, pictures=reads == {VECTORS})
        live_ranks, live_decoder = self._ask(live, queries)
        candidate_ranks, candidate_decoder = self._ask(candidate, queries)
        # Latency comes from live traffic: here both load cold, one after the other.
        shadow = shadow_summary(self.conn, candidate.id, live.id)
        is_timed = shadow.queries >= MIN_LATENCY_QUERIES
        measured = GateMeasurements(
            cohorts=compare_cohorts(queries, live_ranks.ranks, candidate_ranks.ranks),
            missing=missing,
            latency_ratio=shadow.latency_ratio if is_timed else None,
            live_candidates=live_ranks.mean_candidates,
            candidate_candidates=candidate_ranks.mean_candidates,
            captions=caption_wins(live, candidate),
            decoder=decoder_recall(live_decoder.ranks, candidate_decoder.ranks),
        )
        reasons = refusal_reasons(measured)
        verdict = GateVerdict(
            passed=not reasons,
            reasons=tuple(reasons),
            against=live.id,
            cohorts=measured.cohorts,
            missing=missing,
            latency_ratio=measured.latency_ratio,
            shadow_queries=shadow.queries,
            shadow=asdict(shadow),
            candidates={
                "live": measured.live_candidates,
                "candidate": measured.candidate_candidates,
            },
            captions=measured.captions,
            decoder=measured.decoder,
            checked_at=now().isoformat(),
        )
        # Recorded before a switch is tried, so that the measurements survive its failure.
        generations.update(self.conn, candidate.id, gate=verdict)
        log.info(
            "candidate judged",
            generation=candidate.id,
            against=live.id,
            passed=verdict.passed,
            reasons=reasons,
        )
        return verdict

    def run_gate(self, *, auto_promote: bool) -> GateResult | GateSkipped:
        """The job `gate`: judge every shadow generation beside the live one.

        The fallback generation catches up first, so that a rollback is quick. With `auto_promote`,
        the first candidate that passes goes live.
        """
        live = generations.live(self.conn)
        if live is None:
            return GateSkipped("no generation is live")
        fallback = generations.find_fallback(generations.generations(self.conn))
        caught_up = 0 if fallback is None else self._complete_fallback(fallback)
        judged: dict[int, GateVerdict] = {}
        promoted: int | None = None
        for candidate in generations.generations(self.conn):
            if candidate.state != "shadow":
                continue
            verdict = self.judge(candidate, live)
            judged[candidate.id] = verdict
            # Later candidates were judged beside a generation that is not live any more.
            if verdict.passed and auto_promote and promoted is None:
                promoted = self.switch(candidate.id).generation
        return GateResult(judged, promoted, caught_up)

    def _ask(
        self, generation: Generation, queries: Sequence[KnownItemQuery]
    ) -> tuple[KnownItemRanks, KnownItemRanks]:
        """Load, ask as users do and the decoder alone, free: two models may not fit into memory."""
        texts = [query for query in queries if query.text]
        with closing(self.open_searcher(generation)) as searcher:
            return search_ranks(searcher, queries), decoder_ranks(searcher, texts)

    def _missing_after_catch_up(self, candidate: Generation, live: Generation) -> int:
        """Images of the live generation for which the candidate has no place."""
        with transaction(self.conn):
            # Under the lock no image is being accepted, so all up to the newest key are visible.
            generations.lock_set(self.conn)
            ceiling = newest_image(self.conn)
        self.catch_up(candidate)
        # Images above the ceiling are being assigned in both generations: they do not count.
        return generations.count_lacking(self.conn, candidate.id, live.id, ceiling)

    def _complete_fallback(self, fallback: Generation) -> int:
        try:
            return self.catch_up(fallback)
        except SigmaError as error:
            # The candidates can be judged all the same.
            log.error(
                "fallback generation cannot catch up", generation=fallback.id, reason=str(error)
            )
            return 0
