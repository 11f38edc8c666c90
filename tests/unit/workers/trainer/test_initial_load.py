"""The initial load: what one image's postings look like in the table."""

from schemas.records import Posting
from workers.trainer.initial_load import PostingRow, posting_rows


def test_only_the_primary_posting_has_the_suffix() -> None:
    postings = (Posting(7, 0.0), Posting(2, -1.5), Posting(9, -2.0))
    assert posting_rows(postings, image_key=5, suffix=3) == [
        PostingRow(7, 5, 0.0, 3),
        PostingRow(2, 5, -1.5, -1),
        PostingRow(9, 5, -2.0, -1),
    ]
