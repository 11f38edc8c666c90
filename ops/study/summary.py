"""The summary of a study: means over seeds, what each policy cost, and the questions that the study answers."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

Run = dict[str, Any]

MEASURES = ("at_arrival", "new", "old", "dense_new", "dense_old")


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Figures of each stream and policy, means over seeds with their standard deviation, and the answers."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["stream"], run["policy"]].append(run)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for (stream, policy), members in sorted(groups.items()):
        found[stream][policy] = _policy(members)
    return {
        "seeds": sorted({run["seed"] for run in runs}),
        "streams": dict(found),
        "answers": answers(runs),
    }


def _policy(runs: Sequence[Run]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for measure in MEASURES:
        for cutoff in ("R@1", "R@5", "R@10"):
            figures[f"{measure} {cutoff}"] = _spread(
                [np.mean([one[measure][cutoff] for one in run["sessions"]]) for run in runs]
            )
    figures["last five, new R@10"] = _spread(
        [np.mean([one["new"]["R@10"] for one in run["sessions"][-5:]]) for run in runs]
    )
    figures["last five, old R@10"] = _spread(
        [np.mean([one["old"]["R@10"] for one in run["sessions"][-5:]]) for run in runs]
    )
    figures["new-image ratio"] = _spread([_ratio(run) for run in runs])
    figures["backward transfer"] = _spread([run["backward_transfer"]["ours"] for run in runs])
    figures["backward transfer, dense"] = _spread(
        [run["backward_transfer"]["dense"] for run in runs]
    )
    figures["cpu_s"] = _spread([sum(one["cpu_s"] for one in run["sessions"]) for run in runs])
    figures["upkeeps"] = _spread(
        [sum(bool(one["action"]) for one in run["sessions"]) for run in runs]
    )
    moved = [[one["moved"] for one in run["sessions"] if one["action"]] for run in runs]
    figures["moved per upkeep"] = _spread([float(np.mean(one)) if one else 0.0 for one in moved])
    figures["sessions with alarms"] = _spread(
        [sum(bool(one["alarms"]) for one in run["sessions"]) for run in runs]
    )
    return figures


def _ratio(run: Run) -> float:
    """Recall of images at their arrival, without training, to that of older ones."""
    return float(
        np.mean([one["at_arrival"]["R@10"] for one in run["sessions"]])
        / np.mean([one["old"]["R@10"] for one in run["sessions"]])
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(float(np.mean(values)), 4), "sd": round(float(np.std(values)), 4)}


def answers(runs: Sequence[Run]) -> dict[str, Any]:
    """What the study was made for; None where a run that an answer needs is missing."""
    by = {(run["stream"], run["seed"], run["policy"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    return {
        "periodic refresh to full, CPU seconds of one upkeep": _over(
            seeds, lambda seed: _upkeep_ratio(by, seed, "periodic")
        ),
        "periodic refresh to full, R@10 after a shifted session": _over(
            seeds, lambda seed: _after_shift(by, seed, "periodic")
        ),
        "refresh on drift to full, CPU seconds of one upkeep": _over(
            seeds, lambda seed: _upkeep_ratio(by, seed, "drift")
        ),
        "refresh on drift to full, R@10 after a shifted session": _over(
            seeds, lambda seed: _after_shift(by, seed, "drift")
        ),
        "new images without training to full retraining, stationary R@10": _over(
            seeds, lambda seed: _untrained(by, seed)
        ),
        "forgetting under the best policy, points of R@10": _forgetting(runs),
    }


def _over(seeds: Sequence[int], of: Any) -> dict[str, float] | None:
    values = [value for value in map(of, seeds) if value is not None]
    return _spread(values) if values else None


def _pair(by: dict[Any, Run], stream: str, seed: int, policy: str) -> tuple[Run, Run] | None:
    if (stream, seed, policy) in by and (stream, seed, "full") in by:
        return by[stream, seed, policy], by[stream, seed, "full"]
    return None


def _upkeep_ratio(by: dict[Any, Run], seed: int, policy: str) -> float | None:
    """CPU seconds of the refreshes of a stream that changed at once, each beside the full retraining of its session."""
    found = _pair(by, "abrupt", seed, policy)
    if found is None:
        return None
    pairs = [
        (a["cpu_s"], b["cpu_s"])
        for a, b in zip(found[0]["sessions"], found[1]["sessions"], strict=True)
        if a["action"]
    ]
    return float(sum(a for a, _ in pairs) / sum(b for _, b in pairs)) if pairs else None


def _after_shift(by: dict[Any, Run], seed: int, policy: str) -> float | None:
    """R@10 of new and old images in shifted sessions with a refresh, to that of full retraining in the same sessions."""
    found = _pair(by, "abrupt", seed, policy)
    if found is None:
        return None
    pairs = [
        (a["new"]["R@10"] + a["old"]["R@10"], b["new"]["R@10"] + b["old"]["R@10"])
        for a, b in zip(found[0]["sessions"], found[1]["sessions"], strict=True)
        if a["action"] and a["later_share"] > 0
    ]
    return float(sum(a for a, _ in pairs) / sum(b for _, b in pairs)) if pairs else None


def _untrained(by: dict[Any, Run], seed: int) -> float | None:
    found = _pair(by, "stationary", seed, "never")
    if found is None:
        return None
    mine, upper = (
        np.mean([one[name]["R@10"] for one in run["sessions"]])
        for name, run in zip(("at_arrival", "new"), found, strict=True)
    )
    return float(mine / upper)


def _forgetting(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Of the policies that train less than every session, the one that forgets least, over all streams."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run["policy"] != "full":
            found[run["policy"]].append(run["backward_transfer"]["ours"])
    if not found:
        return None
    best = max(found, key=lambda policy: float(np.mean(found[policy])))
    return {"policy": best, **_spread([-100 * value for value in found[best]])}


def table(document: dict[str, Any]) -> str:
    """The figures as Markdown, a table for each stream."""
    lines: list[str] = []
    columns = (
        ("new, at arrival", "at_arrival R@10"),
        ("new R@1", "new R@1"),
        ("new R@10", "new R@10"),
        ("old R@1", "old R@1"),
        ("old R@10", "old R@10"),
        ("new-image ratio", "new-image ratio"),
        ("forgetting (BWT)", "backward transfer"),
        ("moved", "moved per upkeep"),
        ("upkeeps", "upkeeps"),
        ("sessions with alarms", "sessions with alarms"),
        ("CPU s", "cpu_s"),
    )
    for stream, policies in document["streams"].items():
        lines += [
            f"### {stream}",
            "",
            "| policy | " + " | ".join(name for name, _ in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for policy, figures in policies.items():
            lines.append(
                f"| {policy} | " + " | ".join(_cell(key, figures[key]) for _, key in columns) + " |"
            )
        dense = next(iter(policies.values()))
        shown = {
            "new R@1": "dense_new R@1",
            "new R@10": "dense_new R@10",
            "old R@1": "dense_old R@1",
            "old R@10": "dense_old R@10",
        }
        shown |= {
            "at_arrival R@10": "dense_new R@10",
            "backward transfer": "backward transfer, dense",
        }
        lines += [
            "| exact dense | "
            + " | ".join(
                _cell(key, dense[shown[key]]) if key in shown else "" for _, key in columns
            )
            + " |",
            "",
        ]
    lines += [
        "### Answers",
        "",
        "| question | mean | standard deviation over seeds |",
        "|---|---|---|",
    ]
    for question, found in document["answers"].items():
        if found is not None:
            policy = f" ({found['policy']})" if "policy" in found else ""
            lines.append(f"| {question}{policy} | {found['mean']:.3g} | {found['sd']:.2g} |")
    return "\n".join(lines) + "\n"


def _cell(key: str, found: dict[str, float]) -> str:
    if key in ("cpu_s", "upkeeps", "sessions with alarms"):
        return f"{found['mean']:.0f}" if key == "cpu_s" else f"{found['mean']:.1f}"
    if key == "new-image ratio":
        return f"{found['mean']:.2f}"
    return f"{100 * found['mean']:.1f} ± {100 * found['sd']:.1f}"
