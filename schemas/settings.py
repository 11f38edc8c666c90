"""The settings: every environment variable that the project reads, in one place, checked at the door."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import UsageError
from schemas.schedules import ALLOWED_FORMS, Schedule

MEBIBYTE = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")
ENGINES = ("torch", "vllm")
RETRAIN_MODES = ("refresh", "full")

_BROKER = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_JOB = re.compile(r"[a-z][a-z0-9-]*")
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the brokers are. With a user name, the connection is encrypted and signs in by `mechanism`."""

    bootstrap: tuple[str, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    mechanism: str = "SCRAM-SHA-512"
    tls: bool = False
    replication: int = -1
    """Copies of each new topic; -1 leaves it to the broker."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the image store is: `endpoint` is host:port."""

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    secure: bool = True
    bucket: str = "sigma-images"
    region: str = "us-east-1"
    source_buckets: tuple[str, ...] = ()
    """Buckets that `s3://` arrivals may name beside `bucket`."""
    link_lifetime_s: int = 900
    """Seconds that a link in an answer is good for."""


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How images are posted and queries answered; the same values for queries, gates and probes."""

    beams: int = 20
    """Leaves that one query may reach."""
    postings: int = 3
    """Leaves that an image is posted under: its primary and the alternates."""
    fusion_weight: float = 0.3
    """Weight of the decoder's log-probability beside the image-text similarity."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process may be told from outside. Sizes in bytes; `database_url` None means the embedded server."""

    home: Path = Path(".sigma")
    database_url: str | None = None
    kafka: KafkaSettings | None = None
    """None means the event log in Postgres."""
    s3: S3Settings | None = None
    """None means images in a folder of `home`."""
    source_roots: tuple[Path, ...] | None = None
    """Folders that `file://` arrivals may name; None allows any in the embedded mode, none with Kafka."""
    https_hosts: tuple[str, ...] = ()
    """Hosts that `https://` arrivals may name, such as `images.example.org` or `*.example.org`."""
    engine: str = "torch"
    metrics_port: int | None = None
    """Port of a worker's Prometheus metrics; None for none. The query worker has them on its own port."""
    http_host: str = "127.0.0.1"
    http_port: int = 8631
    retrieval: RetrievalSettings = RetrievalSettings()
    shadow_share: float = 0.1
    """Share of the live queries that a shadow generation answers too."""
    keep_fallback: bool = True
    """Whether query workers keep the generation that a rollback would make live in memory, ready to answer."""
    auto_promote: bool = False
    """Whether a shadow generation that passes the gate goes live by itself."""
    max_image_bytes: int = 20 * MEBIBYTE
    max_image_pixels: int = 50_000_000
    decode_memory_bytes: int = 256 * MEBIBYTE
    """Address space of the decode process beyond what it has at its start."""
    training_images: int = 50_000
    """Most images of the store that one training learns from; of more, a sample."""
    training_processes: int = 1
    """Processes of a training that the scheduler starts: one for each GPU."""
    retrain: str = "refresh"
    """What the scheduled retraining does."""
    log_level: str = "info"
    threads: int | None = None
    """CPU threads of one process; None leaves the choice to torch."""
    schedules: tuple[tuple[str, Schedule], ...] = ()
    """(job, schedule) where a job is to be run at other times than its own, or not at all."""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__slots__}
        shown["database_url"] = redacted_url(self.database_url)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def embedded(self) -> bool:
        """Whether the database is the one that comes with the installation."""
        return self.database_url is None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Settings of an environment. `UsageError` names the variable, what was found, what is allowed and the cure."""
        default = cls()
        return cls(
            home=Path(environ.get("SIGMA_HOME") or default.home),
            database_url=_database_url(environ),
            kafka=_kafka(environ),
            s3=_s3(environ),
            source_roots=_roots(environ),
            https_hosts=_list(
                environ,
                "SIGMA_HTTPS_HOSTS",
                _HOST,
                "host names such as images.example.org or *.example.org",
            ),
            engine=_choice(environ, "SIGMA_ENGINE", default.engine, ENGINES),
            metrics_port=_integer(environ, "SIGMA_METRICS_PORT", 0, low=1, high=65535)
            if environ.get("SIGMA_METRICS_PORT")
            else None,
            http_host=environ.get("SIGMA_HTTP_HOST") or default.http_host,
            http_port=_integer(environ, "SIGMA_HTTP_PORT", default.http_port, low=0, high=65535),
            retrieval=_retrieval(environ),
            shadow_share=_number(
                environ, "SIGMA_SHADOW_SHARE", default.shadow_share, low=0.0, high=1.0
            ),
            keep_fallback=_choice(environ, "SIGMA_KEEP_FALLBACK", "yes", ("yes", "no")) == "yes",
            auto_promote=_choice(environ, "SIGMA_AUTO_PROMOTE", "no", ("yes", "no")) == "yes",
            max_image_bytes=_integer(
                environ, "SIGMA_MAX_IMAGE_BYTES", default.max_image_bytes, low=1, high=1 << 30
            ),
            max_image_pixels=_integer(
                environ, "SIGMA_MAX_IMAGE_PIXELS", default.max_image_pixels, low=1, high=1 << 30
            ),
            decode_memory_bytes=_integer(
                environ,
                "SIGMA_DECODE_MEMORY_BYTES",
                default.decode_memory_bytes,
                low=16 * MEBIBYTE,
                high=1 << 36,
            ),
            training_images=_integer(
                environ, "SIGMA_TRAINING_IMAGES", default.training_images, low=100, high=1 << 30
            ),
            training_processes=_integer(
                environ, "SIGMA_TRAINING_PROCESSES", default.training_processes, low=1, high=1024
            ),
            retrain=_choice(environ, "SIGMA_RETRAIN", default.retrain, RETRAIN_MODES),
            log_level=_choice(environ, "SIGMA_LOG_LEVEL", default.log_level, LOG_LEVELS),
            threads=_integer(environ, "SIGMA_THREADS", 0, low=1, high=1024)
            if environ.get("SIGMA_THREADS")
            else None,
            schedules=_schedules(environ),
        )


def redacted_url(url: str | None) -> str | None:
    """A database address without its password and query, fit for a log."""
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _database_url(environ: Mapping[str, str]) -> str | None:
    url = environ.get("SIGMA_DATABASE_URL")
    if url and not url.startswith(("postgresql://", "postgres://")):
        # The value is not shown: it may hold a password.
        raise UsageError(
            "SIGMA_DATABASE_URL does not start with postgresql://; write postgresql://user:password@host:5432/database"
        )
    return url or None


def _retrieval(environ: Mapping[str, str]) -> RetrievalSettings:
    default = RetrievalSettings()
    return RetrievalSettings(
        beams=_integer(environ, "SIGMA_BEAMS", default.beams, low=1, high=1000),
        postings=_integer(environ, "SIGMA_POSTINGS", default.postings, low=1, high=20),
        fusion_weight=_number(
            environ, "SIGMA_FUSION_WEIGHT", default.fusion_weight, low=0.0, high=100.0
        ),
    )


def _kafka(environ: Mapping[str, str]) -> KafkaSettings | None:
    brokers = _list(
        environ, "SIGMA_KAFKA_BOOTSTRAP", _BROKER, "host:port, several separated by commas"
    )
    if not brokers:
        return None
    username, password = (
        environ.get("SIGMA_KAFKA_USERNAME") or None,
        environ.get("SIGMA_KAFKA_PASSWORD") or None,
    )
    if (username is None) != (password is None):
        raise UsageError(
            "only one of SIGMA_KAFKA_USERNAME and SIGMA_KAFKA_PASSWORD is set; set both or none"
        )
    return KafkaSettings(
        bootstrap=brokers,
        username=username,
        password=password,
        mechanism=_choice(
            environ,
            "SIGMA_KAFKA_MECHANISM",
            "scram-sha-512",
            ("plain", "scram-sha-256", "scram-sha-512"),
        ).upper(),
        tls=_choice(environ, "SIGMA_KAFKA_TLS", "yes" if username else "no", ("yes", "no"))
        == "yes",
        replication=_integer(environ, "SIGMA_KAFKA_REPLICATION", -1, low=1, high=16),
    )


def _s3(environ: Mapping[str, str]) -> S3Settings | None:
    endpoint = environ.get("SIGMA_S3_ENDPOINT")
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or parts.path not in ("", "/")
        or parts.query
    ):
        # The value is not shown: it may hold a password.
        raise UsageError(
            "SIGMA_S3_ENDPOINT is not an address; write https://host:port without user, path or query"
        )
    access, secret = environ.get("SIGMA_S3_ACCESS_KEY"), environ.get("SIGMA_S3_SECRET_KEY")
    if not access or not secret:
        raise UsageError(
            "SIGMA_S3_ENDPOINT is set without its keys; set SIGMA_S3_ACCESS_KEY and SIGMA_S3_SECRET_KEY"
        )
    bucket = environ.get("SIGMA_S3_BUCKET") or "sigma-images"
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"SIGMA_S3_BUCKET is {bucket!r}, allowed are 3 to 63 small letters, digits, dots and hyphens; correct it"
        )
    return S3Settings(
        endpoint=parts.netloc,
        access_key=access,
        secret_key=secret,
        secure=parts.scheme == "https",
        bucket=bucket,
        region=environ.get("SIGMA_S3_REGION") or "us-east-1",
        source_buckets=_list(
            environ,
            "SIGMA_S3_SOURCE_BUCKETS",
            _BUCKET,
            "names of buckets, several separated by commas",
        ),
        link_lifetime_s=_integer(environ, "SIGMA_S3_LINK_SECONDS", 900, low=1, high=604_800),
    )


def _roots(environ: Mapping[str, str]) -> tuple[Path, ...] | None:
    found = environ.get("SIGMA_SOURCE_ROOTS")
    return (
        tuple(Path(part).absolute() for part in found.split(os.pathsep) if part) if found else None
    )


def _list(
    environ: Mapping[str, str], name: str, allowed: re.Pattern[str], meant: str
) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in (environ.get(name) or "").split(",") if part.strip())
    for part in parts:
        if not allowed.fullmatch(part):
            raise UsageError(f"{name} holds {part!r}, allowed are {meant}; correct it or unset it")
    return parts


def _schedules(environ: Mapping[str, str]) -> tuple[tuple[str, Schedule], ...]:
    """`recall-probe=*/30 * * * *; prune=off`: names are compared with those there are by whoever knows the jobs."""
    found: dict[str, Schedule] = {}
    for part in (environ.get("SIGMA_SCHEDULE") or "").split(";"):
        name, is_set, text = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not is_set or not _JOB.fullmatch(name) or name in found:
            problem = "a job twice" if name in found else "no schedule"
            raise UsageError(
                f"SIGMA_SCHEDULE holds {problem} in {part.strip()!r}; write JOB=SCHEDULE, several separated by semicolons: {ALLOWED_FORMS}"
            )
        try:
            found[name] = Schedule.parse(text)
        except UsageError as error:
            raise UsageError(f"SIGMA_SCHEDULE for {name}: {error}") from error
    return tuple(found.items())


def _integer(environ: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    found = environ.get(name)
    if not found:
        return default
    digits = found.replace("_", "")
    if not (digits.isascii() and digits.isdigit() and low <= int(digits) <= high):
        raise UsageError(
            f"{name} is {found!r}, allowed is a whole number from {low} to {high}; correct it or unset it for {default}"
        )
    return int(digits)


def _number(
    environ: Mapping[str, str], name: str, default: float, *, low: float, high: float
) -> float:
    found = environ.get(name)
    if not found:
        return default
    try:
        value = float(found)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(
            f"{name} is {found!r}, allowed is a number from {low} to {high}; correct it or unset it for {default}"
        )
    return value


def _choice(environ: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    found = (environ.get(name) or default).lower()
    if found not in allowed:
        raise UsageError(
            f"{name} is {found!r}, allowed are {', '.join(allowed)}; correct it or unset it for {default}"
        )
    return found
