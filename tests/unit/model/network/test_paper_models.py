"""The paper's encoder and teacher, from folders of the real classes, without code of their own.

The oracle is the library's whole model, asked as the published code asks it: one row at a time, or
padded on the left.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from model.network import vl_reader
from model.network.encoders.pretrained import PretrainedEncoder
from model.network.encoders.reader import open_encoder
from model.network.reranker import RerankerTeacher, require_reranker
from schemas.errors import RefuseToStartError
from schemas.records import ByteArray, FloatArray
from tests import vl_checkpoints
from tests.vl_checkpoints import WORDS

SIZES = ((60, 90), (112, 56), (84, 84), (150, 40))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("paper")
    makers = {"jina": vl_checkpoints.jina_v4, "reranker": vl_checkpoints.reranker}
    return {name: make(root / name) for name, make in makers.items()}


@pytest.fixture(scope="module")
def encoder(folders: dict[str, Path]) -> PretrainedEncoder:
    return open_encoder(str(folders["jina"]))


@pytest.fixture(scope="module")
def teacher(folders: dict[str, Path]) -> RerankerTeacher:
    return RerankerTeacher.load(folders["reranker"])


def pictures() -> list[ByteArray]:
    """Pictures of several shapes, so that rows differ in length."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in SIZES]


class Oracle:
    """The library's own way from text and pictures to the states of the last layer."""

    def __init__(self, model_class: Any, folder: Path) -> None:
        self.model = model_class.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    def row(self, prompt: str, picture: ByteArray | None) -> tuple[list[int], Any]:
        """Tokens of a prompt with one image token for each of its picture's, and its patches."""
        if picture is None:
            return self.tokenizer(prompt, add_special_tokens=False)["input_ids"], None
        seen = self.processor(images=[picture], return_tensors="pt")
        count = int(seen["image_grid_thw"].prod()) // 4
        prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * count)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"], seen

    @torch.inference_mode()
    def states(self, rows: list[list[int]], seen: list[Any]) -> torch.Tensor:
        """(B, T, H) of rows padded on the left."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": mask}
        inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        known = [each for each in seen if each is not None]
        if known:
            inputs["pixel_values"] = torch.cat([each["pixel_values"] for each in known])
            inputs["image_grid_thw"] = torch.cat([each["image_grid_thw"] for each in known])
        return self.model(**inputs, output_hidden_states=True).hidden_states[-1]


def unit(vector: torch.Tensor) -> FloatArray:
    return torch.nn.functional.normalize(vector.float(), dim=-1).numpy()


def test_texts_are_the_mean_over_the_published_query(
    folders: dict[str, Path], encoder: PretrainedEncoder
) -> None:
    oracle = Oracle(Qwen2_5_VLForConditionalGeneration, folders["jina"])
    expected = []
    for text in WORDS:
        tokens, _ = oracle.row(f"Query: {text}", None)
        expected.append(unit(oracle.states([tokens], [None])[0].mean(0)))
    found = encoder.embed_texts(WORDS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.width == 48
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_pictures_are_the_mean_over_their_tokens_and_marks(
    folders: dict[str, Path], encoder: PretrainedEncoder
) -> None:
    oracle = Oracle(Qwen2_5_VLForConditionalGeneration, folders["jina"])
    prompt = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Describe the image.<|im_end|>\n"
    )
    config = oracle.model.config
    expected = []
    for picture in pictures():
        tokens, seen = oracle.row(prompt, picture)
        start = tokens.index(config.vision_start_token_id)
        end = tokens.index(config.vision_end_token_id)
        expected.append(unit(oracle.states([tokens], [seen])[0][start : end + 1].mean(0)))
    found = encoder.embed_images(pictures())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for row in range(1, len(found)):
        assert np.abs(found[row] - found[0]).max() > 1e-2


def test_a_batch_gives_what_each_of_its_rows_gives_alone(
    encoder: PretrainedEncoder, teacher: RerankerTeacher
) -> None:
    texts = [*WORDS, "x", "a much longer text about many small red circles " * 3]
    alone = np.concatenate([encoder.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(encoder.embed_texts(texts), alone, atol=1e-5)
    each = np.concatenate([encoder.embed_images([picture]) for picture in pictures()])
    np.testing.assert_allclose(encoder.embed_images(pictures()), each, atol=1e-5)
    # More than one batch.
    many, captions = pictures() * 3, [*WORDS] * 3
    single = np.concatenate(
        [teacher.score([picture], [text]) for picture, text in zip(many, captions, strict=True)]
    )
    np.testing.assert_allclose(teacher.score(many, captions), single, atol=1e-5)
    assert teacher.score([], []).shape == (0,)
    assert encoder.embed_texts([]).shape == (0, 48)


def test_a_text_that_spells_a_control_token_stays_a_text(
    encoder: PretrainedEncoder, teacher: RerankerTeacher
) -> None:
    # As a token it would be a picture that is not there.
    assert teacher.score(pictures()[:1], ["a <|image_pad|> circle"]).shape == (1,)
    spelt, other = encoder.embed_texts(["a <|image_pad|> circle", "a <|vision_end|> circle"])
    assert np.isfinite(spelt).all()
    assert np.abs(spelt - other).max() > 1e-4


def test_a_cut_vector_is_the_unit_vector_of_its_prefix(
    folders: dict[str, Path], encoder: PretrainedEncoder
) -> None:
    cut = open_encoder(str(folders["jina"]), 16)
    whole = encoder.embed_texts(WORDS)[:, :16]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(cut.embed_texts(WORDS), expected, atol=1e-5)
    assert cut.width == 16
    # A profile may ask for the published 2,048 of a model that has fewer.
    assert open_encoder(str(folders["jina"]), 2048).width == 48


def test_the_teacher_scores_as_the_published_code_does(
    folders: dict[str, Path], teacher: RerankerTeacher
) -> None:
    oracle = Oracle(Qwen2VLForConditionalGeneration, folders["reranker"])
    # The published code sets these bounds itself.
    oracle.processor.size = {"shortest_edge": 3136, "longest_edge": 602_112}
    weights = load_file(folders["reranker"] / "model.safetensors")
    rows, seen = [], []
    for picture, caption in zip(pictures(), WORDS, strict=True):
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        tokens, patches = oracle.row(f"**Document**:\n{image}\n**Query**:\n{caption}", picture)
        rows.append([*tokens, 100])
        seen.append(patches)
    last = oracle.states(rows, seen)[:, -1]
    inner = torch.relu(last @ weights["score.0.weight"].T + weights["score.0.bias"])
    logits = (inner @ weights["score.2.weight"].T + weights["score.2.bias"]).squeeze(-1)
    expected = torch.sigmoid(logits - 2.65).numpy()
    np.testing.assert_allclose(teacher.score(pictures(), WORDS), expected, atol=1e-5)


def test_a_score_depends_on_the_picture_and_on_the_caption(teacher: RerankerTeacher) -> None:
    first, second = pictures()[:2]
    scores = teacher.score([first, second, first, second], [WORDS[0], WORDS[0], WORDS[1], WORDS[1]])
    assert ((scores > 0) & (scores < 1)).all()
    assert abs(scores[0] - scores[1]) > 1e-3
    assert abs(scores[0] - scores[2]) > 1e-3


def test_bfloat16_as_on_a_gpu_gives_nearly_the_same(
    folders: dict[str, Path],
    encoder: PretrainedEncoder,
    teacher: RerankerTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def as_on_a_gpu(module: Any) -> Any:
        # The head of the teacher stays as it was saved.
        return module if isinstance(module, nn.Sequential) else module.bfloat16().eval()

    monkeypatch.setattr(vl_reader, "ready", as_on_a_gpu)
    half = open_encoder(str(folders["jina"]))
    for mine, theirs in (
        (half.embed_texts(WORDS), encoder.embed_texts(WORDS)),
        (half.embed_images(pictures()), encoder.embed_images(pictures())),
    ):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-5)
        cosines = (mine * theirs).sum(1)
        assert (cosines > 0.999).all()
        assert (cosines < 1 - 1e-7).any()
    scores = RerankerTeacher.load(folders["reranker"]).score(pictures(), WORDS)
    np.testing.assert_allclose(scores, teacher.score(pictures(), WORDS), atol=0.05)


def test_the_names_of_weights_may_be_the_published_ones_or_those_of_later_versions(
    folders: dict[str, Path], encoder: PretrainedEncoder, teacher: RerankerTeacher, tmp_path: Path
) -> None:
    published = load_file(folders["jina"] / "model.safetensors")
    assert {"visual.patch_embed.proj.weight", "model.norm.weight"} <= published.keys()
    later = vl_checkpoints.with_later_names(folders["jina"], tmp_path / "jina")
    assert not published.keys() & load_file(later / "model.safetensors").keys()
    np.testing.assert_array_equal(
        open_encoder(str(later)).embed_images(pictures()), encoder.embed_images(pictures())
    )
    later = vl_checkpoints.with_later_names(folders["reranker"], tmp_path / "reranker")
    np.testing.assert_array_equal(
        RerankerTeacher.load(later).score(pictures(), WORDS), teacher.score(pictures(), WORDS)
    )


def test_a_configuration_may_be_the_published_one_without_a_part_for_texts(
    folders: dict[str, Path], encoder: PretrainedEncoder, teacher: RerankerTeacher, tmp_path: Path
) -> None:
    published = vl_checkpoints.with_published_config(folders["jina"], tmp_path / "jina")
    assert "text_config" not in json.loads((published / "config.json").read_text())
    np.testing.assert_array_equal(
        open_encoder(str(published)).embed_images(pictures()), encoder.embed_images(pictures())
    )
    published = vl_checkpoints.with_published_config(folders["reranker"], tmp_path / "reranker")
    np.testing.assert_array_equal(
        RerankerTeacher.load(published).score(pictures(), WORDS), teacher.score(pictures(), WORDS)
    )


def test_the_teacher_is_loaded_without_a_word_about_its_head(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    RerankerTeacher.load(folders["reranker"])
    assert not caplog.records


def test_the_original_with_its_adapters_apart_is_refused_with_what_to_do(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = vl_checkpoints.with_later_names(folders["jina"], tmp_path / "original")
    (folder / "adapters").mkdir()
    with pytest.raises(RefuseToStartError, match=r"jina-embeddings-v4-vllm-retrieval.*merge"):
        open_encoder(str(folder))
    (folder / "adapters").rmdir()
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["JinaEmbeddingsV4Model"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefuseToStartError, match=r"jina-embeddings-v4-vllm-retrieval.*merge"):
        open_encoder(str(folder))


def test_a_model_that_scores_nothing_is_no_teacher(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RefuseToStartError, match="must hold a model of type qwen2_vl, got one of"):
        require_reranker(folders["jina"])
    plain = vl_checkpoints.with_later_names(folders["reranker"], tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    without = {name: value for name, value in tensors.items() if not name.startswith("score.")}
    save_file(without, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RefuseToStartError, match=r"weights score\.\* of jina-reranker-m0, got none"
    ):
        RerankerTeacher.load(plain)
    del tensors["score.2.bias"]
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefuseToStartError, match=r"do not fit this configuration at 2\.bias"):
        RerankerTeacher.load(plain)
