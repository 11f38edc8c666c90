"""Benchmarks: which one `sigma bench` runs, and with which options.

Each is imported when it runs: some need PyTorch or vLLM, which take seconds to import.
"""

import json
from argparse import Namespace
from collections.abc import Sequence

from ops.bench.comparison import Comparison, document, table
from schemas.errors import RefuseToStartError
from schemas.records import JsonObject
from schemas.settings import Settings

# The JSON document of a benchmark, and the same for people.
Report = tuple[JsonObject, str]

# The figures of docs/delivery.md.
DEFAULT_CHAOS_EVENTS = 5000
DEFAULT_DISTURBANCES = 100

# The figures of docs/experiments/fuzz.md.
DEFAULT_FUZZ_EVENTS = 20_000
DEFAULT_FUZZ_IMAGES = 2000

# Images, seconds of work for the stub model.
DEFAULT_INGEST_EVENTS = 2000

# Seconds of a steady flow: long enough for caches, merges and autovacuum to play their part.
DEFAULT_STEADY_S = 300.0

# Seconds of each phase of the load benchmark; the long overload lasts twenty times as long.
DEFAULT_LOAD_PHASE_S = 30.0

# Seconds of each phase of the switch benchmark: ten switches with pauses between them.
DEFAULT_SWITCH_PHASE_S = 60.0


def run_benchmark(options: Namespace, settings: Settings) -> Report:
    """Run the benchmark `options.what`; the other options are those of `sigma bench`.

    Of the settings only those that say how to train and to search are used.
    """
    match options.what:
        case "corpus":
            return _corpus(options, settings)
        case "chaos":
            return _chaos(options)
        case "drift":
            return _drift(options)
        case "fuzz":
            return _fuzz(options)
        case "gpu":
            return _gpu(options)
        case "growth":
            from ops.bench.growth import growth

            return growth(options.seed)
        case "load":
            return _load(options)
        case "recluster":
            return _recluster(options)
        case "stream":
            return _stream(options, settings)
        case "switch":
            return _switch(options)
    # The others report nothing but comparisons.
    comparisons = _compare(options)
    return document(comparisons), table(comparisons)


def _compare(options: Namespace) -> Sequence[Comparison]:
    """Run a benchmark whose comparisons are its whole report."""
    match options.what:
        case "decode":
            from ops.bench.decode import decode

            return decode(options.seed)
        case "filter":
            from ops.bench.filters import filters

            return filters(options.seed)
        case "ingest":
            from ops.bench.ingest import ingest

            return ingest(options.events or DEFAULT_INGEST_EVENTS, options.kafka)
        case "query":
            return _query(options)
        case "residents":
            from ops.bench.residents import DEFAULT_ENCODER, residents

            return residents(options.encoder or DEFAULT_ENCODER, options.seed)
        case "scale":
            from ops.bench.scale import DEFAULT_IMAGES, scale

            return scale(options.images or DEFAULT_IMAGES, options.seed)
        case "steady":
            from ops.bench.steady import steady

            return steady(options.seconds or DEFAULT_STEADY_S, options.kafka)
        case "trie":
            from ops.bench.trie import SIZES, trie

            return trie(options.seed, (options.images,) if options.images else SIZES)
        case "turnover":
            from ops.bench.turnover import DEFAULT_IMAGES, turnover

            return turnover(options.images or DEFAULT_IMAGES, options.seed)
    # The command line has its own list of names: a new benchmark belongs in both places.
    raise AssertionError(f"sigma bench accepts no benchmark {options.what!r}")


def _query(options: Namespace) -> Sequence[Comparison]:
    """Batches beside exact search; with a size, single queries beside a small gallery."""
    if options.images is None:
        from ops.bench.query import query

        return query(options.seed)
    from ops.bench.query_growth import DEFAULT_WIDTH, query_growth

    return query_growth(options.images, options.width or DEFAULT_WIDTH, options.seed)


def _chaos(options: Namespace) -> Report:
    from ops.bench.chaos import ChaosConfig, chaos

    config = ChaosConfig(
        events=options.events or DEFAULT_CHAOS_EVENTS,
        disturbances=options.strikes or DEFAULT_DISTURBANCES,
        churn=options.churn,
        seed=options.seed,
        kafka=options.kafka,
    )
    return _as_json(chaos(config).to_json())


def _corpus(options: Namespace, settings: Settings) -> Report:
    from ops.bench.corpus_command import corpus

    result = corpus(options, settings)
    return result.to_json(), result.to_markdown()


def _stream(options: Namespace, settings: Settings) -> Report:
    from ops.bench.stream_command import stream

    result = stream(options, settings)
    return result.to_json(), result.to_markdown()


def _drift(options: Namespace) -> Report:
    from ops.bench.drift import DriftConfig, drift

    return drift(DriftConfig(seed=options.seed, peer=options.peer))


def _fuzz(options: Namespace) -> Report:
    try:
        from ops.bench.fuzz import FuzzConfig, fuzz
    except ModuleNotFoundError as error:
        raise RefuseToStartError(
            f"sigma bench fuzz needs the package {error.name}, got none; install sigma-stream[dev]"
        ) from error

    config = FuzzConfig(
        events=options.events or DEFAULT_FUZZ_EVENTS,
        images=options.images or DEFAULT_FUZZ_IMAGES,
        seed=options.seed,
        files=options.files,
    )
    return _as_json(fuzz(config).to_json())


def _load(options: Namespace) -> Report:
    from ops.bench.load import load

    result = load(options.seconds or DEFAULT_LOAD_PHASE_S, options.seed)
    return result.to_json(), result.table()


def _gpu(options: Namespace) -> Report:
    from ops.bench.gpu.command import as_text, gpu_bench

    document = gpu_bench(options.seed)
    return document, as_text(document)


def _recluster(options: Namespace) -> Report:
    from ops.bench.recluster import ReclusterBenchConfig, recluster

    return recluster(ReclusterBenchConfig(seed=options.seed))


def _switch(options: Namespace) -> Report:
    from ops.bench.switch import SwitchConfig, switch

    phase_s = options.seconds or DEFAULT_SWITCH_PHASE_S
    config = SwitchConfig(seconds=phase_s, stub=options.stub, seed=options.seed)
    return _as_json(switch(config).to_json())


def _as_json(report: JsonObject) -> Report:
    return report, json.dumps(report, indent=2)
