"""The installed wheel: a distribution of this environment, packed as the wheel it came from.

So an export needs neither a checkout nor a registry.
"""

import base64
import hashlib
import zipfile
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from schemas.errors import UsageError

# Zip files have no earlier time; with one time the same installation gives the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)

# Written by the installer, not part of the wheel.
_OF_INSTALLER = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "RECORD.jws"})


def pack(name: str, folder: Path) -> Path:
    """Write the wheel of an installed distribution into a folder.

    `UsageError` when it is not installed, is installed from a checkout in editable mode, or differs
    from what was installed.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise UsageError(f"{name} must be installed to be packed; give --wheels FOLDER") from error
    files = [file for file in found.files or () if _is_of_wheel(file)]
    if not any(file.suffix == ".py" for file in files):
        raise UsageError(
            f"{name} is installed from a checkout, got no files to pack; run make wheels there and"
            " give --wheels dist"
        )
    target = folder / _file_name(found)
    records = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(files, key=str):
            data = Path(str(file.locate())).read_bytes()
            digest = _digest(data)
            if file.hash is not None and (file.hash.mode, file.hash.value) != ("sha256", digest):
                raise UsageError(
                    f"{file.locate()} differs from what was installed; install {name} again"
                )
            _add(wheel, str(file), data)
            records.append(f"{file},sha256={digest},{len(data)}")
        record = _record_of(files)
        _add(wheel, record, "\n".join([*records, f"{record},,", ""]).encode())
    return target


def _is_of_wheel(file: PackagePath) -> bool:
    # Console scripts lie outside, compiled modules and the installer's notes are made on the spot.
    return (
        ".." not in file.parts
        and "__pycache__" not in file.parts
        and file.parts[0] != "bin"
        and not (file.parts[0].endswith(".dist-info") and file.name in _OF_INSTALLER)
    )


def _record_of(files: Sequence[PackagePath]) -> str:
    """The path of RECORD in a wheel with these files."""
    (metadata,) = (file for file in files if file.name == "METADATA")
    return f"{metadata.parent}/RECORD"


def _file_name(found: Distribution) -> str:
    """The name of the wheel's file: distribution, version, and the tag that it was built for."""
    tags = [
        line.removeprefix("Tag:").strip()
        for line in (found.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag:")
    ]
    name = found.metadata["Name"].replace("-", "_")
    return f"{name}-{found.version}-{tags[0]}.whl"


def _digest(data: bytes) -> str:
    """SHA-256 as RECORD has it: base64 for addresses, without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _add(wheel: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    # A plain file that everybody may read.
    entry.external_attr = 0o100644 << 16
    wheel.writestr(entry, data)
