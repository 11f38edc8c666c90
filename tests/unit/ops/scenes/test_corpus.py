"""The corpus generator: deterministic, whole or absent, captions that tell the truth."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from model.progress import quiet
from ops.scenes.corpus import CorpusConfig, drawn, fingerprints, generate, samples
from ops.scenes.vocabulary import SYNONYMS
from schemas.errors import UsageError
from stream.manifest import read_manifest


def digest(folder: Path) -> str:
    parts = sorted((path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def test_the_same_settings_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate(CorpusConfig(6, seed=4), tmp_path / name, "train", lambda _: None)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    generate(CorpusConfig(6, seed=5), tmp_path / "three", "train", lambda _: None)
    assert digest(tmp_path / "three") != digest(tmp_path / "one")


def test_ranges_continue_one_stream() -> None:
    whole = [sample.scene for sample in samples(CorpusConfig(10, seed=1))]
    parts = [
        sample.scene
        for start in (0, 4)
        for sample in samples(CorpusConfig(4 if not start else 6, seed=1, start=start))
    ]
    assert whole == parts


def test_the_manifest_names_images_that_are_there_with_held_out_captions(tmp_path: Path) -> None:
    entries = read_manifest(
        generate(CorpusConfig(5, captions=3, test_captions=2), tmp_path, "test", lambda _: None)
    )
    assert [len(entry.captions) for entry in entries] == [3] * 5
    assert all(set(entry.captions).isdisjoint(entry.test_captions) for entry in entries)
    for entry in entries:
        with Image.open(entry.path) as image:
            assert image.size == (112, 112)
    assert {entry.split for entry in entries} == {"test"}


def test_captions_mention_only_what_the_scene_shows() -> None:
    shapes = {
        word: shape
        for shape in ("circle", "square", "star", "heart", "triangle", "diamond")
        for word in SYNONYMS.get(shape, (shape,))
    }
    for sample in samples(CorpusConfig(200, seed=2)):
        shown = {thing.shape for thing in sample.scene.objects}
        for text in sample.captions:
            assert {shape for word, shape in shapes.items() if f" {word}" in text} <= shown
            assert sample.scene.ground in text


def test_the_worlds_of_base_and_corpus_never_meet() -> None:
    base = fingerprints(CorpusConfig(3000, seed=0, world="base"))
    assert not base & fingerprints(CorpusConfig(3000, seed=0))


def test_drawing_in_memory_by_all_cores_equals_drawing_one_by_one() -> None:
    config = CorpusConfig(7, seed=3)
    pixels, texts = drawn(config, 56, quiet)
    assert pixels.shape == (7, 56, 56, 3)
    assert texts == [sample.captions + sample.test_captions for sample in samples(config)]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        CorpusConfig(0)
