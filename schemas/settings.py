"""The settings: every environment variable that the project reads, in one place, checked at the door."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import RefuseToStartError, UsageError

MEBIBYTE = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process may be told from outside. Sizes in bytes; `database_url` None means the embedded server."""

    home: Path = Path(".sigma")
    database_url: str | None = None
    http_host: str = "127.0.0.1"
    http_port: int = 8631
    beams: int = 20
    postings: int = 3
    fusion_weight: float = 0.3
    max_image_bytes: int = 20 * MEBIBYTE
    max_image_pixels: int = 50_000_000
    decode_memory_bytes: int = 512 * MEBIBYTE
    """Address space of the decode process beyond what it has at its start."""
    log_level: str = "info"
    threads: int | None = None
    """CPU threads of one process; None leaves the choice to torch."""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__slots__}
        shown["database_url"] = redacted(self.database_url)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def embedded(self) -> bool:
        """Whether the database is the one that comes with the installation."""
        return self.database_url is None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Settings of an environment. `UsageError` names the variable, what was found, what is allowed and the cure."""
        for name in ("SIGMA_KAFKA_BOOTSTRAP", "SIGMA_S3_ENDPOINT"):
            if environ.get(name):
                raise RefuseToStartError(f"{name} is set, which this version does not support yet; unset it to run embedded")
        default = cls()
        return cls(
            home=Path(environ.get("SIGMA_HOME") or default.home),
            database_url=_database_url(environ),
            http_host=environ.get("SIGMA_HTTP_HOST") or default.http_host,
            http_port=_integer(environ, "SIGMA_HTTP_PORT", default.http_port, low=0, high=65535),
            beams=_integer(environ, "SIGMA_BEAMS", default.beams, low=1, high=1000),
            postings=_integer(environ, "SIGMA_POSTINGS", default.postings, low=1, high=20),
            fusion_weight=_number(environ, "SIGMA_FUSION_WEIGHT", default.fusion_weight, low=0.0, high=100.0),
            max_image_bytes=_integer(environ, "SIGMA_MAX_IMAGE_BYTES", default.max_image_bytes, low=1, high=1 << 30),
            max_image_pixels=_integer(environ, "SIGMA_MAX_IMAGE_PIXELS", default.max_image_pixels, low=1, high=1 << 30),
            decode_memory_bytes=_integer(
                environ, "SIGMA_DECODE_MEMORY_BYTES", default.decode_memory_bytes, low=16 * MEBIBYTE, high=1 << 36
            ),
            log_level=_choice(environ, "SIGMA_LOG_LEVEL", default.log_level, LOG_LEVELS),
            threads=_integer(environ, "SIGMA_THREADS", 0, low=1, high=1024) if environ.get("SIGMA_THREADS") else None,
        )


def redacted(url: str | None) -> str | None:
    """A database address without its password and query, fit for a log."""
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _database_url(environ: Mapping[str, str]) -> str | None:
    url = environ.get("SIGMA_DATABASE_URL")
    if url and not url.startswith(("postgresql://", "postgres://")):
        # The value is not shown: it may hold a password.
        raise UsageError("SIGMA_DATABASE_URL does not start with postgresql://; write postgresql://user:password@host:5432/database")
    return url or None


def _integer(environ: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    found = environ.get(name)
    if not found:
        return default
    digits = found.replace("_", "")
    if not (digits.isascii() and digits.isdigit() and low <= int(digits) <= high):
        raise UsageError(f"{name} is {found!r}, allowed is a whole number from {low} to {high}; correct it or unset it for {default}")
    return int(digits)


def _number(environ: Mapping[str, str], name: str, default: float, *, low: float, high: float) -> float:
    found = environ.get(name)
    if not found:
        return default
    try:
        value = float(found)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{name} is {found!r}, allowed is a number from {low} to {high}; correct it or unset it for {default}")
    return value


def _choice(environ: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    found = (environ.get(name) or default).lower()
    if found not in allowed:
        raise UsageError(f"{name} is {found!r}, allowed are {', '.join(allowed)}; correct it or unset it for {default}")
    return found
