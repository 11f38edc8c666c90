"""The home: the folder of an installation's state, and what is said when it cannot be used."""

from pathlib import Path

from schemas.errors import UsageError


def run_folder(home: Path) -> Path:
    """Return the folder of locks and of what runs, which exists and can be written to afterwards.

    `UsageError` says in one sentence why a home cannot be used.
    """
    folder = home / "run"
    trial = folder / "trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"the home {home} cannot be used ({error.strerror}: {error.filename}); make it a"
            " folder that you may write to, or name another one with SIGMA_HOME"
        ) from error
    return folder


def home_mark(home: Path) -> str:
    """What tells a home from its copies: a record with another mark is not about this one."""
    status = home.stat()
    return f"{home.resolve()} {status.st_dev}:{status.st_ino}"
