"""A model that reads an encoder's vectors: prompts, noise, stages, gates and checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.assign import BeamSearchAssigner
from model.decoding.beam import search_leaves
from model.decoding.decoder import Decoder
from model.decoding.vllm import VllmDecoder
from model.identifiers.codebook import CodebookConfig, fit_codebook, pack_all
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.parts import ModelParts, parts_from_base
from model.network.prompts import TrainingExample
from model.network.vector_reading import VectorReading
from model.training.stage_gates import Gates, StageProbe, evaluate_stage, gate_failures
from model.training.stages import run_stage
from model.training.training_set import TrainingSet, stage_examples
from model.training.vector_set import VectorSet, noise_like, noisy
from schemas.errors import RefuseToStartError
from tests.unit.model.conftest import TEXTS, WIDTH, pictures, small_base, small_profile
from tests.unit.model.training.test_stages import Stopped, stopping

COUNT = 16


def reader(noise: float = 0.5, with_text: bool = False) -> ModelParts:
    """A model that reads vectors; its means are those of random ones."""
    parts = parts_from_base(small_base(), small_profile())
    torch.manual_seed(1)
    reading = VectorReading(WIDTH, noise=noise, with_text=with_text)
    parts.sigma.add_projector(reading).place(vectors(COUNT, 5), vectors(COUNT, 6))
    return parts


def vectors(count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def vector_set(captioned: int = 0, noise: float = 0.5) -> VectorSet:
    placed = torch.from_numpy(vectors(COUNT + captioned, 7))
    return VectorSet(placed, placed[:COUNT], torch.zeros(WIDTH), noise)


def training_set(parts: ModelParts, captioned: int = 0, noise: float = 0.5) -> TrainingSet:
    """Random identifiers and vectors; the first images have a caption each."""
    shape = parts.sigma.profile.shape
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, count, COUNT) for count in (*shape.codes, shape.suffixes)]
    captions = [(TEXTS[row % 4],) if row < captioned else () for row in range(COUNT)]
    return TrainingSet(
        images=pictures(COUNT),
        identifiers=np.column_stack(codes),
        captions=captions,
        vectors=vector_set(captioned, noise),
    )


def test_a_vector_takes_the_place_of_an_image_in_a_batch_with_pictures_and_texts() -> None:
    sigma = reader().sigma
    prompts = sigma.prompts
    patches = sigma.preprocessor(pictures(1))
    picture = prompts.memorize(0, patches.token_counts(sigma.merge)[0], (1, 2, 0, 1, 3))
    vector = prompts.read_vector(0, 4, (0, 1, 2, 0, 2))
    text = prompts.align(TEXTS[0], (3, 0, 1, 1, 0), None)
    row = torch.from_numpy(vectors(1, 3))
    parts: list[tuple[TrainingExample, ...]] = [(text,), (vector,), (picture,)]

    def loss(batch: tuple[TrainingExample, ...]) -> float:
        images = patches if any(example.image is not None for example in batch) else None
        read = row if any(example.vector is not None for example in batch) else None
        return float(sigma(list(batch), images, read)[0].detach())

    apart = [loss(batch) for batch in parts]
    # Each identifier has as many tokens, so the mean of the batch is the mean of its rows.
    assert loss((text, vector, picture)) == pytest.approx(np.mean(apart), abs=1e-4)
    assert loss((picture, text, vector)) == pytest.approx(np.mean(apart), abs=1e-4)


def test_a_query_is_read_by_its_vector_and_by_its_words_only_where_captions_taught_them() -> None:
    for with_text in (False, True):
        decoder = Decoder(reader(with_text=with_text).sigma)
        one, other = vectors(2, 3)
        rows = np.stack([one, one, other])
        prompt = decoder.read(decoder.read_texts([TEXTS[0], TEXTS[1], TEXTS[0]], rows))
        same_vector = torch.equal(prompt.state[0], prompt.state[1])
        assert same_vector == (not with_text)
        assert not torch.allclose(prompt.state[0], prompt.state[2], atol=1e-4)


def test_texts_and_pictures_are_each_read_without_their_own_mean() -> None:
    projector = reader().sigma.projector
    assert projector is not None
    placed = projector.placed_images(vectors(COUNT, 5))
    assert torch.allclose(placed.norm(dim=1), torch.ones(COUNT))
    # A text that stands to the texts as a picture stands to the pictures is read as that picture.
    as_text = projector.as_texts(placed)
    gap = projector.text_mean - torch.from_numpy(vectors(COUNT, 6).mean(0))
    assert gap.abs().max() < 1e-6
    assert (
        torch.nn.functional.cosine_similarity(projector.placed_texts(as_text), placed).min() > 0.9
    )


@pytest.mark.parametrize("pictures_too", [True, False])
def test_a_picture_that_is_read_by_its_vector_has_one_posting(pictures_too: bool) -> None:
    parts = parts_from_base(small_base(), small_profile())
    reading = VectorReading(WIDTH, noise=0.5, pictures=pictures_too)
    parts.sigma.add_projector(reading).place(vectors(COUNT, 5), vectors(COUNT, 6))
    assigner = BeamSearchAssigner(Decoder(parts.sigma), postings=3)
    for leaves in assigner.assign(pictures(2), vectors(2, 8)):
        assert len(leaves.postings) == (1 if pictures_too else 3)
        assert leaves.spill


def test_noise_is_as_long_as_it_says() -> None:
    wide = torch.zeros(4096)
    wide[0] = 1.0
    # At a right angle to the vector: cos = 1 / sqrt(1 + noise**2).
    blurred = noisy(wide, 2.0, np.random.default_rng(0))
    assert float(blurred[0]) == pytest.approx(5**-0.5, abs=0.03)
    assert float(blurred.norm()) == pytest.approx(1.0)
    assert torch.equal(noisy(wide, 0.0, np.random.default_rng(0)), wide)


def test_the_noise_is_that_with_which_pictures_lie_as_far_from_pictures_as_texts_do() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((400, 256)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    direction = rng.standard_normal(images.shape).astype(np.float32) / 16
    for length in (0.5, 1.0, 2.0):
        texts = images + length * direction
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        assert noise_like(images, texts, 0) == pytest.approx(length, abs=0.26)


def test_a_picture_that_stands_for_a_query_also_leads_to_pictures_near_it() -> None:
    parts = reader()
    data = training_set(parts)
    assert data.vectors is not None
    prompts = parts.sigma.prompts
    ask = prompts.read_query_vector(3, 4, data.identifiers[3])
    assign = prompts.read_vector(3, 4, data.identifiers[3])

    def draw(step: int, batch: list[TrainingExample]) -> tuple[list[TrainingExample], torch.Tensor]:
        assert data.vectors is not None
        examples, drawn = data.vectors.draw(batch, data.identifiers, prompts, (0, step))
        assert drawn is not None
        return examples, drawn

    # A step draws the same for an example, whatever stands beside it.
    alone, together = draw(1, [ask]), draw(1, [assign, ask])
    assert alone[0][0] == together[0][1]
    assert torch.equal(alone[1][0], together[1][1])
    assert not torch.equal(alone[1], draw(2, [ask])[1])
    # A picture that is assigned keeps its vector and its identifier.
    assert together[0][0] == assign
    assert torch.equal(together[1][0], data.vectors.placed[3])
    drawn = [draw(step, [ask])[0][0].tokens for step in range(60)]
    assert 0.3 < np.mean([tokens == ask.tokens for tokens in drawn]) < 0.95
    near = data.vectors.images @ data.vectors.images[3]
    far = prompts.read_query_vector(3, 4, data.identifiers[int(near.argmin())]).tokens
    assert far not in drawn


def test_without_captions_pictures_stand_for_texts_and_with_captions_both_are_learnt() -> None:
    parts = reader()
    align = parts.sigma.profile.stage("align")
    alone = stage_examples(parts.sigma, training_set(parts), align, 0)
    assert {example.vector for example in alone} == set(range(COUNT))
    assert all(example.is_query for example in alone)
    mixed = stage_examples(parts.sigma, training_set(parts, captioned=4), align, 0)
    texts = [example for example in mixed if (example.vector or 0) >= COUNT]
    assert {example.vector for example in texts} == set(range(COUNT, COUNT + 4))
    # As often as pictures, whatever their number.
    assert len(texts) == pytest.approx(len(mixed) / 2, rel=0.05)
    # A picture is read by its vector alone.
    memorized = stage_examples(parts.sigma, training_set(parts), parts.sigma.profile.stages[0], 0)
    assert {(example.image, example.is_query) for example in memorized} == {(None, False)}


def test_a_killed_alignment_with_noise_resumes_to_the_same_weights(tmp_path: Path) -> None:
    stage = small_profile().stage("align")
    straight, killed, resumed = reader(), reader(), reader()
    run_stage(straight.sigma, training_set(straight), stage, tmp_path / "a", seed=3)
    folder = tmp_path / "b"
    with pytest.raises(Stopped):
        run_stage(killed.sigma, training_set(killed), stage, folder, seed=3, progress=stopping)
    run_stage(resumed.sigma, training_set(resumed), stage, folder, seed=3, resume=True)
    expected = straight.sigma.state_dict()
    for name, value in resumed.sigma.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_alignment_on_pictures_alone_finds_them_by_texts_that_lie_near(tmp_path: Path) -> None:
    parts = reader()
    sigma = parts.sigma
    data = training_set(parts)
    stage = replace(sigma.profile.stage("align"), vector_views=3000)
    run_stage(sigma, data, stage, tmp_path / "stage", checkpoints=0)
    assert data.vectors is not None
    assert sigma.projector is not None
    texts = sigma.projector.as_texts(data.vectors.placed)
    prompt = Decoder(sigma).read_texts([""] * COUNT, texts)
    beams = search_leaves(Decoder(sigma), prompt, sigma.profile.shape, 8, None)
    leaves = pack_all(data.identifiers[:, :4], sigma.profile.shape)
    assert (beams.leaves.numpy() == leaves[:, None]).any(1).mean() > 0.8
    # And pictures are assigned by the same vectors, to this leaf or to a few others beside it.
    placed = data.vectors.placed.numpy() + sigma.projector.image_mean.numpy()
    assigned, _ = BeamSearchAssigner(Decoder(sigma), 3).search([], placed)
    assert (assigned[:, :3] == leaves[:, None]).any(1).mean() > 0.8


def probe_of(parts: ModelParts, embeddings: np.ndarray) -> StageProbe:
    return StageProbe(
        data=training_set(parts),
        queries=[""] * COUNT,
        embeddings=embeddings.astype(np.float16),
        encoder=parts.encoder,
    )


def test_pictures_without_captions_are_measured_by_their_own_vectors_with_noise() -> None:
    parts = reader(noise=0.3)
    figures = evaluate_stage("align", parts.sigma, probe_of(parts, vectors(COUNT, 9)), Gates(), 0)
    assert (figures["asked"], figures["dense"]) == (COUNT, 1.0)
    assert "caption_wins" not in figures
    memorized = evaluate_stage(
        "memorize", parts.sigma, probe_of(parts, vectors(COUNT, 9)), Gates(), 0
    )
    assert 0 <= memorized["leaf"] <= memorized["id1"] <= 1


ALIGNED = {"R@10": 0.25, "dense": 0.3, "chance": 0.005, "samples": 200.0, "asked": 200.0} | {
    "images": 2000.0
}


def test_a_gate_goes_by_what_exact_search_finds_and_refuses_an_encoder_that_finds_nothing() -> None:
    assert gate_failures("align", ALIGNED, None, Gates(progress=0.8)) == []
    (failure,) = gate_failures("align", ALIGNED | {"R@10": 0.1}, None, Gates(progress=0.8))
    assert failure.startswith("R@10 must be at least 0.241, got 0.100")
    lost = gate_failures("align", ALIGNED | {"R@10": 0.01, "dense": 0.01}, None, Gates())
    assert lost[-1].startswith("exact search with the encoder must find more than chance")


def test_a_checkpoint_keeps_how_vectors_are_read(tmp_path: Path) -> None:
    parts = reader(with_text=True)
    book = fit_codebook(vectors(60, 1), CodebookConfig(parts.sigma.profile.shape))
    save_checkpoint(Checkpoint(parts.sigma, book, parts.encoder), tmp_path)
    loaded = load_checkpoint(tmp_path).sigma
    assert loaded.projector is not None
    assert parts.sigma.projector is not None
    assert loaded.projector.reading == parts.sigma.projector.reading
    rows = vectors(2, 3)
    states: list[torch.Tensor] = []
    for sigma in (parts.sigma, loaded):
        decoder = Decoder(sigma)
        states.append(decoder.read(decoder.read_texts(TEXTS[:2], rows)).state)
    torch.testing.assert_close(*states)


def test_vllm_is_refused_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RefuseToStartError, match="set SIGMA_ENGINE=torch"):
        VllmDecoder.start(Decoder(reader().sigma), tmp_path)
