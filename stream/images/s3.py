"""The image store in S3: the same content addresses as the local folder, for any server that speaks S3."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from schemas.errors import RejectInputError, RetryLaterError
from schemas.settings import S3Settings
from stream.images.store import content_name, parse_uri

_CONNECT_S, _READ_S = 2.0, 10.0
_GONE = {
    "NoSuchKey",
    "NoSuchBucket",
    "NoSuchObject",
    "AccessDenied",
    "InvalidObjectName",
    "InvalidBucketName",
    "InvalidArgument",
}
_OURS = "store"


class S3ImageStore:
    """`ImageStore` in one bucket, objects under `normalized/`. Safe for several threads.

    The client's own patience (five minutes, and links of seven days) would stall a worker and leak pictures: both are short here.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
            retries=urllib3.Retry(total=1, backoff_factor=0.1, redirect=0),
            maxsize=8,
        )
        self._client = Minio(
            settings.endpoint,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            secure=settings.secure,
            region=settings.region,
            http_client=pool,
        )

    def create_bucket(self) -> None:
        """Creates the bucket if it is missing (`sigma init`)."""
        with _away("create the bucket"):
            if not self._client.bucket_exists(bucket_name=self._settings.bucket):
                self._client.make_bucket(bucket_name=self._settings.bucket)

    def put(self, data: bytes, suffix: str = ".png") -> str:
        """See `ImageStore`. An object is whole or not there; the same bytes are not sent twice."""
        name = content_name(data, suffix)
        with _away("store an image"):
            if not self._there(self._settings.bucket, f"normalized/{name}"):
                self._send(f"normalized/{name}", data)
        return f"{_OURS}:///{name}"

    def put_original(self, data: bytes, suffix: str) -> str:
        """Stores an original under `arrived/` and returns its `s3://` URI, which an arrival may name."""
        name = f"arrived/{content_name(data, suffix)}"
        with _away("store an image"):
            if not self._there(self._settings.bucket, name):
                self._send(name, data)
        return f"s3://{self._settings.bucket}/{name}"

    def get(self, uri: str) -> bytes:
        """See `ImageStore`. The bytes are checked against the hash in their name."""
        name = parse_uri(uri)
        data = self.read(self._settings.bucket, f"normalized/{name}", None)
        if content_name(data, name[name.index(".") :]) != name:
            raise RejectInputError(
                "damaged-store",
                f"the stored image {uri} is not what its name says; ingest the image again",
            )
        return data

    def exists(self, uri: str) -> bool:
        """See `ImageStore`."""
        with _away("look for an image"):
            return self._there(self._settings.bucket, f"normalized/{parse_uri(uri)}")

    def link(self, uri: str) -> str:
        """See `ImageStore`. Made from the key alone, without a request; good for `SIGMA_S3_LINK_SECONDS`."""
        name = f"normalized/{parse_uri(uri)}"
        with _away("sign a link"):
            link: str = self._client.presigned_get_object(
                bucket_name=self._settings.bucket,
                object_name=name,
                expires=timedelta(seconds=self._settings.link_lifetime_s),
            )
            return link

    def read(self, bucket: str, key: str, cap_bytes: int | None) -> bytes:
        """The bytes of an object, at most `cap_bytes`; `RejectInputError` when there is none, it may not be read, or is larger."""
        with _away(f"read s3://{bucket}/{key}"):
            try:
                response = self._client.get_object(bucket_name=bucket, object_name=key)
            except S3Error as error:
                raise _refused(error, bucket, key) from error
            except ValueError as error:
                raise RejectInputError(
                    "unreadable",
                    f"s3://{bucket}/{key} is no object name ({error}); correct the URI",
                ) from error
            with _released(response):
                data: bytes = response.read(cap_bytes + 1 if cap_bytes is not None else None)
        if cap_bytes is not None and len(data) > cap_bytes:
            raise RejectInputError(
                "too-many-bytes",
                f"s3://{bucket}/{key} has more than the allowed {cap_bytes:,} bytes; shrink it or raise SIGMA_MAX_IMAGE_BYTES",
            )
        return data

    def _there(self, bucket: str, name: str) -> bool:
        try:
            self._client.stat_object(bucket_name=bucket, object_name=name)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return False
            raise
        return True

    def _send(self, name: str, data: bytes) -> None:
        import io

        digest = hashlib.sha256(data).hexdigest()
        self._client.put_object(
            bucket_name=self._settings.bucket,
            object_name=name,
            data=io.BytesIO(data),
            length=len(data),
            metadata={"sha256": digest},
        )


def _refused(error: S3Error, bucket: str, key: str) -> Exception:
    if error.code in _GONE:
        return RejectInputError(
            "unreadable",
            f"s3://{bucket}/{key} cannot be read ({error.code}); check that it exists and may be read",
        )
    return error


@contextmanager
def _released(response: Any) -> Iterator[None]:
    try:
        yield
    finally:
        response.close()
        response.release_conn()


@contextmanager
def _away(what: str) -> Iterator[None]:
    """A store that does not answer is a `RetryLaterError`; the message never holds a key."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
        found = error.code if isinstance(error, S3Error) else type(error).__name__
        raise RetryLaterError(
            f"the S3 store could not {what} ({found}); check SIGMA_S3_ENDPOINT and its keys, then try again"
        ) from error
