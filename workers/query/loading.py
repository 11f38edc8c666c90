"""Loading a searcher: a generation's model, its index, and the connections that follow it."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from schemas.errors import RefuseToStartError, UsageError
from workers.query.descriptions import Descriptions
from workers.query.searcher import Searcher, SnapshotRenewal
from workers.repository.connection import ANSWER_LIMITS, Connection
from workers.repository.follower import TrieFollower
from workers.repository.generations import Generation, get, live, receiving
from workers.runtime.services import Services

if TYPE_CHECKING:
    from model.network.checkpoint import Checkpoint
    from workers.query.model_engine import ModelEngine
    from workers.query.trie_engine import TrieEngine

T = TypeVar("T", bound="TrieEngine")


def live_generation(conn: Connection, wanted: int | None = None) -> Generation:
    """Return the live generation, or the one wanted.

    `RefuseToStartError` when none is live, `UsageError` when the one wanted cannot answer.
    """
    generation = live(conn) if wanted is None else get(conn, wanted)
    if generation is None:
        raise RefuseToStartError(
            "no generation is live yet; train one with: sigma train --manifest F"
        )
    if generation.state in ("building", "failed"):
        raise UsageError(
            f"generation {generation.id} is {generation.state} and cannot answer; "
            "list them with: sigma generations list"
        )
    return generation


def open_searcher(
    services: Services,
    generation: Generation,
    *,
    checkpoint: "Checkpoint | None" = None,
    engine: str | None = None,
    with_encoder: bool = False,
) -> "Searcher[ModelEngine]":
    """Load a generation's model and index, and follow it.

    `engine` decodes, "torch" or "vllm", the one of the settings by default. With a `checkpoint`,
    nothing is read from the generation's folder. A generation with a query head gets its encoder,
    which queries do not need, `with_encoder` only.
    """
    # Imported here: they take two seconds of processor time, and until a generation is loaded a
    # query worker listens, and a command finds what is wrong with its options, without them.
    from workers.generations.model_assigner import load_generation_checkpoint
    from workers.query.model_engine import EXPORTS, ModelEngine

    engine_name = engine or services.settings.engine
    if services.settings.engine == "vllm":
        with services.connect(f"exports {generation.id}") as conn:
            _delete_unused_exports(conn, services.cache / EXPORTS, generation)
    if checkpoint is None:
        checkpoint = load_generation_checkpoint(
            services.checkpoints, generation, for_queries=not with_encoder
        )
    model_engine = ModelEngine.open(
        generation.id,
        checkpoint,
        services.cache,
        engine=engine_name,
        memory_share=services.settings.vllm_memory_share,
    )
    return follow(services, generation, model_engine)


def follow(services: Services, generation: Generation, engine: T) -> Searcher[T]:
    """Connect an empty engine to the database and fill it with the generation's index.

    The searcher owns the engine; when this fails, the engine is closed.
    """
    from workers.query.index_snapshot import IndexSnapshot, delete_unused_snapshots

    # Without this, a database that is unavailable for a while would leave an engine's memory and
    # file behind at each try.
    with ExitStack() as undo:
        undo.callback(engine.close)
        connect = partial(services.connect, f"search {generation.id}", ANSWER_LIMITS)
        conn = connect()
        undo.callback(conn.close)
        following = services.connect(f"follow {generation.id}")
        undo.callback(following.close)
        follower = TrieFollower.open(following, generation.id)
        snapshot = IndexSnapshot(services.cache, generation.id, services.connect)
        snapshot.fill(engine.index, follower)
        used = {generation.id} | {other.id for other in receiving(following)}
        delete_unused_snapshots(services.cache, used)
        undo.pop_all()
    descriptions = Descriptions(conn, connect, generation.id, engine.shape)
    return Searcher(
        generation,
        engine,
        descriptions,
        follower,
        services.store,
        services.settings.retrieval,
        SnapshotRenewal(snapshot.is_due, partial(snapshot.renew, engine.index)),
    )


def _delete_unused_exports(conn: Connection, exports: Path, generation: Generation) -> None:
    from model.decoding.export import delete_stale_exports
    from workers.query.model_engine import export_name

    # Other query workers on this machine may read those of the other receiving generations.
    names = {export_name(generation.id)}
    for other in receiving(conn):
        names.add(export_name(other.id))
    delete_stale_exports(exports, names)
