"""The recall report as a page."""

from collections.abc import Mapping, Sequence

from ops.report.documents import RecallReport
from ops.report.examples import DEPTH, SHOWN, Answer, Comparison, Example
from ops.report.figures import COHORTS, YOUNG, Recall
from ops.report.html import Html, join, prose, table, tag
from ops.report.job_plots import job_plot
from ops.report.page import Card, notices, page, plots, section
from ops.report.recall_plots import recall_plots
from ops.report.tables import alarm_card, generation_card, shared
from ops.report.words import COHORT_WORDS, count, percent

_LIKELY = 0.05
"""Below this, a difference between two generations is called more than chance."""


def recall_page(report: RecallReport, pictures: Mapping[str, str], again: str) -> str:
    """The file's text. `pictures` are data URIs by image id."""
    happened = report.timeline
    history = job_plot(happened)
    title = f"Recall, {happened.since:%-d %b} to {happened.until:%-d %b %Y}"
    parts = (
        notices(report.missing),
        plots(recall_plots(report)),
        _numbers(report),
        section("Queries that got better or worse", _examples(report.comparison, pictures)),
        shared(happened, plots([history]) if history else Html("")),
    )
    return page("recall", title, verdict(report), happened, _cards(report), parts, again)


def verdict(report: RecallReport) -> str:
    """The newest probe and the alarms in a few sentences."""
    young, trained = report.group(YOUNG), report.group(("trained",))
    if report.newest is None:
        return "There is nothing to report yet: no recall probe has been recorded."
    said = [
        f"{percent(one.ours['R@10'])} of the {words} are among the first ten answers to their own caption, "
        f"where exact search finds {percent(one.exact['R@10'])}."
        for words, one in (
            ("images younger than a day", young),
            ("images learned in training", trained),
        )
        if one is not None
    ]
    pages = sum(one.level == "page" for one in report.timeline.open)
    if pages:
        said.append(
            f"{count(pages, 'page')} {'is' if pages == 1 else 'are'} open: look at the alarms below first."
        )
    return (
        " ".join(said)
        or "The newest probe met neither young nor trained images; the figures by age are below."
    )


def _cards(report: RecallReport) -> list[Card]:
    groups = (
        ("younger than a day", YOUNG),
        ("later arrivals", ("week", "older")),
        ("learned in training", ("trained",)),
    )
    found = (
        [_card(f"R@10, {name}", report.group(cohorts)) for name, cohorts in groups]
        if report.newest
        else []
    )
    return [*found, generation_card(report.timeline), alarm_card(report.timeline)]


def _card(name: str, one: Recall | None) -> Card:
    if one is None:
        return Card(name, "—", "none in the newest probe")
    low, high = one.interval()
    asked = count(one.queries, "query", "queries")
    note = f"95% interval {percent(low)} to {percent(high)}, exact search {percent(one.exact['R@10'])}, {asked}"
    return Card(name, percent(one.ours["R@10"]), note)


def _numbers(report: RecallReport) -> Html:
    if report.newest is None:
        return Html("")
    rows = []
    for name in COHORTS:
        if name in report.newest.cohorts:
            one = report.newest.cohorts[name]
            low, high = one.interval()
            pairs = [
                f"{percent(one.ours[cutoff])} / {percent(one.exact[cutoff])}"
                for cutoff in ("R@1", "R@5", "R@10")
            ]
            rows.append(
                (
                    COHORT_WORDS[name],
                    f"{one.queries:,}",
                    *pairs,
                    f"{percent(low)} to {percent(high)}",
                )
            )
    heads = (
        "Images",
        "Queries",
        "R@1 ours / exact",
        "R@5 ours / exact",
        "R@10 ours / exact",
        "95% interval of our R@10",
    )
    return section(
        "The newest probe in numbers",
        table("Recall of the newest probe by the age of the image", heads, rows, ""),
    )


def _examples(found: Comparison, pictures: Mapping[str, str]) -> Html:
    if found.why is not None:
        return tag("p", found.why, class_="empty")
    better, worse = found.better, found.worse
    same = len(found.examples) - len(better) - len(worse)
    chance = ""
    if found.chance < _LIKELY:
        chance = f"So lopsided a result is chance in {percent(found.chance)} of cases only: the generations differ."
    elif better or worse:
        chance = (
            f"That is no more lopsided than chance makes it (sign test, p = {found.chance:.2f})."
        )
    said = (
        f"{count(len(found.examples), 'caption')} of known images, asked of G{found.before} and of G{found.after}, over what they hold "
        f"now: {len(better)} better, {len(worse)} worse, {same} in the same place. {chance} The image that was meant is framed."
    )
    return join(
        (
            tag("p", prose(said)),
            _kind(f"Better in G{found.after}", better[:SHOWN], found, pictures),
            _kind(f"Worse in G{found.after}", worse[:SHOWN], found, pictures),
        )
    )


def _kind(
    title: str, shown: Sequence[Example], found: Comparison, pictures: Mapping[str, str]
) -> Html:
    if not shown:
        return Html("")
    return join(
        (
            tag("h3", title),
            tag("div", *(_example(one, found, pictures) for one in shown), class_="examples"),
        )
    )


def _example(one: Example, found: Comparison, pictures: Mapping[str, str]) -> Html:
    meant = tag("div", _picture(one.image_id, pictures, one.query), class_="wanted")
    wanted = tag("div", tag("div", tag("strong", "Meant"), "this image"), meant, class_="row")
    rows = [
        _answer(f"G{number}", answer, one, pictures)
        for number, answer in ((found.before, one.before), (found.after, one.after))
    ]
    return tag(
        "article",
        tag("p", tag("bdi", f"“{one.query}”"), class_="query"),
        wanted,
        *rows,
        class_="example",
    )


def _answer(name: str, answer: Answer, one: Example, pictures: Mapping[str, str]) -> Html:
    place = f"rank {answer.rank}" if answer.rank else f"beyond {DEPTH}"
    shown = [
        tag(
            "div",
            _picture(image_id, pictures, f"answer {rank}"),
            class_="wanted" if image_id == one.image_id else "other",
        )
        for rank, image_id in enumerate(answer.top, start=1)
    ]
    return tag("div", tag("div", tag("strong", name), place), *shown, class_="row")


def _picture(image_id: str, pictures: Mapping[str, str], words: str) -> Html:
    if image_id not in pictures:
        return tag("span", image_id, class_="lost")
    return tag("img", src=pictures[image_id], alt=words, title=image_id)
