"""The start of `sigma`: what must be settled before anything else of it is imported."""

import os
import sys
from collections.abc import Sequence

from ops.embedded.isolation import ISOLATED_ENVIRONMENT

# Everything that is tested runs on Linux, and some of it is there alone, such as the limit on the
# memory of the process that decodes pictures.
_SUPPORTED = "linux"

_NAMES = {"darwin": "macOS", "win32": "Windows", "cygwin": "Windows"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sigma`, on Linux; elsewhere one sentence and exit code 2."""
    if sys.platform != _SUPPORTED:
        print(f"sigma: {unsupported(sys.platform)}", file=sys.stderr)
        return 2
    # Also of processes that start others themselves, as multiprocessing does.
    os.environ.update(ISOLATED_ENVIRONMENT)
    from ops.cli.main import main as run

    return run(arguments)


def unsupported(platform: str) -> str:
    """What is said on another system; `platform` as `sys.platform` has it."""
    return (
        f"sigma runs on Linux, got {_NAMES.get(platform, platform)}; run it in a container or a"
        " virtual machine (on Windows: WSL 2). The client sigma-stream-client runs anywhere"
    )


if __name__ == "__main__":
    sys.exit(main())
