"""The tables of a study, as Markdown: one for each stream, and the answers."""

from collections.abc import Callable
from dataclasses import dataclass

from ops.study.spread import Spread
from ops.study.summary import PolicyFigures, StudySummary


def _percent(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f} ± {100 * spread.sd:.1f}"


def _count(spread: Spread) -> str:
    return f"{spread.mean:.1f}"


def _seconds(spread: Spread) -> str:
    return f"{spread.mean:.0f}"


def _ratio(spread: Spread) -> str:
    return f"{spread.mean:.2f}"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    figure: str
    """Name of a policy's figure."""
    dense: str | None
    """Name of the same figure of exact dense search; None where it has none."""
    cell: Callable[[Spread], str]


# Columns of each stream's table.
_COLUMNS = (
    _Column("new, at arrival", "at_arrival R@10", "dense_new R@10", _percent),
    _Column("new R@1", "new R@1", "dense_new R@1", _percent),
    _Column("new R@10", "new R@10", "dense_new R@10", _percent),
    _Column("old R@1", "old R@1", "dense_old R@1", _percent),
    _Column("old R@10", "old R@10", "dense_old R@10", _percent),
    _Column("new-image ratio", "new-image ratio", None, _ratio),
    _Column("forgetting (BWT)", "backward transfer", "backward transfer, dense", _percent),
    _Column("moved", "moved per upkeep", None, _percent),
    _Column("upkeeps", "upkeeps", None, _count),
    _Column("sessions with alarms", "sessions with alarms", None, _count),
    _Column("CPU s", "cpu_s", None, _seconds),
)


def summary_page(summary: StudySummary) -> str:
    """All tables of a study."""
    lines: list[str] = []
    for stream, policies in summary.streams.items():
        lines += [f"### {stream}", ""]
        lines.append(_row(["policy", *(column.title for column in _COLUMNS)]))
        lines.append("|---" * (len(_COLUMNS) + 1) + "|")
        for policy, figures in policies.items():
            lines.append(_policy_row(policy, figures))
        # Dense search depends on the images alone, so any policy has its figures.
        lines.append(_dense_row(next(iter(policies.values()))))
        lines.append("")
    return "\n".join([*lines, *_answer_lines(summary)]) + "\n"


def _policy_row(policy: str, figures: PolicyFigures) -> str:
    cells = [column.cell(figures[column.figure]) for column in _COLUMNS]
    return _row([policy, *cells])


def _dense_row(figures: PolicyFigures) -> str:
    cells = ["exact dense"]
    for column in _COLUMNS:
        cells.append("" if column.dense is None else column.cell(figures[column.dense]))
    return _row(cells)


def _answer_lines(summary: StudySummary) -> list[str]:
    lines = ["### Answers", ""]
    lines.append(_row(["question", "mean", "standard deviation over seeds"]))
    lines.append("|---|---|---|")
    for answer in summary.answers:
        if answer.figure is None:
            continue
        policy = "" if answer.policy is None else f" ({answer.policy})"
        mean = f"{answer.figure.mean:.3g}"
        lines.append(_row([f"{answer.question}{policy}", mean, f"{answer.figure.sd:.2g}"]))
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
