"""The reports as a person meets them: made by the command, opened in a real browser, looked at on a screenshot."""

import base64
import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ops.embedded.database import open_services
from ops.report.documents import drift_report, recall_report
from ops.report.drift_page import drift_page
from ops.report.examples import Answer, Comparison, Example
from ops.report.page import MOST_BYTES, POLICY
from ops.report.recall_page import recall_page
from schemas.records import ByteArray
from schemas.settings import Settings
from tests.acceptance.conftest import Home
from tests.browser import Browser
from tests.conftest import absent
from tests.recorded import HOSTILE, record
from tests.services.servers import Absent
from workers.repository.connection import connect
from workers.repository.generations import create_generation, generations, promote, set_state

PLOTS = {
    "recall": {"recall-time", "recall-newest", "recall-generation", "jobs"},
    "drift": {"drift-now", "drift-time", "codes", "leaves", "jobs"},
}
INKS = {
    "light": {"ours": (0x00, 0x67, 0xA5), "good": (0x00, 0x79, 0x5C)},
    "dark": {"ours": (0x5D, 0xB4, 0xF0), "good": (0x45, 0xC9, 0xA4)},
}
DESK, PHONE = 1100, 390


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages; absent, a skip on a laptop and a failure in CI."""
    try:
        started = Browser(tmp_path_factory.mktemp("browser"))
    except Absent as error:
        absent(error)
    with started:
        yield started


@pytest.fixture(scope="module")
def pages(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both pages of two recorded weeks, with hostile texts wherever a text can be."""
    with connect(postgres.get_uri()) as conn:
        conn.execute("CREATE DATABASE reports TEMPLATE template")
    example = Example(HOSTILE, HOSTILE, Answer(None, ("a", "b")), Answer(1, (HOSTILE, "a", "b")))
    found = Comparison(
        1, 3, (example, replace(example, before=example.after, after=example.before))
    )
    with connect(postgres.get_uri(database="reports")) as conn:
        now = record(conn)
        made = {
            "recall": recall_page(
                recall_report(conn, found, now, 30),
                {"a": picture()},
                f"sigma report recall --out {HOSTILE}",
            ),
            "drift": drift_page(drift_report(conn, now, 30), "sigma report drift --out drift.html"),
        }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def picture() -> str:
    target = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 200)).save(target, "PNG")
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"


def pixels(png: bytes) -> ByteArray:
    """(H, W, 3) uint8 of a screenshot."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.uint8)


def colours(shot: ByteArray, box: tuple[int, int, int, int]) -> int:
    """How many colours a place has: an empty one has its paper and its frame."""
    left, top, right, bottom = box
    return len(
        np.unique(
            shot[top:bottom:2, left:right:2].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        )
    )


def painted(shot: ByteArray, box: tuple[int, int, int, int], ink: tuple[int, int, int]) -> float:
    """Share of a place's pixels that have an ink's colour, or nearly."""
    left, top, right, bottom = box
    place = shot[top:bottom, left:right].astype(np.int64)
    return float((np.abs(place - np.array(ink)).max(axis=2) < 24).mean())


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [
        ("recall", DESK, "light"),
        ("recall", PHONE, "dark"),
        ("drift", DESK, "dark"),
        ("drift", PHONE, "light"),
    ],
)
def test_a_page_opens_without_a_complaint_and_its_plots_are_there(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: str, tmp_path: Path
) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[kind], width, dark=scheme == "dark")
    shot = browser.screenshot()
    (
        Path(os.environ.get("SIGMA_TEST_SHOTS", tmp_path)) / f"{kind}-{width}-{scheme}.png"
    ).write_bytes(shot)
    assert browser.complaints == []
    assert {one for one in browser.requests if not one.startswith("data:")} == {
        pages[kind].as_uri()
    }
    # Nothing hangs over the edge, and nothing hostile became an element.
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert (
        browser.evaluate(
            "document.querySelectorAll('script, iframe, [onerror], img:not([src^=\"data:\"])').length"
        )
        == 0
    )
    boxes = browser.boxes("figure")
    assert set(boxes) == PLOTS[kind]
    drawn = pixels(shot)
    for name, box in boxes.items():
        ink = INKS[scheme]["good" if name == "jobs" else "ours"]
        assert painted(drawn, box, ink) > 0.0008, name
        assert colours(drawn, box) > 20, name
    labels = browser.evaluate(
        "[...document.querySelectorAll('figure')].map(one => [one.getAttribute('role'), one.getAttribute('aria-label')])"
    )
    assert all(role == "img" and len(label) > 40 for role, label in labels)
    shown = browser.evaluate("getComputedStyle(document.querySelector('.drawing.wide')).display")
    assert (shown == "none") is (width == PHONE)


def test_the_browser_does_complain_when_there_is_reason_and_an_empty_place_is_no_plot(
    browser: Browser, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    bad.write_text(
        f"<!doctype html>{policy}<figure id=f style='height:90px'></figure><script>1</script><img src='http://127.0.0.1:9/x.png'>"
    )
    browser.complaints.clear()
    browser.open(bad)
    blank = pixels(browser.screenshot())
    assert len(browser.complaints) >= 2
    box = browser.boxes("figure")["f"]
    assert painted(blank, box, INKS["light"]["ours"]) == 0
    assert colours(blank, box) < 5
    bad.write_text("<!doctype html><script>console.error('no'); undefined_function()</script>")
    browser.complaints.clear()
    browser.open(bad)
    browser.evaluate("1")
    assert len(browser.complaints) == 2


def test_paper_gets_the_wide_drawings_on_white(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["drift"], PHONE, dark=True)
    browser.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert (
        browser.evaluate("getComputedStyle(document.querySelector('.drawing.narrow')).display")
        == "none"
    )
    browser.call("Emulation.setEmulatedMedia", media="")


def second_generation(home: Home) -> None:
    """A copy of the live generation goes live, in which a third of the images have another's embedding: its answers get worse."""
    with open_services(Settings(home=home.folder)) as found, found.connect("test") as conn:
        (first,) = generations(conn)
        number = create_generation(
            conn,
            first.shape,
            codebook_version=first.codebook_version,
            checkpoint_path=first.checkpoint_path or f"g{first.id}",
        )
        for name, columns in (
            ("posting", "leaf, image_key, weight, suffix"),
            ("image_embedding", "image_key, embedding, confidence, trained"),
        ):
            copied = f"INSERT INTO {name} (generation, {columns}) SELECT %s, {columns} FROM {name} WHERE generation = %s"
            conn.execute(copied.encode(), (number, first.id))
        conn.execute(
            "UPDATE image_embedding e SET embedding = o.embedding FROM image_embedding o"
            " WHERE e.generation = %s AND o.generation = %s AND e.image_key %% 3 = 0 AND o.image_key = e.image_key + 1",
            (number, first.id),
        )
        set_state(conn, number, "shadow")
        promote(conn, number)


def test_the_command_writes_pages_with_pictures_and_json(home: Home, tmp_path: Path) -> None:
    second_generation(home)
    assert home.sigma("jobs", "run", "recall-probe").code == 0
    page = tmp_path / "r.html"
    found = home.ok("report", "recall", "--out", page)
    assert found["examples"]["why"] is None
    assert (
        0
        < found["examples"]["better"] + found["examples"]["worse"]
        <= found["examples"]["asked"]
        <= 100
    )
    assert found["examples"]["worse"] > found["examples"]["better"]
    assert found["newest"]["queries"] > 50
    text = page.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', text)) > 10
    assert "Worse in G2" in text
    missing = home.ok("report", "drift", "--out", tmp_path / "d.html")["missing"]
    assert [one["command"] for one in missing] == ["sigma jobs run drift-report"]
    assert "sigma jobs run drift-report" in (tmp_path / "d.html").read_text(encoding="utf-8")
