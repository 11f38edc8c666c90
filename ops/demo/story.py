"""What the demo tells a person at its end."""

from typing import Any

from ops.evaluation import table


def story(document: dict[str, Any]) -> str:
    """The recall table, a few queries with what they found, and where to look next."""
    streamed, fresh = document["stream"], document["status"]["freshness_s"]
    queries = streamed["queries_meanwhile"]
    lines = [
        "",
        table(document["evaluate"]),
        "",
        f"{streamed['indexed']} images streamed; searchable {fresh['p50']} s (p50) after arrival, {fresh['p95']} s (p95)",
        f"{queries['answered']} queries answered meanwhile, {queries['failed']} failed, {queries['p50_ms']} ms (p50)",
        "",
    ]
    for example in document["examples"]:
        lines.append(f"“{example['query']}”")
        for hit in example["results"]:
            lines.append(
                f"  {hit['rank']}. {hit['image_id']}  {hit['identifier']}  {(hit['captions'] or [''])[0]}"
            )
    phases = ", ".join(f"{name} {seconds:g} s" for name, seconds in document["seconds"].items())
    home = document["home"]
    lines += [
        "",
        f"seconds: {phases}",
        "",
        "Where to look next:",
        f"  export SIGMA_HOME={home}",
        "  sigma up                                        # the same index, running in the background",
        '  sigma query "two small red circles on navy"     # or POST /v1/query, documentation at /docs',
        "  sigma explain 3,1,4,2                           # what an identifier stands for",
        "  sigma ingest PATH --wait                        # your own images",
        "  sigma status                                    # freshness, lag, sizes, alarms",
        "  sigma down",
    ]
    return "\n".join(lines)
