"""The socket folder: where clients of one machine reach the embedded PostgreSQL.

Whoever can open the socket can try to sign in, so the folder is always private: owned by the
account that PostgreSQL runs as, with no rights for others.
"""

import json
import os
import re
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ops.embedded.home import home_mark

# PostgreSQL's own name for the socket of its default port.
SOCKET_NAME = ".s.PGSQL.5432"

# Bytes that a socket's address has on every system: 104 with the zero byte (macOS; Linux: 108).
_LONGEST_ADDRESS = 103

# Letters that neither a list of folders nor an address gives a meaning to.
_SAFE = re.compile(r"[A-Za-z0-9_./-]+")


def socket_folder(run: Path, uid: int, gid: int) -> Path:
    """Return the private folder of a home's socket, which exists afterwards; `run` is in the home.

    It is in the home where the path is short enough, otherwise in the temporary folder, and then
    recorded in the home. `uid` and `gid` are the account that PostgreSQL runs as.
    """
    own = run / "socket"
    if _is_usable(own) and _make(own):
        return _made_private(own, uid, gid)
    record = run / "socket-folder.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        document = json.loads(record.read_text(encoding="utf-8"))
        recorded = Path(document["folder"])
        # The copy of a home must not use the folder of the original.
        if document["home"] == home_mark(run.parent) and _is_private(recorded, uid):
            return recorded
    # Its name is random and it is made with no rights for others, so nobody can be there first.
    folder = Path(tempfile.mkdtemp(prefix="sigma-"))
    document = {"folder": str(folder), "home": home_mark(run.parent)}
    record.write_text(json.dumps(document), encoding="utf-8")
    return _made_private(folder, uid, gid)


def clear_sockets(folder: Path) -> None:
    """Take away what a dead server has left: a copy of its lock would name one that is alive."""
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (folder / name).unlink(missing_ok=True)


def _is_usable(folder: Path) -> bool:
    address = str(folder / SOCKET_NAME)
    return len(os.fsencode(address)) <= _LONGEST_ADDRESS and bool(_SAFE.fullmatch(address))


def _make(folder: Path) -> bool:
    """Create the folder; whether sockets can be made in it, which some network disks cannot."""
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(mode=0o700, exist_ok=True)
    trial = folder / "trial"
    try:
        trial.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(trial))
        trial.unlink()
    except OSError:
        return False
    return True


def _is_private(folder: Path, uid: int) -> bool:
    if not _is_usable(folder):
        return False
    # Not through a link: it could be turned to another folder.
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == uid
        and not stat.S_IMODE(status.st_mode) & 0o077
    )


def _made_private(folder: Path, uid: int, gid: int) -> Path:
    status = folder.stat()
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    if status.st_uid != uid:
        os.chown(folder, uid, gid)
    return folder
