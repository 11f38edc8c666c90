"""The key ring: keys of the settings and of a file, which is followed."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of, parse_key
from schemas.errors import SigmaError
from workers.query.key_ring import LOOK_EVERY_S, KeyRing


def entry(name: str, secret: str = "", scope: str = "read") -> str:
    """An entry for a key that is by default the name twice."""
    return f"{name}:{scope}:{digest_of((secret or name * 2).encode())}"


@dataclass
class FollowedFile:
    """A file of keys, the ring that follows it, and its clock."""

    path: Path
    now_s: float = 0.0

    def open(self, *settings: str) -> KeyRing:
        keys = tuple(parse_key(text, "entry") for text in settings)
        return KeyRing.open(AccessSettings(keys, self.path), lambda: self.now_s)

    def replace(self, *lines: str) -> None:
        """As editors and mounted secrets do it: by another file."""
        aside = self.path.with_name("aside")
        aside.write_text("\n".join(lines), encoding="utf-8")
        os.replace(aside, self.path)
        self.now_s += LOOK_EVERY_S


@pytest.fixture
def file(tmp_path: Path) -> FollowedFile:
    followed = FollowedFile(tmp_path / "keys")
    followed.replace("# the web shop", entry("web"), "", f"  {entry('app')}  ")
    return followed


def test_a_key_is_found_by_what_its_owner_sends_and_by_nothing_else(file: FollowedFile) -> None:
    ring = file.open(entry("ops", scope="admin"))
    found = ring.find(b"webweb")
    assert found == ApiKey("web", ApiScope.READ, digest_of(b"webweb"))
    assert ring.find(b"opsops") is not None
    assert ring.find(b"appapp") is not None
    for wrong in (b"", b"webwe", b"webwebx", b"WEBWEB", digest_of(b"webweb").encode(), b"\xff\0"):
        assert ring.find(wrong) is None


def test_a_key_that_is_taken_out_of_the_file_is_refused_a_second_later(file: FollowedFile) -> None:
    ring = file.open()
    file.replace(entry("web"), entry("new"))
    assert ring.refresh() == {"app"}
    assert ring.find(b"appapp") is None
    assert ring.find(b"newnew") is not None
    assert ring.find(b"webweb") is not None


def test_a_file_without_any_key_refuses_everybody_and_opens_nothing(file: FollowedFile) -> None:
    ring = file.open()
    file.replace("")
    assert ring.refresh() == {"web", "app"}
    assert ring.find(b"webweb") is None
    assert ring.is_required


@pytest.mark.parametrize("content", ["web:read:rubbish", "\ufffdrubbish", f"{'x' * (1 << 20)}xx"])
def test_a_damaged_file_locks_nobody_out_and_is_read_again_when_it_is_mended(
    file: FollowedFile, content: str
) -> None:
    ring = file.open()
    file.replace(content)
    assert ring.refresh() == frozenset()
    assert ring.find(b"webweb") is not None
    file.replace(entry("web"))
    assert ring.refresh() == {"app"}


def test_a_file_that_vanishes_for_a_moment_locks_nobody_out(file: FollowedFile) -> None:
    ring = file.open()
    file.path.unlink()
    file.now_s += LOOK_EVERY_S
    assert ring.refresh() == frozenset()
    assert ring.find(b"webweb") is not None


def test_the_file_is_looked_at_once_a_second_and_not_with_each_request(file: FollowedFile) -> None:
    ring = file.open()
    ring.refresh()
    file.replace(entry("web"))
    file.now_s -= LOOK_EVERY_S / 2
    assert ring.refresh() == frozenset()
    assert ring.find(b"appapp") is not None
    file.now_s += LOOK_EVERY_S / 2
    assert ring.refresh() == {"app"}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((), "without any"),
        (("# none",), "without any"),
        (("web:read:rubbish",), "line 1 of"),
        ((entry("a"), entry("a")), "got a twice"),
        ((entry("ops", "another"),), "got ops twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_at_the_start(
    file: FollowedFile, lines: tuple[str, ...], told: str
) -> None:
    file.replace(*lines)
    settings = [entry("ops")] if "ops" in told else []
    with pytest.raises(SigmaError, match=told) as refused:
        file.open(*settings)
    assert "rubbish" not in str(refused.value)


def test_a_file_that_is_missing_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SigmaError, match="SIGMA_API_KEYS_FILE must be a file that can be read"):
        FollowedFile(tmp_path / "none").open()


def test_a_pipe_or_a_folder_in_place_of_the_file_is_told_and_holds_up_nobody(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SigmaError, match="must be a plain file"):
            FollowedFile(path).open()
