"""The reports as a reader sees them: made by the command, opened in a real browser."""

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
from ops.report.generation_comparison import ComparedQuery, GenerationComparison, RankedAnswer
from ops.report.page import CONTENT_POLICY, MAX_PAGE_BYTES
from ops.report.recall_page import recall_page
from schemas.records import ByteArray
from schemas.settings import Settings
from tests.acceptance.conftest import Home
from tests.browser import Box, Browser
from tests.conftest import skip_or_fail
from tests.recorded import HOSTILE, record
from tests.services.servers import ToolMissingError
from workers.repository.connection import connect
from workers.repository.generations import create_generation, generations, promote, set_state

PLOTS = {
    "recall": {"recall-time", "recall-newest", "recall-generation", "jobs"},
    "drift": {"drift-now", "drift-time", "codes", "leaves", "jobs"},
}
COLOURS = {
    "light": {"ours": (0x00, 0x67, 0xA5), "good": (0x00, 0x79, 0x5C)},
    "dark": {"ours": (0x5D, 0xB4, 0xF0), "good": (0x45, 0xC9, 0xA4)},
}
"""RGB of two colours of `page.css`, by colour scheme."""

DESK_PX = 1100
PHONE_PX = 390


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages. Where none is installed: a skip on a laptop, a failure in CI."""
    try:
        started = Browser(tmp_path_factory.mktemp("browser"))
    except ToolMissingError as error:
        skip_or_fail(error)
    with started:
        yield started


@pytest.fixture(scope="module")
def pages(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both pages of two recorded weeks, with hostile texts wherever a text can be."""
    with connect(postgres.get_uri()) as conn:
        conn.execute("CREATE DATABASE reports TEMPLATE template")
    better = ComparedQuery(
        HOSTILE,
        HOSTILE,
        before=RankedAnswer(None, ("a", "b")),
        after=RankedAnswer(1, (HOSTILE, "a", "b")),
    )
    worse = replace(better, before=better.after, after=better.before)
    comparison = GenerationComparison(1, 3, (better, worse))
    with connect(postgres.get_uri(database="reports")) as conn:
        now = record(conn)
        recall = recall_report(conn, comparison, now, 30)
        drift = drift_report(conn, now, 30)
    folder = tmp_path_factory.mktemp("pages")
    files = {"recall": folder / "recall.html", "drift": folder / "drift.html"}
    command = f"sigma report recall --out {HOSTILE}"
    files["recall"].write_text(recall_page(recall, {"a": picture()}, command), encoding="utf-8")
    files["drift"].write_text(
        drift_page(drift, "sigma report drift --out drift.html"), encoding="utf-8"
    )
    return files


def picture() -> str:
    """A small picture as a data URI."""
    target = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 200)).save(target, "PNG")
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"


def pixels(png: bytes) -> ByteArray:
    """(H, W, 3) uint8 of a screenshot."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.uint8)


def colours_in(shot: ByteArray, box: Box) -> int:
    """How many colours a place has: an empty one has those of its paper and its frame."""
    left, top, right, bottom = box
    every_second = shot[top:bottom:2, left:right:2].astype(np.int64)
    return len(np.unique(every_second @ np.array([1 << 16, 1 << 8, 1])))


def painted(shot: ByteArray, box: Box, colour: tuple[int, int, int]) -> float:
    """Share of a place's pixels, 0 to 1, that have a colour or nearly that colour."""
    left, top, right, bottom = box
    place = shot[top:bottom, left:right].astype(np.int64)
    distance = np.abs(place - np.array(colour)).max(axis=2)
    return float((distance < 24).mean())


def keep_screenshot(shot: bytes, name: str, folder: Path) -> None:
    """Write a screenshot where a person can look at it: into SIGMA_TEST_SHOTS, if it is set."""
    Path(os.environ.get("SIGMA_TEST_SHOTS", folder), f"{name}.png").write_bytes(shot)


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [
        ("recall", DESK_PX, "light"),
        ("recall", PHONE_PX, "dark"),
        ("drift", DESK_PX, "dark"),
        ("drift", PHONE_PX, "light"),
    ],
)
def test_a_page_opens_without_a_complaint_and_shows_its_plots(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: str, tmp_path: Path
) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(pages[kind], width, dark=scheme == "dark")
    shot = browser.screenshot()
    keep_screenshot(shot, f"{kind}-{width}-{scheme}", tmp_path)
    assert browser.complaints == []
    loaded = {request for request in browser.requests if not request.startswith("data:")}
    assert loaded == {pages[kind].as_uri()}
    # The page is not wider than the screen, and nothing hostile became an element.
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    hostile = 'script, iframe, [onerror], img:not([src^="data:"])'
    assert browser.evaluate(f"document.querySelectorAll('{hostile}').length") == 0
    boxes = browser.boxes("figure")
    assert set(boxes) == PLOTS[kind]
    drawn = pixels(shot)
    for name, box in boxes.items():
        colour = COLOURS[scheme]["good" if name == "jobs" else "ours"]
        assert painted(drawn, box, colour) > 0.0008, name
        assert colours_in(drawn, box) > 20, name
    labels = browser.evaluate(
        "[...document.querySelectorAll('figure')]"
        ".map(e => [e.getAttribute('role'), e.getAttribute('aria-label')])"
    )
    assert all(role == "img" and len(label) > 40 for role, label in labels)
    shown = browser.evaluate("getComputedStyle(document.querySelector('.drawing.wide')).display")
    assert (shown == "none") is (width == PHONE_PX)


def test_the_browser_reports_what_a_policy_blocks_and_an_empty_place_is_no_plot(
    browser: Browser, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html>"
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        "<figure id=f style='height:90px'></figure>"
        "<script>1</script>"
        "<img src='http://127.0.0.1:9/x.png'>"
    )
    browser.complaints.clear()
    browser.open(bad)
    blank = pixels(browser.screenshot())
    assert len(browser.complaints) >= 2
    box = browser.boxes("figure")["f"]
    assert painted(blank, box, COLOURS["light"]["ours"]) == 0
    assert colours_in(blank, box) < 5


def test_the_browser_reports_console_messages_and_exceptions(
    browser: Browser, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><script>console.error('no'); undefined_function()</script>")
    browser.complaints.clear()
    browser.open(bad)
    browser.evaluate("1")
    assert len(browser.complaints) == 2


def test_paper_gets_the_wide_drawings_on_white(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["drift"], PHONE_PX, dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    narrow = browser.evaluate("getComputedStyle(document.querySelector('.drawing.narrow')).display")
    assert (paper, narrow) == ("rgb(255, 255, 255)", "none")
    browser.call("Emulation.setEmulatedMedia", media="")


def make_worse_generation_live(home: Home) -> None:
    """Promote a copy of the live generation whose answers are worse.

    A third of its images have the embedding of another image.
    """
    with open_services(Settings(home=home.folder)) as opened, opened.connect("test") as conn:
        (first,) = generations(conn)
        number = create_generation(
            conn,
            first.shape,
            codebook_version=first.codebook_version,
            checkpoint_path=first.checkpoint_path or f"g{first.id}",
        )
        conn.execute(
            "INSERT INTO posting (generation, leaf, image_key, weight, suffix)"
            " SELECT %s, leaf, image_key, weight, suffix FROM posting WHERE generation = %s",
            (number, first.id),
        )
        conn.execute(
            "INSERT INTO image_embedding (generation, image_key, embedding, confidence, trained)"
            " SELECT %s, image_key, embedding, confidence, trained FROM image_embedding"
            " WHERE generation = %s",
            (number, first.id),
        )
        conn.execute(
            "UPDATE image_embedding e SET embedding = o.embedding FROM image_embedding o"
            " WHERE e.generation = %s AND o.generation = %s"
            " AND e.image_key %% 3 = 0 AND o.image_key = e.image_key + 1",
            (number, first.id),
        )
        set_state(conn, number, "shadow")
        promote(conn, number)


def test_the_command_writes_pages_with_pictures_and_json(home: Home, tmp_path: Path) -> None:
    make_worse_generation_live(home)
    assert home.sigma("jobs", "run", "recall-probe").code == 0
    page = tmp_path / "r.html"
    document = home.ok("report", "recall", "--out", page)
    examples = document["examples"]
    assert examples["why"] is None
    assert 0 < examples["better"] + examples["worse"] <= examples["asked"] <= 100
    assert examples["worse"] > examples["better"]
    assert document["newest"]["queries"] > 50
    text = page.read_text(encoding="utf-8")
    assert len(text) < MAX_PAGE_BYTES
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', text)) > 10
    assert "Worse in G2" in text
    drift = tmp_path / "d.html"
    missing = home.ok("report", "drift", "--out", drift)["missing"]
    assert [notice["command"] for notice in missing] == ["sigma jobs run drift-report"]
    assert "sigma jobs run drift-report" in drift.read_text(encoding="utf-8")
