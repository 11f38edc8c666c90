"""Services: where database, event log, image store and sources are, and how to reach them.

Built once, from settings, by whoever starts a process. Building it opens nothing.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.settings import Settings
from stream.images.decode_pool import DecodeLimits
from stream.images.https import HttpsReader
from stream.images.sources import Sources
from stream.images.store import ImageStore, LocalImageStore
from stream.log.event_log import EventLog
from stream.log.postgres import PostgresLog
from workers.repository.connection import WORK_LIMITS, Connection, SessionLimits, connect

if TYPE_CHECKING:
    from stream.images.s3 import S3ImageStore

# Seconds that one `https://` source may take: the other arrivals of its batch wait for it.
_HTTPS_S = 4.0


@dataclass(frozen=True)
class Services:
    """The services of one installation."""

    settings: Settings
    database_url: str

    @property
    def home(self) -> Path:
        """The folder of this installation's state."""
        return self.settings.home.absolute()

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, one folder per generation."""
        return self.home / "generations"

    @property
    def cache(self) -> Path:
        """The folder of files that may be lost."""
        return self.home / "cache"

    @property
    def limits(self) -> DecodeLimits:
        """What decoding one image may cost."""
        return DecodeLimits(
            self.settings.max_image_bytes,
            self.settings.max_image_pixels,
            self.settings.decode_memory_bytes,
        )

    def connect(self, name: str, limits: SessionLimits = WORK_LIMITS) -> Connection:
        """Open a connection to the database; `name` shows in pg_stat_activity."""
        return connect(self.database_url, name=f"sigma {name}", limits=limits)

    def open_log(self) -> EventLog:
        """Open the event log: Kafka where brokers are configured, Postgres otherwise."""
        if self.settings.kafka is not None:
            # Imported here, as S3's client below: the two are a third of what a command takes to
            # start, and most installations have neither.
            from stream.log.kafka import KafkaLog

            return KafkaLog(self.settings.kafka, self.database_url)
        return PostgresLog(self.database_url)

    # Cached, so that each process has one pool of connections to S3 and to each host.

    @cached_property
    def s3(self) -> "S3ImageStore | None":
        """The S3 store, if one is configured."""
        if self.settings.s3 is None:
            return None
        from stream.images.s3 import S3ImageStore

        return S3ImageStore(self.settings.s3)

    @cached_property
    def store(self) -> ImageStore:
        """The image store: S3 where it is configured, a folder of `home` otherwise."""
        return self.s3 or LocalImageStore(self.home / "images")

    @cached_property
    def sources(self) -> Sources:
        """Where the images of arrivals may be read from."""
        settings = self.settings
        roots = settings.source_roots
        # With Kafka, producers run on other machines, so `file://` names none of our folders.
        if roots is None and settings.kafka is not None:
            roots = ()
        https = None
        if settings.https_hosts:
            https = HttpsReader(
                settings.https_hosts, timeout_s=_HTTPS_S, connect_timeout_s=_HTTPS_S / 2
            )
        buckets: tuple[str, ...] = ()
        if settings.s3 is not None:
            buckets = (settings.s3.bucket, *settings.s3.source_buckets)
        read_s3 = None if self.s3 is None else self.s3.read
        # What clients upload lies in the store. With S3 it has an address of its bucket.
        read_store = self.store.get if self.s3 is None else None
        return Sources(settings.max_image_bytes, roots, read_s3, https, buckets, read_store)
