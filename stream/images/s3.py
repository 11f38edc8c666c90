"""The image store in S3: the same content addresses as the local folder, for any S3 server."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from schemas.errors import RejectInputError, RetryLaterError
from schemas.service_settings import S3Settings
from stream.images.store import checked_content, content_name, parse_store_uri, store_uri

# Prefix of the images that the index works with.
_NORMALIZED = "normalized"
# Prefix of images as they arrived.
_ORIGINALS = "arrived"

# Seconds without a byte. The client's own five minutes would stall a worker.
_CONNECT_TIMEOUT_S = 2.0
_READ_TIMEOUT_S = 10.0
# Time after which bytes that are put once more are sent once more, and so dated anew. Well below
# the grace of the job that removes unused pictures.
_DATED_ANEW = timedelta(minutes=10)
# Connections that are kept open: a few more than a worker has threads that read.
_CONNECTIONS = 8

# Error codes that trying again does not change.
_NO_SUCH_OBJECT = ("NoSuchKey", "NoSuchObject")
_NOT_READABLE = (
    *_NO_SUCH_OBJECT,
    "NoSuchBucket",
    "AccessDenied",
    "InvalidObjectName",
    "InvalidBucketName",
    "InvalidArgument",
)


class S3ImageStore:
    """`ImageStore` in one bucket. Safe for several threads.

    Links are signed for the time in the settings; the client's own default of seven days would
    keep pictures open long after they were deleted from the index.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        self._process = os.getpid()
        self._connected = _connect(settings)

    @property
    def _client(self) -> Minio:
        """The client of this process: a fork must not read on the connections of its parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._connected = _connect(self._settings)
        return self._connected

    def create_bucket(self) -> None:
        """Create the bucket if it is missing."""
        with _transient_errors("create the bucket"):
            if not self._client.bucket_exists(bucket_name=self._bucket):
                self._client.make_bucket(bucket_name=self._bucket)

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """See `ImageStore`. An object is whole or not there."""
        name = content_name(data, suffix)
        self._put_once(f"{_NORMALIZED}/{name}", data)
        return store_uri(name)

    def put_original(self, data: bytes, suffix: str) -> str:
        """Store an image as it arrived; returns its `s3://` URI, which an arrival may name."""
        key = f"{_ORIGINALS}/{content_name(data, suffix)}"
        self._put_once(key, data)
        return f"s3://{self._bucket}/{key}"

    def get(self, uri: str) -> bytes:
        """See `ImageStore`. The bytes are checked against the hash in their name."""
        name = parse_store_uri(uri)
        return checked_content(uri, self.read(self._bucket, f"{_NORMALIZED}/{name}", None))

    def exists(self, uri: str) -> bool:
        """See `ImageStore`."""
        with _transient_errors("look for an image"):
            return self._has(f"{_NORMALIZED}/{parse_store_uri(uri)}")

    def link(self, uri: str) -> str:
        """See `ImageStore`. Signed here, without a request; valid for `SIGMA_S3_LINK_SECONDS`."""
        key = f"{_NORMALIZED}/{parse_store_uri(uri)}"
        lifetime = timedelta(seconds=self._settings.link_lifetime_s)
        with _transient_errors("sign a link"):
            link: str = self._client.presigned_get_object(
                bucket_name=self._bucket, object_name=key, expires=lifetime
            )
            return link

    def remove(self, uri: str, unused_since: datetime) -> bool:
        """See `ImageStore`. Takes addresses of `put_original` too, and leaves others alone."""
        key = self._key_of(uri)
        if key is None:
            return True
        with _transient_errors("remove an image"):
            stored_at = self._stored_at(key)
            if stored_at is None:
                return True
            if stored_at > unused_since:
                return False
            self._client.remove_object(bucket_name=self._bucket, object_name=key)
            return True

    def _key_of(self, uri: str) -> str | None:
        """The key of an address in this bucket that this store gave; None for another one."""
        originals = f"s3://{self._bucket}/{_ORIGINALS}/"
        if uri.startswith("s3:"):
            return uri.removeprefix(f"s3://{self._bucket}/") if uri.startswith(originals) else None
        return f"{_NORMALIZED}/{parse_store_uri(uri)}"

    def read(self, bucket: str, key: str, cap_bytes: int | None) -> bytes:
        """Return the bytes of an object of any bucket that the keys open, at most `cap_bytes`.

        `RejectInputError` codes: unreadable, too-many-bytes.
        """
        with _transient_errors(f"read s3://{bucket}/{key}"):
            try:
                response = self._client.get_object(bucket_name=bucket, object_name=key)
            except S3Error as error:
                raise _read_error(error, bucket, key) from error
            except ValueError as error:
                raise RejectInputError(
                    "unreadable",
                    f"an S3 URI must name an object, got s3://{bucket}/{key} ({error}); "
                    "correct the URI",
                ) from error
            with _released(response):
                # One byte more than allowed: what the server declares is not trusted.
                data: bytes = response.read(cap_bytes + 1 if cap_bytes is not None else None)
        if cap_bytes is not None and len(data) > cap_bytes:
            raise RejectInputError(
                "too-many-bytes",
                f"s3://{bucket}/{key} must have at most {cap_bytes:,} bytes "
                f"(SIGMA_MAX_IMAGE_BYTES={cap_bytes}), got more; shrink it or raise it",
            )
        return data

    def _put_once(self, key: str, data: bytes) -> None:
        """Store bytes unless they are there: the key is their hash."""
        with _transient_errors("store an image"):
            stored = self._stat(key)
            # Again after a while, which dates them anew: old ones that nobody uses are removed. And
            # when the object is another one: whoever stores it anew may do so because of that.
            if (
                stored is None
                or datetime.now(UTC) - stored.last_modified > _DATED_ANEW
                or stored.etag.strip('"') != hashlib.md5(data, usedforsecurity=False).hexdigest()
            ):
                self._send(key, data)

    def _has(self, key: str) -> bool:
        return self._stored_at(key) is not None

    def _stored_at(self, key: str) -> datetime | None:
        """When an object was stored last; None without one."""
        stored = self._stat(key)
        stored_at: datetime | None = None if stored is None else stored.last_modified
        return stored_at

    def _stat(self, key: str) -> Any:
        """What the store says of an object; None without one."""
        try:
            return self._client.stat_object(bucket_name=self._bucket, object_name=key)
        except S3Error as error:
            if error.code in _NO_SUCH_OBJECT:
                return None
            raise

    def _send(self, key: str, data: bytes) -> None:
        self._client.put_object(
            bucket_name=self._bucket,
            object_name=key,
            data=io.BytesIO(data),
            length=len(data),
            metadata={"sha256": hashlib.sha256(data).hexdigest()},
        )


def _connect(settings: S3Settings) -> Minio:
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
        # No redirects: they would carry the signed request to another host.
        retries=urllib3.Retry(total=1, backoff_factor=0.1, redirect=0),
        maxsize=_CONNECTIONS,
    )
    return Minio(
        settings.endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        secure=settings.secure,
        region=settings.region,
        http_client=pool,
    )


def _read_error(error: S3Error, bucket: str, key: str) -> Exception:
    if error.code in _NOT_READABLE:
        return RejectInputError(
            "unreadable",
            f"s3://{bucket}/{key} cannot be read ({error.code}); "
            "check that it exists and may be read",
        )
    return error


@contextmanager
def _released(response: Any) -> Iterator[None]:
    """Give the connection of a response back to the pool."""
    try:
        yield
    finally:
        response.close()
        response.release_conn()


@contextmanager
def _transient_errors(action: str) -> Iterator[None]:
    """Turn the errors of a store that is unavailable into `RetryLaterError`."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
        # Only the code or the type: the client's own messages may hold a key or a signed URL.
        problem = error.code if isinstance(error, S3Error) else type(error).__name__
        raise RetryLaterError(
            f"the S3 store could not {action} ({problem}); "
            "check SIGMA_S3_ENDPOINT and its keys, then try again"
        ) from error
