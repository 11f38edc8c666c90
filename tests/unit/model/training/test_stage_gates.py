"""Gates: figures of a stage on samples, and bounds that stop what has not learnt without stopping what few samples make look bad."""

import numpy as np
import pytest

from model.network.checkpoint import ModelParts
from model.training.stage_gates import Gates, StageProbe, evaluate_stage, gate_failures
from model.training.stages import TrainingSet
from tests.unit.model.conftest import TEXTS, pictures

COUNT = 40


def probe(parts: ModelParts) -> StageProbe:
    shape = parts.sigma.profile.shape
    rng = np.random.default_rng(0)
    images = pictures(COUNT)
    identifiers = np.column_stack(
        [rng.integers(0, count, COUNT) for count in (*shape.codes, shape.suffixes)]
    )
    data = TrainingSet(images, identifiers, [(TEXTS[row % 4],) for row in range(COUNT)])
    return StageProbe(
        data,
        [TEXTS[row % 4] for row in range(COUNT)],
        parts.encoder.embed_images(images).astype(np.float16),
        parts.encoder,
    )


def test_an_untrained_model_is_measured_near_chance_and_the_same_each_time(
    parts: ModelParts,
) -> None:
    given = probe(parts)
    memorised, comprehended, aligned = (
        evaluate_stage(name, parts.sigma, given, Gates(), 3)
        for name in ("memorize", "comprehend", "align")
    )
    assert 0 <= memorised["leaf"] <= memorised["id1"] <= 1
    assert memorised["samples"] == 32
    assert memorised["chance"] >= 1 / parts.sigma.profile.shape.codes[0]
    # Untrained, it knows about as much as nothing: the logarithm of the vocabulary.
    assert comprehended["loss"] == pytest.approx(comprehended["chance"], abs=1.0)
    assert aligned["chance"] == 10 / COUNT
    assert 0 <= aligned["R@10"] <= 0.8
    assert evaluate_stage("align", parts.sigma, given, Gates(), 3) == aligned


def test_identifiers_that_the_model_itself_generates_are_agreed_with(parts: ModelParts) -> None:
    from model.decoding.assign import BeamSearchAssigner
    from model.decoding.decoder import Decoder
    from model.identifiers.codebook import pack_all

    given = probe(parts)
    leaves, _ = BeamSearchAssigner(Decoder(parts.sigma), 1).search(list(given.data.images))
    shape = parts.sigma.profile.shape
    given.data.identifiers[:, :4] = [shape.unpack(int(leaf)) for leaf in leaves[:, 0]]
    assert (pack_all(given.data.identifiers[:, :4], shape) == leaves[:, 0]).all()
    figures = evaluate_stage("memorize", parts.sigma, given, Gates(), 0)
    assert figures["id1"] == figures["leaf"] == 1.0


def test_a_figure_below_its_bound_closes_the_gate_unless_samples_are_few() -> None:
    good = {"id1": 0.7, "chance": 0.1, "samples": 200.0, "images": 2000.0}
    assert gate_failures("memorize", good, None, Gates()) == []
    (found,) = gate_failures("memorize", good | {"id1": 0.1}, None, Gates())
    assert "id1 is 0.100 over 200 samples, allowed is at least 0.190" in found
    assert gate_failures("memorize", good | {"id1": 0.1, "samples": 10.0}, None, Gates()) == []
    # A hundred images are a few steps of a first training: finite is all that is asked of it, and of its alignment everything.
    few = good | {"id1": 0.0, "images": 100.0}
    assert gate_failures("memorize", few, None, Gates()) == []
    assert gate_failures("memorize", few | {"id1": float("nan")}, None, Gates())
    assert gate_failures(
        "align", {"R@10": 0.0, "chance": 0.1, "samples": 100.0, "images": 100.0}, None, Gates()
    )
    recall = {"R@10": 0.6, "chance": 0.01, "samples": 200.0, "images": 2000.0}
    assert gate_failures("align", recall, {"R@10": 0.7}, Gates()) == []
    assert "at least 0.800" in gate_failures("align", recall, {"R@10": 0.9}, Gates())[0]
    loss = {"loss": 2.0, "chance": 6.0, "samples": 200.0, "images": 2000.0}
    assert gate_failures("comprehend", loss, None, Gates()) == []
    assert "at most 1.60" in gate_failures("comprehend", loss, {"loss": 1.1}, Gates())[0]
    assert gate_failures("comprehend", loss | {"loss": float("nan")}, None, Gates())
