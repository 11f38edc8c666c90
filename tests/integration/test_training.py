"""Training from the store: all modes, gates, resuming after a kill, several processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.identifiers.codebook import Codebook, pack_all
from model.network.checkpoint import load_checkpoint, load_record
from model.network.querybank import Querybank
from model.progress import Bar, quiet
from model.training.stage_gates import Gates
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError, WorkFailedError
from schemas.records import FloatArray, IntArray
from stream.lease import take
from tests.integration.small_training import (
    fill,
    profile_of_tests,
    request,
    states,
    tiny_services,
    train_in,
)
from tests.unit.model.conftest import WIDTH
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.repository import counters, generations
from workers.repository.connection import Connection, connect
from workers.repository.image_deletion import delete_images
from workers.repository.postings import identifiers_of, postings_of
from workers.repository.training_data import TRAINER, embeddings_of, indexed_images
from workers.runtime.services import Services
from workers.trainer import reclustering, training_plan
from workers.trainer.trainer import train

SEEN, LATER = 24, 8


@pytest.fixture
def services(tmp_path: Path, database: str) -> Services:
    return tiny_services(tmp_path / "home", database)


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Processes of their own without the seconds that imports take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.small_training"])
    return context


def catch_up(services: Services, conn: Connection, generation: int) -> None:
    """Assign what a generation lacks, with its own model."""
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    CatchUp(conn, generations.get(conn, generation), services.store, load).run()


def arrive(
    services: Services, conn: Connection, generation: int, count: int, captions: Any = ...
) -> list[int]:
    """Later images, assigned by the model in a generation."""
    keys = (
        fill(services, conn, count, SEEN)
        if captions is ...
        else fill(services, conn, count, SEEN, captions)
    )
    catch_up(services, conn, generation)
    return keys


def counted_right(conn: Connection, generation: int) -> bool:
    return replace(counters.totals(conn, generation), spilled=0) == counters.recount(
        conn, generation
    )


@pytest.mark.usefixtures("recluster_of_tests")
def test_generations_that_cannot_fit_a_querybank_keep_their_parents(
    services: Services, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(services, conn, SEEN)
    bank = Querybank(np.eye(3, WIDTH, dtype=np.float32), 0.5, 0.75)
    with monkeypatch.context() as patched:
        patched.setattr(training_plan, "can_fit", lambda *_: True)
        patched.setattr(training_plan, "fit_querybank", lambda *_: bank)
        first = train(services, None, request(services), quiet)
    arrive(services, conn, first.generation, LATER)
    numbers = [first.generation]
    for mode in ("refresh", "recluster"):
        learnt = train(services, None, request(services, mode=mode), quiet)
        numbers.append(learnt.generation)
    for number in numbers:
        kept = load_checkpoint(services.checkpoints / f"g{number}").querybank
        assert kept is not None
        assert np.array_equal(kept.vectors, bank.vectors)
        assert kept.numbers() == bank.numbers()


def test_a_refresh_learns_what_is_new_from_the_live_weights_and_moves_nothing(
    services: Services, conn: Connection
) -> None:
    old = fill(services, conn, SEEN)
    first = train(services, None, request(services), quiet)
    assert (first.state, first.images, first.figures()["mode"]) == ("live", SEEN, "full")
    # It is with the checkpoint and in the row, which query workers read.
    relevance = load_record(services.checkpoints / f"g{first.generation}").relevance
    assert relevance is not None
    assert relevance.pairs == SEEN
    assert generations.get(conn, first.generation).config.training.relevance == relevance
    new = arrive(services, conn, first.generation, LATER)
    silent = fill(services, conn, 2, SEEN + LATER, captions=())
    catch_up(services, conn, first.generation)
    delete_images(conn, ["image 003"])
    before = identifiers_of(conn, first.generation, profile_of_tests().shape, [*old, *new])
    second = train(services, None, request(services, mode="refresh"), quiet)
    # Those without captions are learnt from their pictures, with half as many known ones.
    learnt = LATER + len(silent) + (LATER + len(silent)) // 2
    assert (second.state, second.images) == ("shadow", learnt)
    assert identifiers_of(conn, second.generation, profile_of_tests().shape, [*old, *new]) == before
    held = indexed_images(conn, second.generation)
    assert dict(zip(held.image_keys.tolist(), held.trained.tolist(), strict=True)) == {
        key: True for key in (*old, *new, *silent) if key != old[3]
    }
    assert counted_right(conn, second.generation)
    config = generations.get(conn, second.generation).config.to_json()
    # Of so few images it is calibrated no better: its parent's, whose encoder it has.
    assert config["relevance"] == relevance.to_json()
    assert (config["mode"], config["parent"], config["images"]) == (
        "refresh",
        first.generation,
        learnt,
    )
    assert config["stages"] == ["codebook", "memorize", "comprehend", "align"]
    assert config["evaluations"].keys() == {"memorize", "comprehend", "align"}
    assert config["cpu_seconds"].keys() >= {"prepare", "memorize", "comprehend", "align", "load"}
    one, other = (
        states(services.checkpoints / f"g{number}")
        for number in (first.generation, second.generation)
    )
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    generations.promote(conn, second.generation)
    with pytest.raises(UsageError, match="nothing to refresh"):
        train(services, None, request(services, mode="refresh"), quiet)


@pytest.fixture
def recluster_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A re-clustering that moves images whose own last code is 0 to code 1, and nothing else."""

    @dataclass(frozen=True)
    class ReclusterConfig:
        seed: int = 0

    @dataclass(frozen=True)
    class Report:
        def to_dict(self) -> dict[str, object]:
            return {"kept": [1.0, 1.0, 1.0, 0.5]}

    def recluster_within_budget(
        old: Codebook, embeddings: FloatArray, config: ReclusterConfig
    ) -> tuple[Codebook, ReclusterConfig]:
        assert embeddings.dtype == np.float32
        return replace(old, codewords=np.ascontiguousarray(old.codewords[:, ::-1])), config

    def keep_codes(
        codes: IntArray, embeddings: FloatArray, codebook: Codebook, config: ReclusterConfig
    ) -> IntArray:
        assert len(codes) == len(embeddings)
        return np.column_stack([codes[:, :3], np.ones(len(codes), np.int64)])

    monkeypatch.setattr(reclustering, "ReclusterConfig", ReclusterConfig)
    monkeypatch.setattr(reclustering, "recluster_within_budget", recluster_within_budget)
    monkeypatch.setattr(reclustering, "keep_codes", keep_codes)
    monkeypatch.setattr(reclustering, "recluster_report", lambda *_: Report())


@pytest.mark.usefixtures("recluster_of_tests")
def test_a_recluster_moves_only_what_the_new_codebook_moves_and_keeps_the_weights(
    services: Services, conn: Connection
) -> None:
    fill(services, conn, SEEN)
    first = train(services, None, request(services), quiet).generation
    arrive(services, conn, first, LATER)
    before = indexed_images(conn, first)
    done = train(services, None, request(services, mode="recluster"), quiet)
    after = indexed_images(conn, done.generation)
    vectors = embeddings_of(conn, first, before.image_keys).embeddings
    own = Codebook.load(services.checkpoints / f"g{first}").encode(vectors.astype(np.float32))
    wanted = np.where(own[:, 3] == 0, pack_all(own, profile_of_tests().shape) + 1, before.leaves)
    moved = wanted != before.leaves
    assert 0 < moved.sum() < len(moved)
    assert done.record.recluster is not None
    assert (done.state, done.images, done.record.recluster.moved) == (
        "shadow",
        SEEN + LATER,
        moved.sum(),
    )
    assert done.record.recluster.to_json()["kept"] == [1.0, 1.0, 1.0, 0.5]
    np.testing.assert_array_equal(after.image_keys, before.image_keys)
    np.testing.assert_array_equal(after.leaves[~moved], before.leaves[~moved])
    np.testing.assert_array_equal(after.suffixes[~moved], before.suffixes[~moved])
    # Leaves hold eight images, so a few of those that moved may have had to spill.
    assert (after.leaves[moved] == wanted[moved]).mean() > 0.5
    np.testing.assert_array_equal(after.trained, before.trained & ~moved)
    stay = before.image_keys[~moved].tolist()
    assert postings_of(conn, done.generation, stay) == postings_of(conn, first, stay)
    assert all(
        len(places) == 3
        for places in postings_of(conn, done.generation, before.image_keys.tolist()).values()
    )
    assert counted_right(conn, done.generation)
    one, other = (
        states(services.checkpoints / f"g{number}") for number in (first, done.generation)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    config = generations.get(conn, done.generation).config.to_json()
    assert config["relevance"]["pairs"] == SEEN
    assert (config["mode"], config["parent"], config["stages"]) == (
        "recluster",
        first,
        ["codebook"],
    )
    assert (
        generations.get(conn, done.generation).codebook_version
        != generations.get(conn, first).codebook_version
    )
    generations.promote(conn, done.generation)
    learnt = train(
        services,
        None,
        request(services, mode="refresh", profile=replace(profile_of_tests(), replay=0.0)),
        quiet,
    )
    assert learnt.images == (~after.trained).sum()
    assert indexed_images(conn, learnt.generation).trained.all()


def test_more_images_than_the_setting_allows_are_sampled_and_the_rest_is_left_to_the_model(
    services: Services, conn: Connection
) -> None:
    fill(services, conn, SEEN)
    narrow = Services(replace(services.settings, training_images=16), services.database_url)
    done = train(narrow, None, request(services, until="align"), quiet)
    held = indexed_images(conn, done.generation)
    assert (done.images, len(held.image_keys), held.trained.sum()) == (16, SEEN, 16)
    again = train(narrow, None, request(services, mode="refresh"), quiet)
    # Eight are new, and half as many of the known ones are replayed.
    assert again.images == 12
    assert indexed_images(conn, again.generation).trained.all()


def test_a_stage_below_its_gate_fails_the_generation_and_frees_its_tables(
    services: Services, conn: Connection
) -> None:
    fill(services, conn, SEEN)
    begun: list[str] = []

    @contextmanager
    def noting(label: str, total: int) -> Iterator[Bar]:
        begun.append(label)
        with quiet(label, total) as bar:
            yield bar

    # A stage may be trained again before it fails.
    twice = replace(profile_of_tests().stage("memorize"), rounds=2)
    asked = request(
        services,
        profile=profile_of_tests().with_stages((twice,)),
        gates=Gates(progress=1.0, z=0.0, images=0),
    )
    with pytest.raises(WorkFailedError, match=r"memorize: id1 must be at least"):
        train(services, None, asked, noting)
    assert begun.count("1 memorisation") == 2
    (found,) = generations.generations(conn)
    assert (found.state, found.config.training.stages) == ("failed", ("codebook",))
    assert found.config.failure is not None
    assert "id1" in found.config.failure[0]
    assert conn.execute("SELECT to_regclass(%s)", [f"placement_{found.id}"]).fetchone() == (None,)
    wild = profile_of_tests().with_stages(
        (replace(profile_of_tests().stage("memorize"), learning_rate=1e30, clip=0.0),)
    )
    with pytest.raises(WorkFailedError, match="loss is"):
        train(services, None, request(services, profile=wild), quiet)
    with pytest.raises(UsageError, match="nothing to resume"):
        train(services, None, request(services, resume=True), quiet)


def test_one_trainer_at_a_time_and_a_refresh_needs_a_live_generation(
    services: Services, conn: Connection, database: str
) -> None:
    with connect(database) as other:
        assert take(other, TRAINER)
        with pytest.raises(RetryLaterError, match="another training"):
            train(services, None, request(services), quiet)
    with pytest.raises(RefuseToStartError, match="no generation is live"):
        train(services, None, request(services, mode="refresh"), quiet)
    with pytest.raises(UsageError, match="the store holds no image"):
        train(services, None, request(services), quiet)
    assert [found.state for found in generations.generations(conn)] == ["failed"]


KILLS = (("1 memorisation", 4), ("2 comprehension", 9), ("3 alignment", 9), ("post images", 1))


def test_a_training_killed_in_every_stage_ends_as_if_undisturbed(
    services: Services, conn: Connection, forks: ForkServerContext
) -> None:
    fill(services, conn, SEEN)
    changes: dict[str, Any] = {"seed": 5}
    for killed in KILLS:
        process = forks.Process(
            target=train_in, args=(services.home, services.database_url, killed, changes)
        )
        process.start()
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, killed
        changes = {"resume": True}
    late = fill(services, conn, 1, SEEN)
    resumed = train(services, None, request(services, resume=True), quiet)
    assert resumed.state == "live"
    # What arrived after the training had begun is no part of it.
    held = indexed_images(conn, resumed.generation)
    assert held.image_keys[~held.trained].tolist() == late
    delete_images(conn, [f"image {SEEN:03}"])
    straight = train(services, None, request(services, seed=5), quiet)
    one, other = (
        states(services.checkpoints / f"g{number}")
        for number in (resumed.generation, straight.generation)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert counters.totals(conn, resumed.generation) == counters.totals(conn, straight.generation)
    assert counted_right(conn, resumed.generation)


def test_two_processes_under_torchrun_learn_what_one_learns(
    services: Services, conn: Connection
) -> None:
    fill(services, conn, SEEN)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.integration.small_training",
    ]
    launched = subprocess.run(
        [sys.executable, *launcher, str(services.home), services.database_url],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    alone = train(services, None, request(services, profile=profile_of_tests(vision=True)), quiet)
    first, second = (states_of_rank(services, rank) for rank in (0, 1))
    single, begun = states(services.checkpoints / f"g{alone.generation}"), states_of_base(services)
    for name in single:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    # Sums in another order, and what Adam makes of that: little beside what training changed.
    difference, change = (
        sum(float(((single[name] - other[name]) ** 2).sum()) for name in single)
        for other in (first, begun)
    )
    assert change > 1.0
    assert difference < 1e-4 * change


def states_of_rank(services: Services, rank: int) -> dict[str, Any]:
    with np.load(services.home / f"rank{rank}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def states_of_base(services: Services) -> dict[str, Any]:
    from model.network.base import Base
    from model.network.parts import parts_from_base

    parts = parts_from_base(Base.load(services.home / "base"), profile_of_tests())
    return {name: value.numpy() for name, value in parts.sigma.state_dict().items()}
