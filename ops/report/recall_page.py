"""The recall report as a page."""

from collections.abc import Mapping, Sequence

from ops.report.documents import RecallReport
from ops.report.formatting import format_count, percent
from ops.report.generation_comparison import (
    DEPTH,
    EXAMPLES_SHOWN,
    ComparedQuery,
    GenerationComparison,
    RankedAnswer,
)
from ops.report.html import Html, join, table, tag
from ops.report.page import Card, PageText, notices, plot_sections, render_page, section
from ops.report.recall_plots import recall_plots
from ops.report.recorded_runs import YOUNG_COHORTS, recall_interval
from ops.report.shared_sections import alarm_card, generation_card, shared_sections
from ops.report.words import COHORT_WORDS
from schemas.job_results import RECALL_CUTOFFS, CohortRecall

# p-value below which a difference between two generations is called more than chance.
_SIGNIFICANT = 0.05

# Cohorts of the headline figures, by name.
_CARD_COHORTS = {
    "younger than a day": YOUNG_COHORTS,
    "later arrivals": ("week", "older"),
    "learned in training": ("trained",),
}

_NUMBER_HEADINGS = (
    "Images",
    "Queries",
    "R@1 ours / exact",
    "R@5 ours / exact",
    "R@10 ours / exact",
    "95% interval of our R@10",
)


def recall_page(report: RecallReport, pictures: Mapping[str, str], command: str) -> str:
    """Write the page.

    Args:
        report: what to show.
        pictures: data URIs of thumbnails by image id; an image without one is shown by its id.
        command: the command that makes the page again.
    """
    timeline = report.timeline
    title = f"Recall, {timeline.since:%-d %b} to {timeline.until:%-d %b %Y}"
    sections = (
        notices(report.missing),
        plot_sections(recall_plots(report)),
        _numbers(report),
        section("Queries that got better or worse", _comparison(report.comparison, pictures)),
        shared_sections(timeline),
    )
    words = PageText("recall", title, recall_verdict(report), command)
    return render_page(words, timeline, _cards(report), sections)


def recall_verdict(report: RecallReport) -> str:
    """The newest probe run and the open pages in a few sentences."""
    if report.newest is None:
        return "There is nothing to report yet: no recall probe has been recorded."
    sentences = []
    young = report.pooled(YOUNG_COHORTS)
    trained = report.pooled(("trained",))
    if young is not None:
        sentences.append(_recall_sentence("images younger than a day", young))
    if trained is not None:
        sentences.append(_recall_sentence("images learned in training", trained))
    pages = report.timeline.open_pages
    if pages:
        are = "is" if pages == 1 else "are"
        opened = format_count(pages, "page")
        sentences.append(f"{opened} {are} open: look at the alarms below first.")
    if not sentences:
        return (
            "The newest probe run asked for neither young nor trained images; "
            "the figures by age are below."
        )
    return " ".join(sentences)


def _recall_sentence(images: str, recall: CohortRecall) -> str:
    return (
        f"{percent(recall.ours['R@10'])} of the {images} are among the first ten answers to their "
        f"own caption; exact search finds {percent(recall.exact['R@10'])}."
    )


def _cards(report: RecallReport) -> list[Card]:
    cards = []
    if report.newest is not None:
        for name, cohorts in _CARD_COHORTS.items():
            cards.append(_recall_card(f"R@10, {name}", report.pooled(cohorts)))
    cards.append(generation_card(report.timeline))
    cards.append(alarm_card(report.timeline))
    return cards


def _recall_card(name: str, recall: CohortRecall | None) -> Card:
    if recall is None:
        return Card(name, "—", "none in the newest probe run")
    low, high = recall_interval(recall)
    exact = percent(recall.exact["R@10"])
    queries = format_count(recall.queries, "query", "queries")
    note = f"95% interval {percent(low)} to {percent(high)}, exact search {exact}, {queries}"
    return Card(name, percent(recall.ours["R@10"]), note)


def _numbers(report: RecallReport) -> Html:
    if report.newest is None:
        return Html("")
    cohorts = report.newest.result.cohorts
    rows = [_number_row(name, recall) for name, recall in cohorts.items()]
    # A probe run has at least one cohort, so the table is never empty.
    title = "Recall of the newest probe run by the age of the image"
    by_picture = report.newest.result.by_picture
    if by_picture:
        images = format_count(by_picture, "image", "images")
        title += f"; {images} without captions asked for by their own pictures"
    numbers = table(title, _NUMBER_HEADINGS, rows, "")
    return section("The newest probe run in numbers", numbers)


def _number_row(cohort: str, recall: CohortRecall) -> list[str]:
    low, high = recall_interval(recall)
    row = [COHORT_WORDS[cohort], f"{recall.queries:,}"]
    for cutoff in RECALL_CUTOFFS:
        row.append(f"{percent(recall.ours[cutoff])} / {percent(recall.exact[cutoff])}")
    row.append(f"{percent(low)} to {percent(high)}")
    return row


def _comparison(comparison: GenerationComparison, pictures: Mapping[str, str]) -> Html:
    if comparison.why is not None:
        return tag("p", comparison.why, class_="empty")
    better = comparison.better[:EXAMPLES_SHOWN]
    worse = comparison.worse[:EXAMPLES_SHOWN]
    after = comparison.after
    return join(
        (
            tag("p", _comparison_sentence(comparison)),
            _examples(f"Better in G{after}", better, comparison, pictures),
            _examples(f"Worse in G{after}", worse, comparison, pictures),
        )
    )


def _comparison_sentence(comparison: GenerationComparison) -> str:
    better = len(comparison.better)
    worse = len(comparison.worse)
    same = len(comparison.queries) - better - worse
    captions = format_count(len(comparison.queries), "caption")
    sentences = [
        f"{captions} of known images, asked of G{comparison.before} and of G{comparison.after}, "
        "over the images that each holds now: "
        f"{better} better, {worse} worse, {same} in the same place."
    ]
    if comparison.chance < _SIGNIFICANT:
        chance = percent(comparison.chance)
        sentences.append(
            f"Chance alone gives so one-sided a result in only {chance} of cases: "
            "the generations differ."
        )
    elif better or worse:
        sentences.append(
            "Chance alone can give a result as one-sided as this "
            f"(sign test, p = {comparison.chance:.2f})."
        )
    sentences.append("The image that was meant is framed.")
    return " ".join(sentences)


def _examples(
    title: str,
    queries: Sequence[ComparedQuery],
    comparison: GenerationComparison,
    pictures: Mapping[str, str],
) -> Html:
    if not queries:
        return Html("")
    examples = [_example(query, comparison, pictures) for query in queries]
    return join((tag("h3", title), tag("div", *examples, class_="examples")))


def _example(
    query: ComparedQuery, comparison: GenerationComparison, pictures: Mapping[str, str]
) -> Html:
    picture = tag("div", _picture(query.image_id, pictures, query.query), class_="wanted")
    meant = tag("div", tag("div", tag("strong", "Meant"), "this image"), picture, class_="row")
    # bdi: a caption written from right to left must not turn the quotation marks.
    caption = tag("p", tag("bdi", f"“{query.query}”"), class_="query")
    return tag(
        "article",
        caption,
        meant,
        _answer_row(f"G{comparison.before}", query.before, query.image_id, pictures),
        _answer_row(f"G{comparison.after}", query.after, query.image_id, pictures),
        class_="example",
    )


def _answer_row(
    name: str, answer: RankedAnswer, wanted_id: str, pictures: Mapping[str, str]
) -> Html:
    place = f"rank {answer.rank}" if answer.rank else f"beyond {DEPTH}"
    shown = []
    for rank, image_id in enumerate(answer.top, start=1):
        picture = _picture(image_id, pictures, f"answer {rank}")
        shown.append(tag("div", picture, class_="wanted" if image_id == wanted_id else "other"))
    return tag("div", tag("div", tag("strong", name), place), *shown, class_="row")


def _picture(image_id: str, pictures: Mapping[str, str], description: str) -> Html:
    if image_id not in pictures:
        return tag("span", image_id, class_="lost")
    return tag("img", src=pictures[image_id], alt=description, title=image_id)
