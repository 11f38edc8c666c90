"""The searcher: an engine with its database connection, from texts to answers a person can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.decoding.export import delete_stale_exports
from model.network.checkpoint import Checkpoint
from schemas.errors import RefuseToStartError, UsageError
from schemas.records import Hit
from stream.images.store import ImageStore
from workers.generations.model_assigner import load_generation_checkpoint
from workers.query.engine import EXPORTS, Answer, Engine, export_name
from workers.repository.connection import Connection
from workers.repository.follower import TrieFollower
from workers.repository.generations import Generation, get, live, receiving
from workers.repository.images import images_by_key
from workers.repository.postings import identifiers_of
from workers.runtime.services import Services

Mode = Literal["fused", "paper"]

MAX_QUERY_LETTERS = 2000
MAX_RESULTS = 100
_SPARE = 10
"""Answers fetched beyond those asked for, in place of images deleted this very moment."""


@dataclass(frozen=True, slots=True)
class Result:
    """One answered query."""

    query: str
    generation: int
    hits: tuple[Hit, ...]
    candidates: int
    captions: tuple[tuple[str, ...], ...] = ()

    def to_dict(self, took_ms: float) -> dict[str, Any]:
        """The JSON shape of the command line and of `POST /v1/query`."""
        results = [
            {
                "rank": hit.rank,
                "image_id": hit.image_id,
                "uri": hit.uri,
                "link": hit.link,
                "identifier": list(hit.identifier),
                "score": hit.score,
                "captions": list(texts),
            }
            for hit, texts in zip(self.hits, self.captions, strict=True)
        ]
        return {
            "query": self.query,
            "generation": self.generation,
            "took_ms": round(took_ms, 2),
            "candidates": self.candidates,
            "results": results,
        }


def checked_query(text: str, count: int) -> str:
    """The text to search for; `UsageError` when it is empty or long, or `count` is out of range."""
    if not text.strip():
        raise UsageError("the query is empty; describe the image in words")
    if len(text) > MAX_QUERY_LETTERS:
        raise UsageError(
            f"the query has {len(text):,} letters, allowed are {MAX_QUERY_LETTERS:,}; shorten it"
        )
    if not 1 <= count <= MAX_RESULTS:
        raise UsageError(f"{count} results are asked for, allowed are 1 to {MAX_RESULTS}")
    return text.encode("utf-8", "replace").decode("utf-8")


def live_generation(conn: Connection, wanted: int | None = None) -> Generation:
    """The live generation, or the one wanted; `RefuseToStartError` when there is none to answer with."""
    found = live(conn) if wanted is None else get(conn, wanted)
    if found is None:
        raise RefuseToStartError(
            "no generation is live yet; train one with: sigma train --manifest F"
        )
    if found.state in ("building", "failed"):
        raise UsageError(
            f"generation {found.id} is {found.state} and cannot answer; list them with: sigma generations list"
        )
    return found


class Searcher:
    """One generation, loaded and followed. For one thread."""

    def __init__(
        self,
        services: Services,
        generation: Generation,
        checkpoint: Checkpoint | None = None,
        *,
        engine: Engine | str | None = None,
    ) -> None:
        """`engine` decodes, the one of the settings by default. With a checkpoint, nothing is read from its folder."""
        self.generation = generation
        self.services = services
        self.conn = services.connect(f"search {generation.id}")
        if services.settings.engine == "vllm":
            serving = {generation.id, *(one.id for one in receiving(self.conn))}
            delete_stale_exports(
                services.cache / EXPORTS, {export_name(number) for number in serving}
            )
        if engine is None or isinstance(engine, str):
            loaded = checkpoint or load_generation_checkpoint(services.checkpoints, generation)
            engine = Engine(
                generation.id, loaded, services.cache, engine=engine or services.settings.engine
            )
        self.engine = engine
        self.follower = TrieFollower.open(
            services.connect(f"follow {generation.id}"), generation.id
        )
        self.engine.apply(self.follower.load(sink=self.engine.sink))

    def search(self, texts: Sequence[str], count: int, mode: Mode = "fused") -> list[Result]:
        """Answers to texts that passed `checked_query`."""
        settings = self.services.settings.retrieval
        if mode == "paper":
            answers = self.engine.answer_paper(texts, count + _SPARE, settings)
        else:
            answers = self.engine.answer(texts, count + _SPARE, settings)
        return results_of(self.conn, self.engine, self.services.store, texts, answers, count)

    def refresh(self) -> None:
        """Take over what changed in the database."""
        self.engine.apply(self.follower.changes())

    def listen(self, channel: str) -> None:
        """Let notifications of a further channel wake the follower."""
        self.follower.listen(channel)

    def close(self) -> None:
        """Close connections and files."""
        self.engine.close()
        self.follower.close()
        self.conn.close()


def results_of(
    conn: Connection,
    engine: Engine,
    store: ImageStore,
    texts: Sequence[str],
    answers: Sequence[Answer],
    count: int,
) -> list[Result]:
    """Answers with image ids, addresses and identifiers. Images deleted this very moment are left out: the database decides."""
    keys = sorted({int(key) for answer in answers for key in answer.image_keys})
    stored = images_by_key(conn, keys)
    identifiers = identifiers_of(conn, engine.generation, engine.shape, keys)
    results = []
    for text, answer in zip(texts, answers, strict=True):
        found = [
            (stored[key], identifiers[key], score)
            for key, score in zip(answer.image_keys.tolist(), answer.scores.tolist(), strict=True)
            if key in stored and key in identifiers and stored[key].state == "indexed"
        ][:count]
        hits = tuple(
            Hit(
                rank,
                image.image_id,
                image.uri,
                tuple(identifier),
                round(float(score), 6),
                store.link(image.normalized_uri),
            )
            for rank, (image, identifier, score) in enumerate(found, start=1)
        )
        captions = tuple(image.captions or image.test_captions for image, _, _ in found)
        results.append(Result(text, engine.generation, hits, answer.candidates, captions))
    return results
