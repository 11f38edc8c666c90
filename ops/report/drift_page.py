"""The drift report as a page."""

from ops.report.documents import DriftReport
from ops.report.drift_plots import drift_plots
from ops.report.figures import Look, Reading
from ops.report.html import Html, table
from ops.report.job_plots import job_plot
from ops.report.page import Card, notices, page, plots, section
from ops.report.tables import alarm_card, generation_card, mark, shared
from ops.report.words import count, figure, monitor_meaning, monitor_words, percent


def drift_page(report: DriftReport, again: str) -> str:
    """The file's text."""
    happened = report.timeline
    history = job_plot(happened)
    title = f"Drift, {happened.since:%-d %b} to {happened.until:%-d %b %Y}"
    parts = (
        notices(report.missing),
        plots(drift_plots(report)),
        _numbers(report.newest),
        shared(happened, plots([history]) if history else Html("")),
    )
    return page("drift", title, verdict(report), happened, _cards(report), parts, again)


def verdict(report: DriftReport) -> str:
    """The newest look and the alarms in a few sentences."""
    look = report.newest
    if look is None:
        return "There is nothing to report yet: nobody has looked for drift."
    beyond = [one for one in look.readings if one.alarm]
    total = count(len(look.readings), "monitor")
    said = (
        f"{len(beyond)} of {total} {'is' if len(beyond) == 1 else 'are'} beyond {'its' if len(beyond) == 1 else 'their'} limits: "
        f"{', '.join(monitor_words(one.monitor) for one in beyond)}."
        if beyond
        else f"All of {total} are within their limits: what arrives looks like what generation {look.generation} learned from."
    )
    pages = sum(one.level == "page" for one in report.timeline.open)
    if pages:
        return f"{said} {count(pages, 'page')} {'is' if pages == 1 else 'are'} open: recall has moved. See `sigma report recall`."
    if beyond:
        return f"{said} No page is open, so this can wait for working hours: the captions say what to do."
    return said


def _cards(report: DriftReport) -> list[Card]:
    look = report.newest
    found = []
    if look is not None and look.readings:
        nearest = max(look.readings, key=lambda one: one.ratio)
        beyond = sum(one.alarm for one in look.readings)
        found = [
            Card(
                "Nearest to its limit",
                f"{min(nearest.ratio, 99):.0%}",
                f"{monitor_words(nearest.monitor)}, {_of(nearest)}",
            ),
            Card(
                "Monitors in alarm",
                f"{beyond} of {len(look.readings)}",
                f"{look.images:,} images seen",
                "bad" if beyond else "good",
            ),
        ]
    if look is not None and "id1" in look.histograms:
        found.append(
            Card(
                "First codes moved",
                percent(look.histograms["id1"].moved),
                "of the images have another id1 than before",
            )
        )
    return [*found, generation_card(report.timeline), alarm_card(report.timeline)]


def _of(one: Reading) -> str:
    return f"effect {figure(one.effect)} of {figure(one.limit)}"


def _numbers(look: Look | None) -> Html:
    if look is None:
        return Html("")
    rows = [
        (
            monitor_words(one.monitor),
            monitor_meaning(one.monitor),
            figure(one.effect),
            figure(one.limit),
            figure(one.p),
            figure(one.p_limit),
            mark("alarm", "bad") if one.alarm else mark("within limits", "good"),
        )
        for one in sorted(look.readings, key=lambda one: -one.ratio)
    ]
    heads = ("Monitor", "Watches", "Effect", "Its limit", "p", "Its limit", "")
    made = table(
        "Monitors of the newest look, nearest to its limit first",
        heads,
        rows,
        "No monitor could be read.",
    )
    return section("The newest look in numbers", made)
