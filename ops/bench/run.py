"""Which benchmark does what."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from ops.bench.rows import Row, document, table


def bench(options: Namespace) -> tuple[dict[str, Any], str]:
    """The document of one benchmark, and the same for people. Modules are imported when their benchmark runs."""
    if options.what == "chaos":
        from ops.bench.chaos import ChaosConfig, chaos

        config = ChaosConfig(
            events=options.events or 5000,
            strikes=options.strikes or 100,
            churn=options.churn,
            seed=options.seed,
            kafka=options.kafka,
        )
        found = chaos(config)
        return found, json.dumps(found, indent=2)
    if options.what == "recluster":
        from ops.bench.recluster import ReclusterBench, bench_recluster

        found, compared = bench_recluster(ReclusterBench(seed=options.seed))
        return found, table(compared)
    if options.what == "drift":
        from ops.bench.drift import DriftConfig, drift

        return drift(DriftConfig(seed=options.seed, peer=options.peer))
    if options.what == "switch":
        from ops.bench.switch import SwitchConfig, switch

        found = switch(
            SwitchConfig(seconds=options.seconds or 60.0, stub=options.stub, seed=options.seed)
        )
        return found, json.dumps(found, indent=2)
    rows = _rows(options)()
    return document(rows), table(rows)


def _rows(options: Namespace) -> Callable[[], Sequence[Row]]:
    if options.what == "ingest":
        from ops.bench.ingest import ingest

        return lambda: ingest(options.events or 2000, options.kafka)
    if options.what == "steady":
        from ops.bench.steady import steady

        return lambda: steady(options.seconds or 300.0, options.kafka)
    if options.what == "trie":
        from ops.bench.trie import trie

        return lambda: trie(options.seed)
    if options.what == "decode":
        from ops.bench.decode import decode

        return lambda: decode(options.seed)
    from ops.bench.query import query

    return lambda: query(options.seed)
