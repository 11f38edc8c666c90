"""The paper's encoder and teacher through the real `transformers` loading of a folder with its own code.

The folder stands in for the published weights, which cannot be fetched here; it has their interface and nothing else.
"""

import json
from pathlib import Path

import numpy as np
import pytest

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
    (tmp_path / "small_remote.py").write_text(CODE)
    auto = {"AutoConfig": "small_remote.SmallConfig", "AutoModel": "small_remote.SmallModel"}
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "small-remote", "auto_map": auto, "architectures": ["SmallModel"]}
        )
    )
    import torch
    from safetensors.torch import save_file

    save_file({"scale": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_the_encoder_gives_unit_rows_of_the_width_asked_for(folder: Path) -> None:
    encoder = JinaEncoder(folder, width=6)
    images, texts = encoder.embed_images(pictures(20)), encoder.embed_texts(["a", "longer text"])
    assert images.shape == (20, 6)
    assert texts.shape == (2, 6)
    np.testing.assert_allclose(
        np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-6
    )
    assert encoder.embed_texts([]).shape == (0, 6)


def test_the_teacher_scores_pairs_in_order_one_or_many(folder: Path) -> None:
    teacher = JinaTeacher(folder)
    captions = ["x" * n for n in range(1, 18)]
    np.testing.assert_allclose(
        teacher.score(pictures(17), captions), [len(c) / 100 for c in captions], atol=1e-6
    )
    assert teacher.score([], []).shape == (0,)
