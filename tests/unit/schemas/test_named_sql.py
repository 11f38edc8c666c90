"""The named queries: every file is read, and no name stands for two of them."""

from schemas.named_sql import queries


def test_all_query_files_can_be_read_together() -> None:
    assert len(queries()) > 100
