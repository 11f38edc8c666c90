"""The checksum of an image file: what tells a changed file from the one that is stored."""

import hashlib
import os
import stat

# Bytes. Larger files are no images, and would take seconds to hash.
HASHED_BYTES = 1 << 30


def file_checksum(path: str) -> str | None:
    """SHA-256 of a file; None when it cannot be read or be an image, which the intake will tell."""
    try:
        status = os.stat(path)
        # Not opened: a named pipe would wait for a writer.
        if not stat.S_ISREG(status.st_mode) or status.st_size > HASHED_BYTES:
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
