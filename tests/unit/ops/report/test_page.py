"""What a page is made of: text that cannot break out, drawings without ids or styles that collide, a size that is bounded."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ops.cli.main import main
from ops.report import ink
from ops.report.html import Html, prose, table, tag, text
from ops.report.page import Card, page
from ops.report.timeline import Timeline
from ops.report.words import count, figure, monitor_words, plain, points, span
from schemas.errors import WorkFailedError
from tests.recorded import HOSTILE

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NOTHING = Timeline(NOW - timedelta(days=1), NOW, (), (), ())


def test_whatever_is_not_markup_of_ours_is_escaped() -> None:
    assert text("<b> & \"'") == "&lt;b&gt; &amp; &quot;&#x27;"
    made = tag("p", HOSTILE, tag("b", "x"), title='"><script>', class_="a")
    assert made.startswith(
        '<p title="&quot;&gt;&lt;script&gt;" class="a">&lt;/table&gt;&lt;script&gt;'
    )
    assert made.endswith("<b>x</b></p>")
    assert "<script" not in table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE)
    assert prose("a <b> `sigma jobs list`") == "a &lt;b&gt; <code>sigma jobs list</code>"
    assert tag("br") == "<br>"


def test_text_of_the_database_becomes_one_readable_line() -> None:
    assert plain("a\u202eb\x00c\n\n  d\u200b") == "a b c d"
    assert plain("x" * 500, 10) == "x" * 9 + "…"
    assert monitor_words("some_new-monitor") == "some new monitor"
    assert monitor_words("id1") == "first codes"


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (points(-0.026), "−2.6 points"),
        (points(0.0001), "no difference"),
        (figure(None), "—"),
        (figure(0.00012345), "0.000123"),
        (figure(12345.6), "12,346"),
        (span(9), "9.0 s"),
        (span(600), "10 min"),
        (span(200_000), "2 days"),
        (count(1, "query", "queries"), "1 query"),
        (count(2000, "page"), "2,000 pages"),
    ],
)
def test_numbers_read_as_people_write_them(found: str, wanted: str) -> None:
    assert found == wanted


def test_a_drawing_takes_its_colours_from_the_page_and_its_ids_collide_with_no_other() -> None:
    def draw(sheet: ink.Sheet) -> ink.Figure:
        found = sheet.figure(120)
        axes = found.subplots()
        axes.plot([0, 1, 2], [0, 1, 4], marker="o", color=ink.OURS)
        axes.set_title(HOSTILE)
        return found

    one, other = (ink.plot(name, "t", "l", "c", draw) for name in ("one", "other"))
    drawings = [one.wide, one.narrow, other.wide, other.narrow]
    ids = [found for svg in drawings for found in re.findall(r' id="([^"]+)"', svg)]
    assert ids
    assert len(ids) == len(set(ids))
    for svg in drawings:
        used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
        assert used
        assert set(used) <= set(ids)
        assert "var(--ours)" in svg
        assert not re.search(
            r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]|<style|<script|<metadata|font-family|http://(?!www\.w3\.org/2000/svg)",
            svg,
        )
    assert 'viewBox="0 0 680 120"' in one.wide
    assert 'viewBox="0 0 316 120"' in one.narrow


def test_a_page_allows_no_script_and_no_network_and_says_how_to_make_it_again() -> None:
    made = page(
        "recall",
        HOSTILE,
        "lead",
        NOTHING,
        [Card(HOSTILE, HOSTILE, HOSTILE)],
        [],
        "sigma report recall --out r.html",
    )
    assert (
        "default-src &#x27;none&#x27;; img-src data:; style-src &#x27;unsafe-inline&#x27;" in made
    )
    assert "<script" not in made
    assert not re.search(r"(?:src|href)=\"(?!data:)", made)
    assert "<code>sigma report recall --out r.html</code>" in made
    assert "<code>sigma report recall --json</code>" in made


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


def test_a_page_beyond_its_cap_is_refused_with_the_cure() -> None:
    with pytest.raises(WorkFailedError, match="--days"):
        page("recall", "t", "lead", NOTHING, [], [Html("x" * (5 << 20))], "again")
