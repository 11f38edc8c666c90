"""The export: everything that containers and Kubernetes need, in one folder, without a checkout."""

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ops.deploy.installed_wheel import pack
from schemas.api_keys import ApiScope, digest_of, new_secret
from schemas.errors import UsageError
from schemas.records import JsonObject

DISTRIBUTIONS = ("sigma-stream", "sigma-stream-client")

SECRETS_FILE, SECRETS_EXAMPLE = ".env", "env.example"
"""What compose reads, and the same without a value: compose refuses to start with that."""

# Passwords that nobody types: made anew for each export.
_PASSWORDS = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD")

_KEY_NAME = "owner"

_PASSWORD_BYTES = 24


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is exported where."""

    folder: Path
    wheels: Path | None = None
    """A folder with wheels of this version; None packs what is installed."""
    force: bool = False
    """Replace files of an earlier export; its secrets stay."""
    generate_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    key: str | None
    """The key of scope admin whose hash is among the generated secrets; shown once."""

    def to_json(self) -> JsonObject:
        """The document of `sigma deploy export`."""
        return {"folder": str(self.folder), "files": list(self.files), "key": self.key}


def export(request: ExportRequest) -> Export:
    """Write the files; `UsageError` for a folder that is not empty, unless it is forced."""
    _check(request)
    folder = request.folder
    written = []
    for name, source in shipped_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        written.append(name)
    written += [f"wheels/{file.name}" for file in _wheels(request.wheels, folder / "wheels")]
    key = _write_secrets(folder) if request.generate_secrets else None
    return Export(folder, tuple(sorted(written)), key)


def _check(request: ExportRequest) -> None:
    folder = request.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the export needs a folder, got the file {folder}; name another one")
    there = len(list(folder.iterdir())) if folder.is_dir() else 0
    if there and not request.force:
        raise UsageError(
            f"the export needs an empty folder, got {folder} with {there} entries; name another"
            " one, or add --force to replace what an earlier export wrote"
        )
    if request.generate_secrets and (folder / SECRETS_FILE).exists():
        raise UsageError(
            f"{folder / SECRETS_FILE} has secrets that services use already; remove it to draw"
            " others, or leave out --generate-secrets"
        )


def shipped_files() -> Iterator[tuple[str, Traversable]]:
    """All files of the export but wheels and secrets, with their paths in it."""
    yield from _walk(resources.files("ops.deploy").joinpath("files"), "")


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry


def _wheels(source: Path | None, folder: Path) -> list[Path]:
    """Put the wheels of both distributions into the folder, and no older ones beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if source is None:
        return [pack(name, folder) for name in DISTRIBUTIONS]
    return [Path(shutil.copy(_newest(source, name), folder)) for name in DISTRIBUTIONS]


def _newest(source: Path, name: str) -> Path:
    pattern = f"{name.replace('-', '_')}-[0-9]*.whl"
    found = sorted(source.glob(pattern), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UsageError(f"{source} must hold {pattern}, got none; run make wheels in a checkout")
    return found[-1]


def _write_secrets(folder: Path) -> str:
    """Write `.env` with secrets that were drawn for it; returns the key."""
    key = new_secret()
    values = {name: secrets.token_urlsafe(_PASSWORD_BYTES) for name in _PASSWORDS}
    values["SIGMA_API_KEYS"] = f"{_KEY_NAME}:{ApiScope.ADMIN}:{digest_of(key.encode())}"
    lines = []
    for line in (folder / SECRETS_EXAMPLE).read_text(encoding="utf-8").splitlines():
        name, separator, _ = line.partition("=")
        lines.append(f"{name}={values[name]}" if separator and name in values else line)
    file = folder / SECRETS_FILE
    file.touch(mode=0o600)
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return key
