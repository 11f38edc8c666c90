"""The services that every process uses: database, event log, image store. Built once, from settings, by whoever starts."""

from dataclasses import dataclass
from pathlib import Path

from schemas.settings import Settings
from stream.decoding import DecodeLimits
from stream.images import ImageStore, LocalImageStore
from stream.log import EventLog
from stream.postgres_log import PostgresLog
from workers.repository.connection import Connection, connect


@dataclass(frozen=True, slots=True)
class Services:
    """Where things are. `home` holds the embedded mode's state."""

    settings: Settings
    database_url: str

    @property
    def home(self) -> Path:
        """The folder of this installation's state."""
        return self.settings.home.absolute()

    @property
    def generations(self) -> Path:
        """The folder of checkpoints, one folder per generation."""
        return self.home / "generations"

    @property
    def cache(self) -> Path:
        """The folder of files that may be lost."""
        return self.home / "cache"

    @property
    def limits(self) -> DecodeLimits:
        """What one image may cost."""
        settings = self.settings
        return DecodeLimits(settings.max_image_bytes, settings.max_image_pixels, settings.decode_memory_bytes)

    def connect(self, name: str) -> Connection:
        """A connection to the database; `name` shows in pg_stat_activity."""
        return connect(self.database_url, name=f"sigma {name}")

    def log(self) -> EventLog:
        """The event log."""
        return PostgresLog(self.database_url)

    def store(self) -> ImageStore:
        """The image store."""
        return LocalImageStore(self.home / "images")
