"""How much a process of an embedded installation imports before it works."""

import subprocess
import sys

import pytest

# Each takes from a fifth of a second to seven seconds of processor time.
MODEL = {"torch", "transformers", "sklearn", "scipy", "matplotlib"}
SERVICES = {"kafka", "aiokafka", "faust", "minio"}


@pytest.mark.parametrize(
    "modules",
    [
        "ops.cli.main",
        "ops.embedded.supervisor",
        "workers.intake, workers.runtime.relay",
        "workers.index",
        "workers.query.http, workers.query.residents",
        "ops.jobs.scheduler, ops.jobs.drift_watcher",
    ],
)
def test_a_process_without_model_kafka_or_s3_starts_without_importing_them(modules: str) -> None:
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (MODEL | SERVICES) & set(done.stdout.split()) == set()
