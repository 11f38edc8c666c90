"""The API does what its description says: schemathesis asks the real server, also by its links.

Bounded and seeded. Promotion and rollback are left out: each starts a process.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of
from tests.api_client import opened
from tests.serving import http_serving
from tests.stubs import services_at

CONFIGURATION = Path(__file__).resolve().parents[1] / "schemathesis.toml"

SECRET = "sigma_key-of-this-test-and-long"

LIMIT_S = 280
"""Longest run; on two idle cores it takes less than a minute."""


@pytest.fixture
def keyed_url(database: str, tmp_path: Path) -> Iterator[str]:
    opened(database, tmp_path)
    key = ApiKey("all", ApiScope.ADMIN, digest_of(SECRET.encode()), 100_000.0)
    keyed = services_at(database, tmp_path, access=AccessSettings((key,)))
    with http_serving(keyed) as url:
        yield url


def conformance(url: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Ask the server whatever its description allows, and more; `folder` is for what it keeps."""
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={CONFIGURATION}",
            "run",
            f"{url}/openapi.json",
            f"--header=Authorization: Bearer {SECRET}",
            "--phases=examples,coverage,fuzzing,stateful",
            "--max-examples=5",
            "--seed=1",
            "--checks=all",
            "--exclude-operation-id=promoteGeneration",
            "--exclude-operation-id=rollBackGeneration",
            "--continue-on-failure",
            "--suppress-health-check=all",
            "--request-timeout=60",
            "--max-response-time=60",
            "--no-color",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_no_request_brings_a_fault_or_an_answer_that_is_not_described(
    keyed_url: str, tmp_path: Path
) -> None:
    done = conformance(keyed_url, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 16" in done.stdout
