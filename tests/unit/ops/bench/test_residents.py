"""The generations whose memory is measured: they share what they are said to share, no more."""

from pathlib import Path

import numpy as np

from model.network.checkpoint import load_checkpoint
from model.network.encoder import Encoder
from model.network.query_head import QueryHeadEncoder
from ops.bench.residents import GENERATIONS, Sharing, write_checkpoints
from tests import vl_checkpoints

TEXT = ["a small red circle"]


def encoders(tmp_path: Path, sharing: Sharing) -> list[Encoder]:
    """The encoders of all generations, loaded as a query worker does."""
    source = vl_checkpoints.jina_v4(tmp_path / "source")
    written = write_checkpoints(str(source), tmp_path / "generations", 0, sharing)
    return [load_checkpoint(folder, for_queries=True).encoder for folder in written.folders]


def test_generations_of_one_encoder_share_it(tmp_path: Path) -> None:
    found = encoders(tmp_path, Sharing.ENCODER)
    assert len(found) == GENERATIONS
    assert len({id(encoder) for encoder in found}) == 1


def test_the_peers_have_an_encoder_each_and_all_of_them_are_alike(tmp_path: Path) -> None:
    found = encoders(tmp_path, Sharing.NOTHING)
    assert len({id(encoder) for encoder in found}) == GENERATIONS
    first, *others = (encoder.embed_texts(TEXT) for encoder in found)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_generations_with_a_query_head_load_none(tmp_path: Path) -> None:
    found = encoders(tmp_path, Sharing.QUERY_HEAD)
    assert all(isinstance(encoder, QueryHeadEncoder) for encoder in found)
