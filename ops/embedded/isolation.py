"""Isolation: worker processes import this project's packages, whatever lies in the user's folder.

`python -m` puts the working folder first on the import path, so a user's `ops.py`, `model/` or
`stream/` would shadow ours. `-P` and `PYTHONSAFEPATH` leave it out.
"""

import sys

# For processes that start Python processes themselves, as `torchrun` does.
ISOLATED_ENVIRONMENT = {"PYTHONSAFEPATH": "1"}


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of ours with this interpreter."""
    return [sys.executable, "-P", "-m", module, *arguments]
