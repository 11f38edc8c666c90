"""Which benchmark does what."""

import json
from argparse import Namespace
from typing import Any


def bench(options: Namespace) -> tuple[dict[str, Any], str]:
    """The document of one benchmark, and the same for people."""
    if options.what == "chaos":
        from ops.bench.chaos import ChaosConfig, chaos

        found = chaos(
            ChaosConfig(
                events=options.events or 5000, strikes=options.strikes or 100, churn=options.churn, seed=options.seed, kafka=options.kafka
            )
        )
        return found, json.dumps(found, indent=2)
    raise AssertionError(options.what)
