"""Tables in Markdown."""

from collections.abc import Sequence


def table_head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [table_row(titles), "|---" * len(titles) + "|"]


def table_row(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"
