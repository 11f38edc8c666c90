"""What the demo prints at its end."""

from ops.evaluation import Evaluation
from schemas.records import JsonObject


def story(document: JsonObject) -> str:
    """Return the recall table, a few queries with their answers, and where to look next."""
    lines = [
        "",
        Evaluation.from_json(document["evaluate"]).to_text(),
        "",
        *_stream_lines(document),
        "",
        *_example_lines(document),
        "",
        f"seconds: {_phases(document['seconds'])}",
        "",
        *_next_steps(document["home"]),
    ]
    return "\n".join(lines)


def _stream_lines(document: JsonObject) -> list[str]:
    streamed = document["stream"]
    queries = streamed["queries_meanwhile"]
    freshness = document["status"]["freshness_s"]
    return [
        f"{streamed['indexed']} images streamed; searchable {freshness['p50']} s (p50) after"
        f" arrival, {freshness['p95']} s (p95)",
        f"{queries['answered']} queries answered meanwhile, {queries['failed']} failed,"
        f" {queries['p50_ms']} ms (p50)",
    ]


def _example_lines(document: JsonObject) -> list[str]:
    lines = []
    for example in document["examples"]:
        lines.append(f"“{example['query']}”")
        for result in example["results"]:
            caption = result["captions"][0] if result["captions"] else ""
            lines.append(
                f"  {result['rank']}. {result['image_id']}  {result['identifier']}  {caption}"
            )
    return lines


def _phases(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g} s" for name, value in seconds.items())


def _next_steps(home: str) -> list[str]:
    return [
        "Where to look next:",
        f"  export SIGMA_HOME={home}",
        "  sigma up                                        # the same index, in the background",
        '  sigma query "two small red circles on navy"     # or POST /v1/query; see /docs',
        "  sigma explain 3,1,4,2                           # what an identifier stands for",
        "  sigma ingest PATH --wait                        # your own images",
        "  sigma status                                    # freshness, lag, sizes, alarms",
        "  sigma down",
    ]
