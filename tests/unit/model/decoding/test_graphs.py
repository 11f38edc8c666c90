"""Searches as a GPU runs them: no wait before the last copy, and recorded once for each bucket."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from model.decoding.beam import NEVER, Beams, Guide, search_identifiers, search_leaves
from model.decoding.decoder import Decoder, Prompts
from model.decoding.graphs import Program, SearchGraphs, Tensors
from model.network.parts import ModelParts, parts_from_base
from model.network.vector_reading import VectorReading
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.trie import Trie
from schemas.identifiers import LEVELS
from schemas.records import FloatArray
from tests.stand_in_device import DEVICE, StandIn, StandInMode, move_to_stand_in
from tests.unit.model.conftest import TEXTS, WIDTH, small_base, small_profile

TOLERANCE = 1e-5
"""Of a log-probability, in nats."""


def record(program: Program, inputs: Tensors) -> Program:
    """Records a program as a fixed list of operations on fixed shapes, as a CUDA graph does.

    What a host would have to look at cannot be recorded. Tables are read where they are.
    """
    recorded = make_fx(lambda *parts: program(parts))(*inputs)

    def replay(new: Tensors) -> Tensors:
        outputs: Tensors = recorded(*new)
        return outputs

    return replay


def trie_of(decoder: Decoder, leaves: np.ndarray, device: torch.device | None = None) -> Trie:
    """One image under each of the leaves."""
    shape = decoder.sigma.profile.shape
    trie = Trie(shape, device)
    put(trie, leaves, 0)
    return trie


def put(trie: Trie, leaves: np.ndarray, first: int) -> None:
    slots = np.arange(first, first + len(leaves))
    zeros = np.zeros(len(leaves), np.float32)
    trie.insert(leaves, slots, zeros, slots % trie.shape.suffixes)


def unit_vectors(count: int, seed: int) -> FloatArray:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def guide_of(
    trie: Trie, leaves: np.ndarray, queries: FloatArray, device: torch.device | None = None
) -> Guide:
    means = PrefixMeans(trie.shape, WIDTH, device)
    means.add(leaves, unit_vectors(len(leaves), seed=3))
    return Guide(means, torch.from_numpy(queries), weight=5.0)


def beams_of(found: Beams) -> list[dict[int, float]]:
    """Leaves with their scores, of each prompt."""
    host = found.on_host()
    rows = []
    for own, own_scores in zip(host.leaves.tolist(), host.scores.tolist(), strict=True):
        rows.append({leaf: s for leaf, s in zip(own, own_scores, strict=True) if s > NEVER})
    return rows


def assert_same(found: list[dict[int, float]], expected: list[dict[int, float]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


@pytest.mark.parametrize("case", range(6))
def test_a_recorded_search_finds_what_the_search_finds_in_any_batch_and_width(
    parts: ModelParts, case: int
) -> None:
    rng = np.random.default_rng(case)
    plain = Decoder(parts.sigma)
    graphs = SearchGraphs(record)
    recorded = Decoder(parts.sigma, graphs)
    shape = parts.sigma.profile.shape
    leaves = rng.integers(0, shape.leaves, int(rng.integers(1, 80)))
    trie = trie_of(plain, leaves)
    width = int(rng.integers(1, 21))
    texts = [TEXTS[number] for number in rng.integers(0, len(TEXTS), int(rng.integers(1, 17)))]
    guide = None
    if case % 2:
        guide = guide_of(trie, leaves, unit_vectors(len(texts), seed=case))

    def search(decoder: Decoder, chosen: list[str], own: Guide | None) -> list[dict[int, float]]:
        prompt = decoder.read_texts(chosen)
        return beams_of(search_leaves(decoder, prompt, shape, width, trie.branches, own))

    together = search(recorded, texts, guide)
    assert (graphs.captured, graphs.eager) == (1, {})
    assert_same(search(plain, texts, guide), together)
    for row, text in enumerate(texts):
        own = guide
        if guide is not None:
            own = Guide(guide.promises, guide.queries[row : row + 1], guide.weight)
        assert_same(search(plain, [text], own), together[row : row + 1])
    five = []
    for decoder in (plain, recorded):
        five.append(search_identifiers(decoder, decoder.read_texts(texts), trie, width))
    for ours, theirs in zip(*five, strict=True):
        assert [each.slot for each in ours] == [each.slot for each in theirs]
        expected = pytest.approx([each.score for each in theirs], abs=TOLERANCE)
        assert [each.score for each in ours] == expected


@pytest.mark.parametrize("case", range(4))
def test_codes_that_are_read_with_their_prompts_change_nothing(
    parts: ModelParts, monkeypatch: pytest.MonkeyPatch, case: int
) -> None:
    rng = np.random.default_rng(case)
    plain = Decoder(parts.sigma)
    ahead = Decoder(parts.sigma, SearchGraphs(record) if case % 2 else None, ahead=10**6)
    shape = parts.sigma.profile.shape
    leaves = rng.integers(0, shape.leaves, int(rng.integers(1, 80)))
    trie = trie_of(plain, leaves)
    width = int(rng.integers(1, 21))
    texts = [TEXTS[number] for number in rng.integers(0, len(TEXTS), int(rng.integers(1, 5)))]
    steps: list[int] = []
    step = Decoder.step

    def counted(self: Decoder, *inputs: Any) -> Any:
        steps.extend([1] if self is ahead else [])
        return step(self, *inputs)

    monkeypatch.setattr(Decoder, "step", counted)
    found = []
    for decoder in (plain, ahead):
        prompt = decoder.read_texts(texts)
        found.append(beams_of(search_leaves(decoder, prompt, shape, width, trie.branches)))
    assert_same(found[1], found[0])
    assert len(steps) <= LEVELS - 2
    five = []
    for decoder in (plain, ahead):
        five.append(search_identifiers(decoder, decoder.read_texts(texts), trie, width))
    for ours, theirs in zip(*five, strict=True):
        assert [(each.leaf, each.slot) for each in ours] == [(e.leaf, e.slot) for e in theirs]
        expected = pytest.approx([each.score for each in theirs], abs=TOLERANCE)
        assert [each.score for each in ours] == expected


def test_prompts_with_too_many_tokens_are_read_alone(
    parts: ModelParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = parts.sigma.profile.shape.codes[0]
    reads: list[str] = []
    for name in ("read", "read_ahead"):
        whole = getattr(Decoder, name)

        def noted(self: Decoder, prompt: Prompts, name: str = name, whole: Any = whole) -> object:
            reads.append(name)
            return whole(self, prompt)

        monkeypatch.setattr(Decoder, name, noted)
    prompt = Decoder(parts.sigma).read_texts(TEXTS[:2])
    tokens = 2 * (prompt.rows.mask.shape[1] + codes)
    for ahead in (None, tokens - 1, tokens):
        Decoder(parts.sigma, ahead=ahead).begin(prompt)
    assert reads == ["read", "read", "read_ahead"]


def test_a_recording_sees_images_that_come_and_go(parts: ModelParts) -> None:
    plain, recorded = Decoder(parts.sigma), Decoder(parts.sigma, SearchGraphs(record))
    shape = parts.sigma.profile.shape
    leaves = np.random.default_rng(1).integers(0, shape.leaves, 20)
    trie = trie_of(plain, leaves)
    guide = guide_of(trie, leaves, unit_vectors(1, seed=8))

    def both() -> list[dict[int, float]]:
        found = []
        for decoder in (plain, recorded):
            prompt = decoder.read_texts(TEXTS[:1])
            found.append(beams_of(search_leaves(decoder, prompt, shape, 5, trie.branches, guide)))
        assert_same(*found)
        return found[1]

    before = both()
    best = next(iter(before[0]))
    gone = trie.reached(np.array([best])).slots
    assert isinstance(guide.promises, PrefixMeans)
    guide.promises.add(np.full(len(gone), best), unit_vectors(20, seed=3)[gone], sign=-1)
    trie.delete(gone.tolist())
    put(trie, np.arange(shape.leaves - 3, shape.leaves), first=20)
    guide.promises.add(np.arange(shape.leaves - 3, shape.leaves), unit_vectors(3, seed=4))
    after = both()
    assert best not in after[0]
    assert recorded.graphs is not None
    assert (recorded.graphs.captured, recorded.graphs.replayed) == (1, 2)


def test_queries_of_a_bucket_share_a_recording_and_few_are_kept(parts: ModelParts) -> None:
    graphs = SearchGraphs(record, limit=2)
    decoder = Decoder(parts.sigma, graphs)
    shape = parts.sigma.profile.shape

    def ask(texts: list[str], beams: int = 3) -> None:
        search_leaves(decoder, decoder.read_texts(texts), shape, beams, None)

    for texts in (["a"], ["a star"], ["two stars"]):
        ask(texts)
    assert (graphs.captured, graphs.replayed) == (1, 3)
    ask(["a"] * 3)
    ask(["a"] * 4)
    assert graphs.captured == 2
    ask(["a"], beams=4)  # a third one, for which the oldest goes
    ask(["a"])
    assert graphs.captured == 4
    assert not graphs.eager


def test_what_fits_no_bucket_or_cannot_be_recorded_is_searched_all_the_same(
    parts: ModelParts,
) -> None:
    def refuse(program: Program, inputs: Tensors) -> Program:
        raise torch.OutOfMemoryError("no memory")

    shape = parts.sigma.profile.shape
    plain = Decoder(parts.sigma)
    expected = beams_of(search_leaves(plain, plain.read_texts(TEXTS[:1]), shape, 4, None))
    one = TEXTS[:1]
    refused, recorded = SearchGraphs(refuse), SearchGraphs(record)
    for graphs, texts, reason in ((refused, one, "capture"), (recorded, one * 17, "prompts")):
        decoder = Decoder(parts.sigma, graphs)
        for _ in range(2):
            found = beams_of(search_leaves(decoder, decoder.read_texts(texts), shape, 4, None))
            assert_same(found[:1], expected)
        assert (graphs.captured, graphs.eager) == (0, {reason: 2})
    long = decoder.read_rows([[5] * 129])
    search_leaves(decoder, long, shape, 4, None)
    search_leaves(decoder, decoder.read_texts(one), shape, 129, None)
    assert recorded.eager == {"prompts": 2, "length": 1, "beams": 1}


WAITS = {
    "a value": lambda there, _: there.sum().item(),
    "a choice": lambda there, _: bool((there > 0).all()),
    "a mask": lambda there, _: there[there > 0],
    "places": lambda there, _: (there > 0).nonzero(),
    "a copy to the host": lambda there, _: there.cpu(),
    "a copy into the host": lambda there, host: host.copy_(there),
    "a blocking copy": lambda _, host: host.to(DEVICE),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_would_wait_for_a_gpu_is_noted(what: str) -> None:
    with torch.inference_mode(), StandInMode() as mode:
        there, host = StandIn(torch.arange(4)), torch.arange(4)
        doubled = torch.cat([there, host.to(DEVICE, non_blocking=True)])[there] * 2
        assert (mode.waits, doubled.device) == ([], DEVICE)
        WAITS[what](there, host)
        assert len(mode.waits) == 1
        with pytest.raises(AssertionError, match="mixes tensors"):
            there + host


@pytest.mark.parametrize("ahead", [0, 10**6])
@pytest.mark.parametrize("guided", [False, True])
def test_nothing_in_a_query_waits_for_the_device_but_the_last_copy(
    guided: bool, ahead: int
) -> None:
    profile = small_profile()
    sigma = parts_from_base(small_base(), profile).sigma
    if guided:
        torch.manual_seed(3)
        projector = sigma.add_projector(VectorReading(WIDTH, noise=0.5))
        projector.place(unit_vectors(9, 1), unit_vectors(9, 2))
    shape = profile.shape
    decoder = Decoder(sigma, ahead=ahead)
    leaves = np.random.default_rng(5).integers(0, shape.leaves, 30)
    vectors = unit_vectors(2, seed=8)

    def search(trie: Trie, guide: Guide | None) -> Beams:
        prompt: Prompts = decoder.read_texts(TEXTS[:2], vectors)
        return search_leaves(decoder, prompt, shape, 6, trie.branches, guide)

    trie = trie_of(decoder, leaves)
    expected = beams_of(search(trie, guide_of(trie, leaves, vectors) if guided else None))

    # In one mode from the start: what is made outside of it has no views inside.
    with torch.inference_mode(), StandInMode() as mode:
        move_to_device(decoder)
        trie = trie_of(decoder, leaves, DEVICE)
        guide = guide_of(trie, leaves, vectors, DEVICE) if guided else None
        mode.waits.clear()
        found = search(trie, guide)
        assert mode.waits == []
        assert mode.operations > 100
        assert_same(beams_of(found), expected)
        (wait,) = mode.waits
        assert wait.endswith("to the host")


def move_to_device(decoder: Decoder) -> None:
    """Move a decoder with its model to the stand-in."""
    move_to_stand_in(decoder.sigma)
    for layer in decoder.layers:
        for joined in (layer.qkv, layer.gate_up):
            joined.weight = StandIn(joined.weight)
            if joined.bias is not None:
                joined.bias = StandIn(joined.bias)
    decoder._level_tokens = [StandIn(tokens) for tokens in decoder._level_tokens]
