"""What a page is made of: escaped text, drawings that do not collide, and a bounded size."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ops.cli.main import main
from ops.report import colours
from ops.report.html import Html, prose, table, tag, text
from ops.report.page import MAX_PAGE_BYTES, Card, PageText, render_page
from ops.report.plotting import Canvas, make_plot
from ops.report.timeline import Timeline
from schemas.errors import WorkFailedError
from tests.recorded import HOSTILE

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOTHING = Timeline(NOW - timedelta(days=1), NOW, (), (), ())


def test_everything_that_is_not_markup_is_escaped() -> None:
    assert text("<b> & \"'") == "&lt;b&gt; &amp; &quot;&#x27;"
    element = tag("p", HOSTILE, tag("b", "x"), title='"><script>', class_="a")
    assert element.startswith(
        '<p title="&quot;&gt;&lt;script&gt;" class="a">&lt;/table&gt;&lt;script&gt;'
    )
    assert element.endswith("<b>x</b></p>")
    assert "<script" not in table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE)
    assert prose("a <b> `sigma jobs list`") == "a &lt;b&gt; <code>sigma jobs list</code>"
    assert tag("br") == "<br>"


def test_a_drawing_takes_its_colours_from_the_page_and_its_ids_collide_with_no_other() -> None:
    def draw(canvas: Canvas) -> Figure:
        figure = canvas.figure(120)
        axes = figure.subplots()
        axes.plot([0, 1, 2], [0, 1, 4], marker="o", color=colours.OURS)
        axes.set_title(HOSTILE)
        return figure

    first = make_plot("first", "t", "l", "c", draw)
    second = make_plot("second", "t", "l", "c", draw)
    drawings = [first.wide, first.narrow, second.wide, second.narrow]
    ids: list[str] = []
    for svg in drawings:
        ids += re.findall(r' id="([^"]+)"', svg)
    assert ids
    assert len(ids) == len(set(ids))
    for svg in drawings:
        used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
        assert used
        assert set(used) <= set(ids)
        assert "var(--ours)" in svg
        assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", svg)
        assert not re.search(r"<style|<script|<metadata|font-family", svg)
        assert not re.search(r"http://(?!www\.w3\.org/2000/svg)", svg)
    assert 'viewBox="0 0 680 120"' in first.wide
    assert 'viewBox="0 0 316 120"' in first.narrow


def test_a_page_allows_no_script_and_no_network_and_says_how_to_make_it_again() -> None:
    words = PageText("recall", HOSTILE, "verdict", "sigma report recall --out r.html")
    page = render_page(words, NOTHING, [Card(HOSTILE, HOSTILE, HOSTILE)], [])
    policy = "default-src &#x27;none&#x27;; img-src data:; style-src &#x27;unsafe-inline&#x27;"
    assert policy in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "<code>sigma report recall --out r.html</code>" in page
    assert "<code>sigma report recall --json</code>" in page


def test_every_colour_of_a_drawing_has_a_look_on_the_page() -> None:
    page = render_page(PageText("recall", "t", "v", "c"), NOTHING, [], [])
    for variable in colours.CSS_VARIABLES.values():
        # Light mode and dark mode.
        assert page.count(f"{variable}: #") == 2, variable


def test_bad_usage_is_refused_in_one_line_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGMA_HOME", str(tmp_path / "home"))
    for wrong in (
        ("--days", "0"),
        ("--days", "9999"),
        ("--out", str(tmp_path)),
        ("--out", str(tmp_path / "none" / "x.html")),
    ):
        assert main(["report", "recall", *wrong]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1), wrong
    assert not (tmp_path / "home").exists()


def test_a_page_beyond_its_size_limit_is_refused_with_a_hint() -> None:
    words = PageText("recall", "t", "verdict", "again")
    too_large = Html("x" * MAX_PAGE_BYTES)
    with pytest.raises(WorkFailedError, match="--days"):
        render_page(words, NOTHING, [], [too_large])
