"""What a benchmark reports: the same comparisons as JSON and as a table."""

import json

from ops.bench.comparison import Comparison, document, table

FASTER = Comparison("insert", ours=0.1234567, peer=2.5, peer_name="rebuild", unit="ms", n=1000)
NO_PEER_FIGURE = Comparison("alarms", ours=2.0, peer=0.0, peer_name="Evidently", unit="", n=30)


def test_a_document_has_a_row_for_each_comparison_and_the_further_keys() -> None:
    report = document([FASTER], images=7)
    assert report == {
        "rows": [
            {
                "name": "insert",
                "ours": 0.12346,
                "peer": 2.5,
                "peer_name": "rebuild",
                "unit": "ms",
                "n": 1000,
                "ratio": 0.049383,
            }
        ],
        "images": 7,
    }


def test_an_infinite_ratio_is_null_in_json() -> None:
    report = document([NO_PEER_FIGURE])
    assert json.loads(json.dumps(report, allow_nan=False))["rows"][0]["ratio"] is None


def test_a_table_has_a_line_for_each_comparison() -> None:
    lines = table([FASTER, NO_PEER_FIGURE]).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["insert", "0.1235", "2.5", "0.05", "ms", "(rebuild,", "n=1,000)"]
