"""The query head: it learns the encoder's vectors, is saved, and replaces the text tower."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.decoder import Decoder, PromptCache, Prompts
from model.decoding.vllm import VllmDecoder
from model.identifiers.codebook import pack_all
from model.network import checkpoint as checkpoints
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.checkpoint_description import ABOUT
from model.network.parts import ModelParts, parts_from_base
from model.network.query_head import QueryHead, QueryHeadEncoder, QuerySpace
from model.network.vector_reading import VectorReading
from model.retrieval.search import SearchIndex, search, search_embedded
from model.retrieval.trie import Trie
from model.training.batches import StageBatch, counts_of
from model.training.stages import run_stage
from model.training.training_set import TrainingSet, stage_examples
from schemas.errors import RefuseToStartError, UsageError
from schemas.identifiers import LEVELS
from schemas.retrieval_settings import RetrievalSettings
from tests.unit.model.conftest import TEXTS, WIDTH, small_base, small_profile
from tests.unit.model.network.test_checkpoint import codebook_of
from tests.unit.model.training.test_stages import COUNT, stopping, training_set
from tests.unit.model.training.test_stages import Stopped as StoppedRun

SPACE = QuerySpace(WIDTH, scale=7.0)


@pytest.fixture
def head(parts: ModelParts) -> QueryHead:
    """The head of the model `parts`, untrained."""
    torch.manual_seed(1)
    return parts.sigma.add_query_head(SPACE).eval()


def taught(parts: ModelParts) -> TrainingSet:
    """A training set with a direction of its own for each text, unrelated to what it says."""
    data = training_set(parts)
    own = np.linalg.qr(np.random.default_rng(5).standard_normal((WIDTH, WIDTH)))[0]
    number = {text: row for row, text in enumerate(TEXTS)}
    rows = [number[text] for captions in data.captions for text in captions]
    return replace(data, query_vectors=own[rows].astype(np.float16))


def test_the_head_learns_the_vector_of_each_text_and_not_that_of_another(
    parts: ModelParts, head: QueryHead, tmp_path: Path
) -> None:
    data = taught(parts)
    stage = replace(parts.sigma.profile.stage("align"), epochs=20)
    run_stage(parts.sigma, data, stage, tmp_path / "stage")
    assert data.query_vectors is not None
    targets = data.query_vectors[:2].astype(np.float32)
    found = QueryHeadEncoder(parts.sigma, head).embed_texts(data.captions[0])
    own = (found * targets).sum(1)
    shuffled = (found * targets[::-1]).sum(1)
    assert own.min() > 0.8
    assert shuffled.max() < 0.5


def test_a_text_has_the_same_unit_vector_alone_in_a_batch_and_from_the_decoders_reading(
    parts: ModelParts, head: QueryHead
) -> None:
    encoder = QueryHeadEncoder(parts.sigma, head)
    together = encoder.embed_texts(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alone = np.concatenate([encoder.embed_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    decoder = Decoder(parts.sigma)
    read = decoder.read(decoder.read_texts(TEXTS))
    np.testing.assert_allclose(together, encoder.of_states(read.state), atol=1e-5)
    assert encoder.embed_texts([]).shape == (0, WIDTH)


def test_only_queries_teach_the_head_and_each_has_a_weight_of_its_own(
    parts: ModelParts, head: QueryHead
) -> None:
    data = taught(parts)
    assert data.query_vectors is not None
    known = replace(data, query_vectors=data.query_vectors[:5])
    stage = parts.sigma.profile.stage("align")
    examples = stage_examples(parts.sigma, known, replace(stage, replay=0.5), 0)
    assert [each.query for each in examples if each.query is not None] == list(range(5))
    assert counts_of(StageBatch(examples)).tolist()[2] == 5
    asked = [each for each in examples if each.query is not None]
    targets = torch.from_numpy(data.query_vectors[:5].astype(np.float32))
    losses = parts.sigma.losses(examples[:8], None, targets)
    with torch.no_grad():
        states = parts.sigma.query_states([text for own in data.captions for text in own][:5])
        expected = 1 - (head(states) * targets).sum(1).mean()
    torch.testing.assert_close(losses.embedding, expected, atol=1e-5, rtol=1e-5)
    assert (losses.counts[2], len(asked)) == (5, 5)
    losses.embedding.backward()
    assert all(weight.grad is not None for weight in head.parameters())


def test_a_search_reads_each_prompt_once_and_finds_what_its_own_vectors_find(
    parts: ModelParts, head: QueryHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = training_set(parts)
    shape = parts.sigma.profile.shape
    trie = Trie(shape)
    leaves = pack_all(data.identifiers[:, :LEVELS], shape)
    trie.insert(leaves, np.arange(COUNT), np.zeros(COUNT, np.float32), data.identifiers[:, LEVELS])
    vectors = np.random.default_rng(2).standard_normal((COUNT, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    encoder = QueryHeadEncoder(parts.sigma, head)
    decoder = Decoder(parts.sigma)
    index = SearchIndex(decoder, encoder, trie, vectors.astype(np.float16))
    settings = RetrievalSettings()
    expected = search_embedded(index, TEXTS, encoder.embed_texts(TEXTS), 5, settings)

    readings: list[int] = []
    read = decoder.read

    def noted(prompt: Prompts) -> PromptCache:
        readings.append(prompt.count)
        return read(prompt)

    monkeypatch.setattr(decoder, "read", noted)
    # Whoever reads a prompt otherwise takes the model's own way.
    monkeypatch.setattr(decoder.language_model, "forward", None)
    found = search(index, TEXTS, 5, settings)
    assert readings == [len(TEXTS)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.slots, theirs.slots)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_a_checkpoint_keeps_the_head_and_loads_no_encoder_for_queries(
    parts: ModelParts, head: QueryHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(Checkpoint(parts.sigma, codebook_of(parts, 0), parts.encoder), tmp_path)
    assert '"format": 4' in (tmp_path / ABOUT).read_text()
    whole = load_checkpoint(tmp_path)
    assert whole.sigma.query_head is not None
    np.testing.assert_array_equal(
        QueryHeadEncoder(whole.sigma, whole.sigma.query_head).embed_texts(TEXTS),
        QueryHeadEncoder(parts.sigma, head).embed_texts(TEXTS),
    )
    assert not isinstance(whole.encoder, QueryHeadEncoder)

    def load_encoder(*_: object) -> None:
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(checkpoints, "_load_encoder", load_encoder)
    own = load_checkpoint(tmp_path, answering=True, for_queries=True).encoder
    assert isinstance(own, QueryHeadEncoder)
    assert (own.width, own.scale) == (WIDTH, SPACE.scale)
    assert own.embed_texts(TEXTS).shape == (len(TEXTS), WIDTH)


def test_a_killed_alignment_with_a_head_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def fresh() -> ModelParts:
        parts = parts_from_base(small_base(), small_profile())
        torch.manual_seed(1)
        parts.sigma.add_query_head(SPACE)
        return parts

    straight, killed, resumed = fresh(), fresh(), fresh()
    stage = straight.sigma.profile.stage("align")
    run_stage(straight.sigma, taught(straight), stage, tmp_path / "a", seed=3)
    folder = tmp_path / "b"
    with pytest.raises(StoppedRun):
        run_stage(killed.sigma, taught(killed), stage, folder, seed=3, progress=stopping)
    run_stage(resumed.sigma, taught(resumed), stage, folder, seed=3, resume=True)
    expected = straight.sigma.state_dict()
    assert any(name.startswith("query_head.") for name in expected)
    for name, value in resumed.sigma.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_model_that_reads_vectors_has_no_head_and_vllm_takes_none(parts: ModelParts) -> None:
    reading = parts_from_base(small_base(), small_profile()).sigma
    reading.add_projector(VectorReading(WIDTH, noise=0.5))
    with pytest.raises(UsageError, match="cannot have a query head"):
        reading.add_query_head(SPACE)
    parts.sigma.add_query_head(SPACE)
    with pytest.raises(RefuseToStartError, match=r"one with a query head.*SIGMA_ENGINE=torch"):
        VllmDecoder.start(Decoder(parts.sigma), Path("unused"))
