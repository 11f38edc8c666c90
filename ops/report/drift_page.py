"""The drift report as a page."""

from ops.report.documents import DriftReport
from ops.report.drift_plots import drift_plots
from ops.report.early_arrivals import EarlyArrivals, early_sentence
from ops.report.formatting import format_count, format_number, percent
from ops.report.html import Html, table
from ops.report.page import Card, PageText, mark, notices, plot_sections, render_page, section
from ops.report.recorded_runs import DriftCheck
from ops.report.shared_sections import alarm_card, generation_card, shared_sections
from ops.report.words import monitor_meaning, monitor_words
from schemas.job_results import DriftReportResult, MonitorReading

# Largest effect, as a multiple of its limit, that the headline writes: it may be infinite.
_MAX_SHARE_OF_LIMIT = 99.0

_MONITOR_HEADINGS = ("Monitor", "Watches", "Effect", "Its limit", "p", "Its limit", "")


def drift_page(report: DriftReport, command: str) -> str:
    """Write the page. `command` is the command that makes it again."""
    timeline = report.timeline
    title = f"Drift, {timeline.since:%-d %b} to {timeline.until:%-d %b %Y}"
    sections = (
        notices(report.missing),
        plot_sections(drift_plots(report)),
        _numbers(report.newest),
        _early(report.early),
        shared_sections(timeline),
    )
    words = PageText("drift", title, drift_verdict(report), command)
    return render_page(words, timeline, _cards(report), sections)


def drift_verdict(report: DriftReport) -> str:
    """The newest drift check and the open pages in a few sentences."""
    if report.newest is None:
        if report.early is not None:
            return early_sentence(report.early)
        return "There is nothing to report yet: no drift check has been recorded."
    result = report.newest.result
    sentence = _limits_sentence(result)
    pages = report.timeline.open_pages
    if pages:
        are = "is" if pages == 1 else "are"
        opened = format_count(pages, "page")
        return f"{sentence} {opened} {are} open: recall has fallen. See `sigma report recall`."
    if result.alarming:
        return (
            f"{sentence} No page is open, so this can wait for working hours: "
            "the captions say what to do."
        )
    return sentence


def _limits_sentence(result: DriftReportResult) -> str:
    beyond = [reading for reading in result.monitors if reading.alarm]
    total = format_count(len(result.monitors), "monitor")
    if not beyond:
        return (
            f"All {total} are within their limits: "
            f"what arrives looks like the first arrivals of generation {result.generation}."
        )
    names = ", ".join(monitor_words(reading.monitor) for reading in beyond)
    are_beyond = "is beyond its limits" if len(beyond) == 1 else "are beyond their limits"
    return f"{len(beyond)} of {total} {are_beyond}: {names}."


def _cards(report: DriftReport) -> list[Card]:
    cards = [] if report.newest is None else _check_cards(report.newest.result)
    cards.append(generation_card(report.timeline))
    cards.append(alarm_card(report.timeline))
    return cards


def _check_cards(result: DriftReportResult) -> list[Card]:
    # A recorded drift check has at least one monitor.
    nearest = max(result.monitors, key=lambda reading: reading.ratio)
    alarms = sum(reading.alarm for reading in result.monitors)
    effect = f"effect {format_number(nearest.effect)} of {format_number(nearest.effect_limit)}"
    cards = [
        Card(
            "Nearest to its limit",
            f"{min(nearest.ratio, _MAX_SHARE_OF_LIMIT):.0%}",
            f"{monitor_words(nearest.monitor)}, {effect}",
        ),
        Card(
            "Monitors in alarm",
            f"{alarms} of {len(result.monitors)}",
            f"{result.images:,} images seen",
            "bad" if alarms else "good",
        ),
    ]
    if "id1" in result.histograms:
        moved = percent(result.histograms["id1"].moved)
        note = "of the images have another id1 than before"
        cards.append(Card("First codes moved", moved, note))
    return cards


def _numbers(check: DriftCheck | None) -> Html:
    if check is None:
        return Html("")
    nearest_first = sorted(check.result.monitors, key=lambda reading: -reading.ratio)
    numbers = table(
        "Monitors of the newest drift check, nearest to its limit first",
        _MONITOR_HEADINGS,
        [_monitor_row(reading) for reading in nearest_first],
        "No monitor could be read.",
    )
    return section("The newest drift check in numbers", numbers)


def _early(early: EarlyArrivals | None) -> Html:
    if early is None:
        return Html("")
    busiest_first = sorted(early.first_codes, key=lambda code: -code.arrivals)
    rows = [(str(code.code), f"{code.arrivals:,}", f"{code.images:,}") for code in busiest_first]
    title = f"First codes of what has arrived for generation {early.generation}"
    codes = table(title, ("First code", "Arrivals", "All images"), rows, "No image is indexed yet.")
    return section("Before the first check", codes)


def _monitor_row(reading: MonitorReading) -> tuple[object, ...]:
    return (
        monitor_words(reading.monitor),
        monitor_meaning(reading.monitor),
        format_number(reading.effect),
        format_number(reading.effect_limit),
        format_number(reading.p),
        format_number(reading.p_limit),
        mark("alarm", "bad") if reading.alarm else mark("within limits", "good"),
    )
