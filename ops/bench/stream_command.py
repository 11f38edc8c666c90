"""How `sigma bench stream` is asked for: a runbook by name or file, and the sizes."""

from argparse import Namespace
from pathlib import Path

from ops.bench.runbook import (
    FINAL_CLUSTERS,
    SHIPPED,
    Runbook,
    churn_runbook,
    final_runbook,
    read_runbook,
)
from ops.bench.runbook_images import RunbookImages, clustered, draw_images
from ops.bench.runbook_result import RunbookResult
from ops.bench.stream import (
    DEFAULT_QUERIES,
    DEFAULT_TRAINED,
    StreamBenchConfig,
    bench_stream,
    trained_generation,
)
from ops.cli.progress_bar import bar
from schemas.errors import UsageError
from schemas.settings import Settings

# Images of the final and the churn runbook, where none are named.
_FINAL_IMAGES = 3000
_CHURN_IMAGES = 3300

# Clusters by which ids follow each other in a runbook from a file, as in random-xs-clustered.
_CLUSTERS = 32


def stream(options: Namespace, settings: Settings) -> RunbookResult:
    """Run the benchmark. The generation is kept in the home folder, for the next run."""
    if len(options.manifests) != 1:
        raise UsageError(
            "sigma bench stream needs one runbook; name delete, final or churn, or a file"
        )
    for name in ("images", "queries", "trained"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    trained = options.trained or DEFAULT_TRAINED
    checkpoint = trained_generation(settings.home / "bench-stream", trained, options.seed)
    given = _given(options)
    count = given.images if given is not None else options.images or _count_of(options.manifests[0])
    queries = options.queries or DEFAULT_QUERIES
    images = draw_images(count, queries, options.seed, checkpoint.encoder, bar)
    runbook, images = _on(options.manifests[0], given, images, options.seed)
    config = StreamBenchConfig(settings.retrieval, options.seed, not options.alone)
    return bench_stream(runbook, images, checkpoint, trained, config, bar)


def _given(options: Namespace) -> Runbook | None:
    """The runbook of a file, at the size asked for; None for those that are made for the images."""
    name: Path = options.manifests[0]
    if str(name) in ("final", "churn"):
        return None
    file = SHIPPED / "delete.yaml" if str(name) == "delete" else name
    runbook = read_runbook(file, options.dataset)
    return runbook if options.images is None else runbook.scaled(options.images)


def _count_of(name: Path) -> int:
    return _FINAL_IMAGES if str(name) == "final" else _CHURN_IMAGES


def _on(
    name: Path, given: Runbook | None, images: RunbookImages, seed: int
) -> tuple[Runbook, RunbookImages]:
    """The runbook, and the images in the order of its ids."""
    if str(name) == "churn":
        return churn_runbook(len(images)), images
    if given is not None:
        return given, clustered(images, _CLUSTERS, seed)[0]
    ordered, sizes = clustered(images, FINAL_CLUSTERS, seed)
    return final_runbook(sizes, seed), ordered
