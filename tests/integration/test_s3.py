"""The image store in S3, against a server that checks signatures: addresses, links, failures."""

import multiprocessing
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from schemas.errors import RejectInputError, RetryLaterError
from schemas.service_settings import S3Settings
from stream.images.s3 import S3ImageStore
from tests.services.servers import free_port

DATA = b"\x89PNG picture"


@pytest.fixture
def settings(s3: S3Settings) -> S3Settings:
    """A bucket of this test's own."""
    return replace(s3, bucket=f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def store(settings: S3Settings) -> S3ImageStore:
    store = S3ImageStore(settings)
    store.create_bucket()
    # Again, as every `sigma init` does.
    store.create_bucket()
    return store


def test_bytes_come_back_under_their_content_and_storing_twice_is_storing_once(
    store: S3ImageStore,
) -> None:
    uri = store.put(DATA)
    assert uri == store.put(DATA)
    assert uri.startswith("store:///")
    assert store.get(uri) == DATA
    assert store.exists(uri)
    assert not store.exists("store:///00/" + "0" * 62 + ".png")
    with pytest.raises(RejectInputError, match="NoSuchKey"):
        store.get("store:///00/" + "0" * 62 + ".png")


def test_a_link_opens_without_keys_and_only_as_signed(store: S3ImageStore) -> None:
    link = store.link(store.put(DATA))
    assert httpx.get(link).content == DATA
    assert "X-Amz-Expires=900" in link
    broken = link[:-1] + ("0" if link[-1] != "0" else "1")
    assert httpx.get(broken).status_code == 403
    assert httpx.get(link.split("?")[0]).status_code in (400, 403)


def test_originals_are_kept_and_read_with_a_cap(store: S3ImageStore, settings: S3Settings) -> None:
    uri = store.put_original(DATA, ".png")
    assert uri == store.put_original(DATA, ".png")
    key = uri.removeprefix(f"s3://{settings.bucket}/")
    assert store.read(settings.bucket, key, len(DATA)) == DATA
    with pytest.raises(RejectInputError, match="must have at most"):
        store.read(settings.bucket, key, len(DATA) - 1)
    for bucket, name in (
        (settings.bucket, "nothing.png"),
        ("no-such-bucket-here", key),
        (settings.bucket, "a/../b"),
    ):
        with pytest.raises(RejectInputError) as refused:
            store.read(bucket, name, 100)
        assert refused.value.code == "unreadable"


def test_damage_in_the_store_is_noticed_and_mended_by_storing_again(
    store: S3ImageStore, settings: S3Settings
) -> None:
    uri = store.put(DATA)
    store._send("normalized/" + uri.removeprefix("store:///"), b"something else")
    with pytest.raises(RejectInputError) as refused:
        store.get(uri)
    assert refused.value.code == "damaged-store"
    # What the refusal asks for.
    assert store.put(DATA) == uri
    assert store.get(uri) == DATA


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "store:///../secret",
        "store://host/ab/" + "0" * 62 + ".png",
        "store:///x?y",
    ],
)
def test_only_addresses_that_the_store_gave_are_looked_up(store: S3ImageStore, uri: str) -> None:
    with pytest.raises(RejectInputError, match="address of the image store"):
        store.get(uri)


def test_wrong_keys_and_an_unavailable_store_are_worth_another_try_and_name_no_secret(
    settings: S3Settings,
) -> None:
    for broken in (
        replace(settings, secret_key="wrong-secret"),
        replace(settings, endpoint=f"127.0.0.1:{free_port()}"),
    ):
        with pytest.raises(RetryLaterError) as refused:
            S3ImageStore(broken).put(DATA)
        assert "wrong-secret" not in str(refused.value)
        assert settings.access_key + ":" not in str(refused.value)


def test_pictures_and_originals_are_removed_unless_they_were_put_lately(
    store: S3ImageStore, settings: S3Settings
) -> None:
    hour = timedelta(hours=1)
    for uri in (store.put(DATA), store.put_original(DATA, ".png")):
        assert not store.remove(uri, datetime.now(UTC) - hour)
        assert store.remove(uri, datetime.now(UTC) + hour)
        assert store.remove(uri, datetime.now(UTC) + hour)
    key = store.put_original(DATA, ".png").removeprefix(f"s3://{settings.bucket}/")
    # A producer's object is not ours to remove.
    assert store.remove(f"s3://elsewhere/{key}", datetime.now(UTC) + hour)
    assert store.read(settings.bucket, key, None) == DATA


def test_a_forked_process_reads_on_connections_of_its_own(store: S3ImageStore) -> None:
    uri = store.put(DATA)
    ours = store._client
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()

    def read() -> None:
        found.put((store.get(uri), store._client is ours))

    process = context.Process(target=read)
    process.start()
    assert found.get() == (DATA, False)
    process.join()
    assert store._client is ours
