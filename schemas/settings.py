"""The settings: every environment variable that the project reads, with default and meaning.

Only the command line reads the environment; everything else receives settings as arguments.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from schemas.access_settings import AccessSettings
from schemas.environment import (
    DocumentedSetting,
    Form,
    any_text,
    choice,
    document,
    matching,
    number,
    read_variables,
    separated,
    setting,
    whole,
    yes_no,
)
from schemas.errors import UsageError
from schemas.retrieval_settings import RetrievalSettings
from schemas.schedules import ALLOWED_FORMS, Schedule
from schemas.service_settings import KafkaSettings, S3Settings

# Bytes.
MEBIBYTE = 1 << 20
_GIBIBYTE = 1 << 30

LOG_LEVELS = ("debug", "info", "warning", "error")
ENGINES = ("torch", "vllm")
RETRAIN_MODES = ("refresh", "full")

# What `--encoder` calls the one whose weights come in packages of the registry.
PACKAGED_ENCODER = "efficientnet-minilm"

_JOB_NAME = re.compile(r"[a-z][a-z0-9-]*")

_HOST = matching(
    re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?"),
    "a host name such as images.example.org or *.example.org",
)


def _parse_database_url(url: str) -> str:
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError(url)
    return url


def _parse_folders(paths: str) -> tuple[Path, ...]:
    return tuple(Path(path).absolute() for path in paths.split(os.pathsep) if path)


def _parse_schedules(entries: str) -> tuple[tuple[str, Schedule], ...]:
    """Read `recall-probe=*/30 * * * *; prune=off`. Whether there are such jobs is checked later."""
    schedules: dict[str, Schedule] = {}
    for entry in entries.split(";"):
        if not entry.strip():
            continue
        name, equals, schedule = (piece.strip() for piece in entry.partition("="))
        if not equals or not _JOB_NAME.fullmatch(name):
            raise ValueError(entry.strip())
        if name in schedules:
            raise UsageError(f"SIGMA_SCHEDULE must name each job once, got {name} twice; drop one")
        try:
            schedules[name] = Schedule.parse(schedule)
        except UsageError as error:
            raise UsageError(f"SIGMA_SCHEDULE for {name}: {error}") from error
    return tuple(schedules.items())


_DATABASE_URL = Form("postgresql://user:password@host:5432/database", _parse_database_url)
_FOLDER = Form("a folder", Path)
_FOLDERS = Form(f"folders, several separated by {os.pathsep!r}", _parse_folders)
_SCHEDULES = Form(
    "JOB=SCHEDULE, several separated by semicolons, where SCHEDULE is " + ALLOWED_FORMS,
    _parse_schedules,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process can be configured with."""

    home: Path = setting(
        "SIGMA_HOME",
        _FOLDER,
        "State of the embedded mode: database, images, checkpoints and logs.",
        default=Path(".sigma"),
    )
    database_url: str | None = setting(
        "SIGMA_DATABASE_URL",
        _DATABASE_URL,
        "A PostgreSQL server of your own.",
        default=None,
        unset="the embedded server",
        secret=True,
    )
    kafka: KafkaSettings | None = None
    """None means the event log in PostgreSQL."""
    s3: S3Settings | None = None
    """None means images in a folder of `home`."""
    source_roots: tuple[Path, ...] | None = setting(
        "SIGMA_SOURCE_ROOTS",
        _FOLDERS,
        "Folders that `file://` arrivals may name.",
        default=None,
        unset="any folder in the embedded mode, none with Kafka",
    )
    https_hosts: tuple[str, ...] = setting(
        "SIGMA_HTTPS_HOSTS",
        separated(_HOST),
        "Hosts that `https://` arrivals may name. Only their public addresses are read from.",
        default=(),
        unset="none",
    )
    engine: str = setting(
        "SIGMA_ENGINE", choice(*ENGINES), "Engine that decodes queries.", default="torch"
    )
    vllm_memory_share: float = setting(
        "SIGMA_VLLM_MEMORY_SHARE",
        number(0.05, 0.95),
        "Share of a GPU's memory that the vllm engine takes for its weights, keys and values. The "
        "torch decoder, the encoder and other processes need the rest.",
        default=0.4,
    )
    metrics_port: int | None = setting(
        "SIGMA_METRICS_PORT",
        whole(1, 65535),
        "Port of a worker's Prometheus metrics, which needs no key.",
        default=None,
        unset="no port; the query worker has `/metrics` on its HTTP port too",
    )
    # Loopback: the metrics tell much and need no key, so opening them must be a decision.
    metrics_host: str = setting(
        "SIGMA_METRICS_HOST",
        any_text(),
        "Address on which the metrics port listens.",
        default="127.0.0.1",
    )
    # Loopback: beyond it keys are required, so opening the port must be a decision.
    http_host: str = setting(
        "SIGMA_HTTP_HOST",
        any_text(),
        "Address on which the query worker listens. Beyond loopback SIGMA_API_KEYS is required.",
        default="127.0.0.1",
    )
    http_port: int = setting(
        "SIGMA_HTTP_PORT",
        whole(0, 65535),
        "Port on which the query worker listens; 0 takes any free one.",
        default=8631,
    )
    http_connections: int = setting(
        "SIGMA_HTTP_CONNECTIONS",
        whole(1, 65536),
        "Most connections that the query worker has at once; fewer where the system allows fewer "
        "open files.",
        default=4096,
    )
    query_workers: int = setting(
        "SIGMA_QUERY_WORKERS",
        whole(1, 16),
        "Query workers that `sigma up` starts behind one port; each holds the index in memory.",
        default=1,
    )
    query_backlog: int | None = setting(
        "SIGMA_QUERY_BACKLOG",
        whole(1, 4096),
        "Queries that may wait to be decoded; further ones are told to try again later.",
        default=None,
        unset="as many as can be answered within a second",
    )
    access: AccessSettings = AccessSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    shadow_share: float = setting(
        "SIGMA_SHADOW_SHARE",
        number(0, 1),
        "Share of the live queries that a shadow generation answers too, to be compared.",
        default=0.1,
    )
    keep_fallback: bool = setting(
        "SIGMA_KEEP_FALLBACK",
        yes_no(),
        "Whether query workers keep the fallback generation in memory, so that a rollback is "
        "instant. It costs its weights, trie and embeddings once more.",
        default=True,
    )
    auto_promote: bool = setting(
        "SIGMA_AUTO_PROMOTE",
        yes_no(),
        "Whether a shadow generation that passes the gate goes live by itself.",
        default=False,
    )
    max_image_bytes: int = setting(
        "SIGMA_MAX_IMAGE_BYTES",
        whole(1, _GIBIBYTE),
        "Most bytes of one image file.",
        default=20 * MEBIBYTE,
    )
    max_image_pixels: int = setting(
        "SIGMA_MAX_IMAGE_PIXELS",
        whole(1, 1 << 30),
        "Most pixels of one image. The default takes a phone's 50 and 64 megapixels.",
        default=64_500_000,
    )
    decode_memory_bytes: int = setting(
        "SIGMA_DECODE_MEMORY_BYTES",
        whole(16 * MEBIBYTE, 64 * _GIBIBYTE),
        "Address space, in bytes, of the decoding process beyond what it starts with.",
        default=256 * MEBIBYTE,
    )
    picture_px: int | None = setting(
        "SIGMA_PICTURE_PX",
        whole(56, 4096),
        "Pixels to which the longer side of an arriving picture is shrunk. Pictures that are "
        "stored already stay as they are.",
        default=None,
        unset="448, or four thirds of the side that a model or encoder in use reads where that is "
        "more, up to 2048",
    )
    training_images: int = setting(
        "SIGMA_TRAINING_IMAGES",
        whole(100, 1 << 30),
        "Most images of the store that one training learns from; of more, a sample.",
        default=50_000,
    )
    training_processes: int = setting(
        "SIGMA_TRAINING_PROCESSES",
        whole(1, 1024),
        "Processes of a training that the scheduler starts: one for each GPU.",
        default=1,
    )
    encoder: str | None = setting(
        "SIGMA_ENCODER",
        any_text(),
        "Pretrained encoder of a training in full: efficientnet-minilm, a hub name with its "
        "revision, or a folder; "
        "`sigma train --encoder` goes before.",
        default=None,
        unset="that of the profile",
    )
    retrain: str = setting(
        "SIGMA_RETRAIN",
        choice(*RETRAIN_MODES),
        "What the scheduled retraining does: go on from the live generation, or train in full.",
        default="refresh",
    )
    start_s: int = setting(
        "SIGMA_START_SECONDS",
        whole(1, 86_400),
        "Seconds without progress after which `sigma up` gives up on its processes; a worker that "
        "loads a model says how far it is, so large ones need no more.",
        default=180,
    )
    log_level: str = setting(
        "SIGMA_LOG_LEVEL", choice(*LOG_LEVELS), "Lowest level that is logged.", default="info"
    )
    threads: int | None = setting(
        "SIGMA_THREADS",
        whole(1, 1024),
        "CPU threads of one process.",
        default=None,
        unset="1",
    )
    schedules: tuple[tuple[str, Schedule], ...] = setting(
        "SIGMA_SCHEDULE",
        _SCHEDULES,
        "When jobs run, where not by their own schedules.",
        default=(),
        unset="each job's own schedule",
    )
    """(job, schedule) of each job that does not run by its own schedule."""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__slots__}
        shown["database_url"] = _without_credentials(self.database_url)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def embedded(self) -> bool:
        """Whether the database is the one that comes with the installation."""
        return self.database_url is None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the variables; `UsageError` names the variable, what it got and what is allowed."""
        return cls(
            kafka=KafkaSettings.from_environment(environ),
            s3=S3Settings.from_environment(environ),
            access=AccessSettings(**read_variables(AccessSettings, environ)),
            retrieval=RetrievalSettings(**read_variables(RetrievalSettings, environ)),
            **read_variables(cls, environ),
        )


def documented_settings() -> Iterator[DocumentedSetting]:
    """Yield (variable, default, description) of every setting, ordered as in the documentation."""
    for settings in (Settings, AccessSettings, RetrievalSettings, KafkaSettings, S3Settings):
        yield from document(settings)


def _without_credentials(url: str | None) -> str | None:
    """Drop user, password and query of a database address: both can hold a password."""
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
