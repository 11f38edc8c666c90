"""Failures: what the command line says of an error that nobody raised on purpose, in one sentence.

A user meets them through the machine: a disk, a permission, a database, a terminal. None of them
deserves a traceback, except for those who want it: `SIGMA_LOG_LEVEL=debug`.
"""

import errno
import os
import sys
import traceback

import psycopg

from schemas.errors import SigmaError, brief

# Longest sentence: an error of another library may quote all that it was given.
_LONGEST = 1000

# What is wrong with a path that the user gave: bad input. The rest, such as a full disk, is work
# that failed.
_WRONG_PATH = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EINVAL,
    }
)

_DEBUG = "set SIGMA_LOG_LEVEL=debug to see where"


def report(error: BaseException) -> int:
    """Tell an error on standard error, in one line; returns the exit code."""
    if os.environ.get("SIGMA_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    sentence, exit_code = explain(error)
    print(f"sigma: {one_line(sentence)}", file=sys.stderr)
    return exit_code


def explain(error: BaseException) -> tuple[str, int]:
    """Return what happened and what to do, and the exit code."""
    if isinstance(error, SigmaError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 1
    if isinstance(error, psycopg.Error):
        return f"the database cannot do this ({brief(error)}); see that it is well, try again", 1
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory; end other programs, or take less at once", 1
    kind = type(error).__name__
    return (
        f"an error of this program ended the command ({kind}: {error}); {_DEBUG}, and report it",
        1,
    )


def _explain_system(error: OSError) -> tuple[str, int]:
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"the system refused something ({reason}); {_DEBUG}", 1
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    if error.errno in _WRONG_PATH:
        return f"{path} cannot be used ({reason}); check the path and who may use it", 2
    return f"{path} cannot be used ({reason}); mend that and try again", 1


def one_line(text: str) -> str:
    """Return the text as one line, without what a terminal would act on, and not too long."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text.strip())
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
