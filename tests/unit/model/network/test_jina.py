"""The paper's encoder and teacher, loaded by `transformers` from a folder with code of its own.

The folder takes the place of the published weights, which a test cannot download; it has their
interface and nothing else.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.network.jina import JinaEncoder, JinaTeacher
from tests.unit.model.conftest import pictures

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class SmallConfig(PretrainedConfig):
    model_type = "small-remote"


class SmallModel(PreTrainedModel):
    config_class = SmallConfig

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def encode_image(self, images, task):
        assert task == "retrieval"
        return [torch.arange(1, 9).float() * (1 + image.size[0] % 7) for image in images]

    def encode_text(self, texts, task, prompt_name):
        assert (task, prompt_name) == ("retrieval", "query")
        return [torch.full((8,), float(len(text))) for text in texts]

    def compute_score(self, pairs, query_type, doc_type):
        assert (query_type, doc_type) == ("image", "text")
        scores = [len(text) / 100 for _, text in pairs]
        return scores if len(scores) > 1 else scores[0]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "model_type": "small-remote",
        "auto_map": {
            "AutoConfig": "small_remote.SmallConfig",
            "AutoModel": "small_remote.SmallModel",
        },
        "architectures": ["SmallModel"],
    }
    (tmp_path / "small_remote.py").write_text(CODE)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"scale": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_the_encoder_gives_unit_rows_of_the_width_asked_for(folder: Path) -> None:
    encoder = JinaEncoder.load(folder, width=6)
    images = encoder.embed_images(pictures(20))
    texts = encoder.embed_texts(["a", "longer text"])
    assert images.shape == (20, 6)
    assert texts.shape == (2, 6)
    norms = np.linalg.norm(np.concatenate([images, texts]), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    assert encoder.embed_texts([]).shape == (0, 6)


# 17 is a batch of 16 and one pair, whose score comes as a plain number.
def test_the_teacher_scores_pairs_in_order_one_or_many(folder: Path) -> None:
    teacher = JinaTeacher.load(folder)
    captions = ["x" * length for length in range(1, 18)]
    expected = [length / 100 for length in range(1, 18)]
    np.testing.assert_allclose(teacher.score(pictures(17), captions), expected, atol=1e-6)
    assert teacher.score([], []).shape == (0,)
