"""The supervisor's record: what it writes about itself and its workers, for everybody else.

The lock says that a supervisor runs, the record says which one and what happened to its workers.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from ops.embedded.home import home_mark
from ops.embedded.process_identity import ProcessIdentity
from schemas.records import JsonObject


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker of a supervisor."""

    role: str
    process: ProcessIdentity | None
    """None while it waits to be started again."""
    deaths: tuple[float, ...] = ()
    """When it died lately, by `time.monotonic`, which all processes of a machine share."""
    last_error: str = ""
    """What it said last before it died."""
    log: str = ""


@dataclass(frozen=True, slots=True)
class SupervisorRecord:
    """A supervisor: its process, where its query worker listens, and its workers."""

    process: ProcessIdentity
    host: str
    port: int
    home: str
    """The mark of the home that it is of; a copied home has another one."""
    workers: tuple[WorkerRecord, ...] = field(default=())

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Address of the query worker, for this machine."""
        # Of all addresses, one that every client can name.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def write(self, home: Path) -> None:
        """Write the home's record. The old one stays whole until the new one is complete."""
        file = record_file(home)
        aside = file.with_name(f"{file.name}.new")
        document = asdict(self)
        signed = document | {"digest": _digest(document)}
        aside.write_text(json.dumps(signed), encoding="utf-8")
        aside.replace(file)

    @classmethod
    def of_home(cls, home: Path) -> Self | None:
        """Read the home's record; None when there is none that is whole and about this home.

        A damaged port would let clients ask whoever listens there.
        """
        try:
            document = json.loads(record_file(home).read_text(encoding="utf-8"))
            # Older versions wrote none.
            if document.pop("digest", None) not in (None, _digest(document)):
                return None
            record = cls._from_json(document)
            return record if record.home == home_mark(home) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @classmethod
    def _from_json(cls, document: JsonObject) -> Self:
        workers = []
        for entry in document["workers"]:
            process = entry["process"]
            identity = None if process is None else ProcessIdentity(**process)
            workers.append(
                WorkerRecord(**entry | {"process": identity, "deaths": tuple(entry["deaths"])})
            )
        process = ProcessIdentity(**document["process"])
        return cls(**document | {"process": process, "workers": tuple(workers)})

    def with_workers(self, workers: tuple[WorkerRecord, ...]) -> Self:
        """The same with other workers."""
        return replace(self, workers=workers)


def _digest(document: JsonObject) -> str:
    """A digest of a record, the same after it was written and read."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def record_file(home: Path) -> Path:
    """Where a home's supervisor writes about itself."""
    return home / "run" / "supervisor.json"


def supervisor_lock(home: Path) -> Path:
    """The lock that a home's supervisor holds as long as it lives."""
    return home / "run" / "supervisor.lock"
