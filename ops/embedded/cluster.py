"""The cluster: the folder in which the embedded PostgreSQL keeps its data, and who may sign in.

Only the account that owns it may, which the kernel vouches for: PostgreSQL asks it who is at the
other end of the socket (peer authentication). There is no password that could leak.
"""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ops.embedded.process_identity import ProcessIdentity
from schemas.errors import RefuseToStartError, UsageError

# The database user that everything connects as.
ROLE = "postgres"

# The account that PostgreSQL runs as where this program runs as root, which PostgreSQL refuses.
SERVER_ACCOUNT = "pgserver"

_STOP_TIMEOUT_S = 15.0

_INITDB_TIMEOUT_S = 120.0

_HBA = f"""\
# Written by sigma at every start. https://www.postgresql.org/docs/current/auth-peer.html
local all {ROLE} peer map=sigma
"""


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the operating system."""

    name: str
    uid: int
    gid: int

    @property
    def is_own(self) -> bool:
        """Whether this process runs as it."""
        return self.uid == os.geteuid()


def server_account(data: Path) -> Account:
    """The account that PostgreSQL runs as: this one, or as root the one that owns the data.

    `UsageError` when the data belongs to somebody else.
    """
    own = os.geteuid()
    owner = data.stat().st_uid if data.exists() else own
    if own == 0:
        return _account(owner) if owner else _created_account()
    if owner != own:
        raise UsageError(
            f"the home {data.parent} belongs to {_name(owner)}, and this is {_name(own)};"
            " work as its owner, copy it with cp -r, or name another one with SIGMA_HOME"
        )
    return _account(own)


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user number {uid}"


def _account(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as error:
        raise RefuseToStartError(
            f"the embedded PostgreSQL needs an account with a name, got user number {uid}; add it"
            " to /etc/passwd, or set SIGMA_DATABASE_URL"
        ) from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _created_account() -> Account:
    try:
        entry = pwd.getpwnam(SERVER_ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--shell", "/bin/false", SERVER_ACCOUNT]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RefuseToStartError(
                f"PostgreSQL refuses to run as root, and the account {SERVER_ACCOUNT} for it cannot"
                f" be added ({error}); work as another user, or set SIGMA_DATABASE_URL"
            ) from error
        entry = pwd.getpwnam(SERVER_ACCOUNT)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def prepare_cluster(data: Path, programs: Path, account: Account) -> None:
    """Create the cluster if there is none, and write who may sign in; nothing runs in it.

    A server that an older version or a killed keeper has left is stopped: it might let everybody
    in.
    """
    if not account.is_own:
        _let_through([data.parent, programs])
    if not (data / "PG_VERSION").exists():
        _create(data, programs, account)
    _check_version(data, programs)
    if not account.is_own:
        _give(data, account)
    data.chmod(0o700)
    _stop_leftover(data)
    names = {account.name, pwd.getpwuid(os.geteuid()).pw_name}
    mapping = "".join(f'sigma "{name}" {ROLE}\n' for name in sorted(names))
    _replace(data / "pg_hba.conf", _HBA, account)
    _replace(data / "pg_ident.conf", mapping, account)


def _create(data: Path, programs: Path, account: Account) -> None:
    if data.exists() and any(data.iterdir()):
        raise RefuseToStartError(
            f"{data} must hold a PostgreSQL cluster or nothing, got other files; move them away"
        )
    # Aside, then renamed: a process killed in the middle leaves no half of a cluster.
    aside = data.with_name(f"{data.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    command = [
        str(programs / "initdb"),
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        # Without, a damaged page of a table is read as if it were whole.
        "--data-checksums",
        # A terminal's locale may have another encoding, with which UTF-8 would be refused.
        "--no-locale",
        "--username",
        ROLE,
        "--pgdata",
        str(aside),
    ]
    if not account.is_own:
        os.chown(aside, account.uid, account.gid)
    try:
        _run_as(account, command)
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        said = getattr(error, "stderr", None) or str(error)
        raise RefuseToStartError(
            f"the embedded PostgreSQL cannot be created in {data}: {_last_line(said)}; mend that,"
            " or set SIGMA_DATABASE_URL"
        ) from error
    aside.replace(data)


def _run_as(account: Account, command: list[str]) -> None:
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        cwd="/",
        timeout=_INITDB_TIMEOUT_S,
        user=None if account.is_own else account.uid,
        group=None if account.is_own else account.gid,
        extra_groups=None if account.is_own else [],
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it left no message"


def _check_version(data: Path, programs: Path) -> None:
    version = (data / "PG_VERSION").read_text(encoding="utf-8").strip()
    if programs.parent.name.removeprefix("pginstall") not in ("", version):
        raise RefuseToStartError(
            f"{data} was made by PostgreSQL {version}, this program has another one; dump it with"
            " that version and restore it into a new home"
        )


def _give(data: Path, account: Account) -> None:
    """Make the account own all of it: a copy by `cp -r` as root belongs to root."""
    if data.stat().st_uid == account.uid:
        return
    for folder, folders, files in os.walk(data):
        for name in (".", *folders, *files):
            os.chown(Path(folder) / name, account.uid, account.gid, follow_symlinks=False)


def _let_through(places: Iterable[Path]) -> None:
    """Let the server's account pass the folders above its data and its programs, not list them."""
    for place in places:
        for folder in (place, *place.parents):
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o011)


def _stop_leftover(data: Path) -> None:
    """Stop a server that runs in the folder, and take away what a dead one has left.

    PostgreSQL refuses to start when the number in its file is that of any process that it may
    signal; in a container that starts anew, or in a copied home, that is somebody else's.
    """
    file = data / "postmaster.pid"
    try:
        pid = int(file.read_text(encoding="utf-8").splitlines()[0])
    except (OSError, ValueError, IndexError):
        file.unlink(missing_ok=True)
        return
    identity = ProcessIdentity.of(pid)
    if identity is not None and _works_in(pid, data):
        identity.send(signal.SIGINT)
        if not identity.wait(_STOP_TIMEOUT_S):
            identity.send(signal.SIGQUIT)
            identity.wait(_STOP_TIMEOUT_S)
    file.unlink(missing_ok=True)


def _works_in(pid: int, data: Path) -> bool:
    """Whether a process is a PostgreSQL of this folder: its working folder is the cluster."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve().samefile(data)
    except OSError:
        pass
    with suppress(OSError, subprocess.SubprocessError):
        # Without /proc: the command line names the folder.
        listed = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], check=True, capture_output=True, text=True
        )
        return "postgres" in listed.stdout and str(data) in listed.stdout
    return False


def _replace(file: Path, text: str, account: Account) -> None:
    try:
        if file.read_text(encoding="utf-8") == text:
            return
    except OSError:
        pass
    aside = file.with_name(f"{file.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.chmod(0o600)
    if not account.is_own:
        os.chown(aside, account.uid, account.gid)
    aside.replace(file)
