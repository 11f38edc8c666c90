"""The paper's encoder and teacher, loaded by `transformers` from a folder with code of its own.

The folder takes the place of the published weights, which a test cannot download; it has their
interface and nothing else.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.network.jina import JinaEncoder, JinaTeacher
from model.network.parts import open_teacher
from model.network.profiles import profile
from schemas.errors import RefuseToStartError
from tests.unit.model.conftest import pictures
from tests.unit.model.network.test_hub import COMMIT, hub_cache

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


def remote(folder: Path) -> Path:
    """A model with code of its own."""
    config = {
        "model_type": "small-remote",
        "auto_map": {
            "AutoConfig": "small_remote.SmallConfig",
            "AutoModel": "small_remote.SmallModel",
        },
        "architectures": ["SmallModel"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small_remote.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"scale": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return remote(tmp_path)


def test_the_encoder_gives_unit_rows_of_the_width_asked_for(folder: Path) -> None:
    encoder = JinaEncoder.load(str(folder), width=6)
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


def test_a_hub_name_is_pinned_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub_cache(tmp_path, monkeypatch) / "models--owner--remote"
    own = remote(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("owner/remote", "owner/remote@main", f"owner/remote@{COMMIT}"):
        encoder = JinaEncoder.load(name, width=6)
        assert (encoder.source, encoder.width) == (f"owner/remote@{COMMIT}", 6)
        trusted = replace(profile("qwen-3b"), teacher=name, trust_remote_code=True)
        load_teacher, source = open_teacher(trusted)
        assert source == f"owner/remote@{COMMIT}"
        assert load_teacher().score(pictures(1), ["four"])[0] == pytest.approx(0.04)
    (own / "small_remote.py").unlink()
    with pytest.raises(RefuseToStartError, match="complete folder"):
        JinaEncoder.load("owner/remote")
