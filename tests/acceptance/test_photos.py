"""A folder of pictures becomes searchable by one command, and stays so by the same one."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image

from ops.scenes.corpus import CorpusConfig, samples
from tests.acceptance.conftest import Home
from tests.doc_blocks import blocks
from tests.encoder_checkpoints import CHECKPOINTS

PICTURES = 20

# Of EXIF: the top of the picture is on the right.
TURNED = 6


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    home.sigma("down")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP: what it sees does not matter here, and it is loaded at once."""
    return CHECKPOINTS["clip"](tmp_path_factory.mktemp("encoder") / "clip")


def write_album(folder: Path, first: int, count: int) -> None:
    """Pictures as phones and programs write them, in subfolders."""
    pillow_heif.register_heif_opener()
    drawn = samples(CorpusConfig(count, seed=5, start=first))
    for number, sample in enumerate(drawn, first):
        image = Image.fromarray(sample.pixels(96))
        place = folder / f"album {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        kind = number % 5
        if kind == 0:
            turned = Image.Exif()
            turned[0x0112] = TURNED
            image.rotate(90).save(place / f"IMG_{number}.JPG", exif=turned)
        else:
            suffix = ("", "heic", "avif", "webp", "png")[kind]
            image.save(place / f"IMG_{number}.{suffix}")


def photos(home: Home, folder: Path, code: int, *more: str | Path) -> dict[str, object]:
    done = home.sigma("photos", folder, *more, "--json")
    assert done.code == code, done.err[-2000:]
    return dict(done.json)


def test_a_folder_of_pictures_is_searched_by_one_command_and_again_when_it_has_grown(
    empty: Home, tmp_path: Path, encoder: Path
) -> None:
    album = tmp_path / "Pictures"
    write_album(album, 0, PICTURES)
    (album / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    (album / "notes.txt").write_text("a text is no caption")
    (album / ".thumbnails").mkdir()

    # Killed as soon as it has seen them: the next call goes on from there.
    with started(empty, album, encoder) as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if "embed images" in line:
                break
        killed.kill()

    done = photos(empty, album, 2, "--encoder", encoder)
    assert (done["searchable"], done["new"], done["trained"]) == (PICTURES, PICTURES, PICTURES)
    assert done["generation"] == 1
    assert done["hidden"] == 1
    rejected = {Path(file["path"]).name: file["code"] for file in done["rejected"]}
    assert rejected == {"broken.jpg": "truncated", "notes.txt": "not-an-image"}
    answer = empty.ok("query", "a red circle")
    assert len(answer["results"]) == 10

    # The same folder with a new picture, and another folder: nothing else is sent or learnt.
    write_album(album, PICTURES, 1)
    second = tmp_path / "More"
    write_album(second, PICTURES + 1, 2)
    again = photos(empty, album, 2)
    assert (again["searchable"], again["new"], again["trained"]) == (PICTURES + 1, 1, 0)
    assert again["rejected"] == done["rejected"]
    other = photos(empty, second, 0)
    assert (other["searchable"], other["new"], other["index"]) == (2, 2, PICTURES + 3)
    status = empty.ok("status")
    assert status["images"]["indexed"] == PICTURES + 3
    assert status["dead_letters"] == 2

    # A picture that is deleted from the index stays away, and another encoder asks for a training.
    empty.ok("delete", answer["results"][0]["image_id"])
    assert photos(empty, album, 2)["deleted"] == 1
    refused = empty.sigma("photos", album, "--encoder", "efficientnet-minilm")
    assert refused.code == 2
    assert "add --retrain" in refused.err


@pytest.mark.timeout(600)
def test_the_readme_makes_photos_searchable_with_the_weights_of_the_registry(
    empty: Home, tmp_path: Path
) -> None:
    write_album(tmp_path / "Pictures", 0, PICTURES)
    commands = re.findall(r"^\$ sigma (.*)$", *blocks("README.md", "console"), re.MULTILINE)
    making, asking = [shlex.split(line.replace("~", str(tmp_path))) for line in commands]
    # It learns from them, for a minute on two idle cores.
    done = empty.sigma(*making, "--json", timeout=500)
    assert done.code == 0, done.err[-2000:]
    assert done.json["searchable"] == PICTURES
    assert len(empty.ok(*asking)["results"]) == 2


def started(home: Home, album: Path, encoder: Path) -> "subprocess.Popen[str]":
    """`sigma photos` in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "photos", str(album), "--encoder", str(encoder)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=home.environment(),
    )


@pytest.mark.parametrize("folder", ["missing", "file", "empty"])
def test_a_folder_that_holds_nothing_is_one_sentence(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    if folder == "file":
        place.write_bytes(b"")
    elif folder == "empty":
        place.mkdir()
    done = Home(tmp_path / "home").sigma("photos", place)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert f"{place} " in done.err
    # Nothing was made for it.
    assert not (tmp_path / "home").exists()
