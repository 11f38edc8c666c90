"""API keys: hashes at rest, one sentence for a wrong entry, and never the key itself."""

import hashlib
import json

import pytest

from schemas.api_keys import (
    MAX_KEYS,
    ApiKey,
    ApiScope,
    digest_of,
    new_secret,
    parse_key,
    unique_keys,
)
from schemas.errors import UsageError
from schemas.settings import Settings

DIGEST = hashlib.sha256(b"some long random key").hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()
SECRET = "sigma_thisIsTheKeyItself-and-not-its-hash"


def test_an_entry_is_read_as_it_is_written() -> None:
    for entry in (f"web:read:{DIGEST}", f"a.b-c_1:admin:{DIGEST}:0.5", f"x:write:{DIGEST}:1000000"):
        assert parse_key(entry, "entry 1").entry() == entry


def test_my_tool_writes_the_hash_in_capitals() -> None:
    assert parse_key(f"web:read:{DIGEST.upper()}", "entry 1").digest == DIGEST


WRONG = {
    "the key instead of its hash": f"web:read:{SECRET}",
    "the key alone": SECRET,
    "no scope": f"web:{DIGEST}",
    "an unknown scope": f"web:root:{DIGEST}",
    "a scope in capitals": f"web:READ:{DIGEST}",
    "no name": f":read:{DIGEST}",
    "a name with a space": f"my web:read:{DIGEST}",
    "a name of another alphabet": f"wéb:read:{DIGEST}",
    "a name that is too long": f"{'n' * 65}:read:{DIGEST}",
    "a hash that is cut off": f"web:read:{DIGEST[:-1]}",
    "a hash that is too long": f"web:read:{DIGEST}0",
    "an MD5": f"web:read:{hashlib.md5(b'key', usedforsecurity=False).hexdigest()}",
    "the hash of nothing": f"web:read:{EMPTY}",
    "a rate of nothing": f"web:read:{DIGEST}:0",
    "a negative rate": f"web:read:{DIGEST}:-1",
    "a rate that is no number": f"web:read:{DIGEST}:many",
    "a rate without bound": f"web:read:{DIGEST}:inf",
    "a fifth part": f"web:read:{DIGEST}:1:2",
    "an empty fourth part": f"web:read:{DIGEST}:",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_one_sentence_that_does_not_show_it(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        Settings.from_environment({"SIGMA_API_KEYS": f"good:read:{DIGEST},{WRONG[name]}"})
    sentence = str(refused.value)
    assert "entry 2 of SIGMA_API_KEYS" in sentence
    assert "sigma keys new" in sentence
    assert SECRET not in sentence
    assert DIGEST[:16] not in sentence


def test_two_keys_of_one_name_or_one_hash_are_told() -> None:
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UsageError, match="got web twice"):
        Settings.from_environment({"SIGMA_API_KEYS": f"web:read:{DIGEST},web:admin:{other}"})
    with pytest.raises(UsageError, match="must differ, got that of app twice"):
        Settings.from_environment({"SIGMA_API_KEYS": f"web:read:{DIGEST},app:admin:{DIGEST}"})


def test_there_is_a_bound_to_the_number_of_keys() -> None:
    keys = []
    for number in range(MAX_KEYS + 1):
        keys.append(ApiKey(f"key{number}", ApiScope.READ, digest_of(b"%d" % number)))
    assert len(unique_keys(keys[:-1])) == MAX_KEYS
    with pytest.raises(UsageError, match="at most 1,000, got 1,001"):
        unique_keys(keys)


@pytest.mark.parametrize(
    ("scope", "enough_for"),
    [
        ("read", {"read"}),
        ("write", {"read", "write"}),
        ("metrics", {"metrics"}),
        ("admin", {"read", "write", "metrics", "admin"}),
    ],
)
def test_a_scope_is_enough_for_what_it_includes_and_for_nothing_else(
    scope: str, enough_for: set[str]
) -> None:
    key = parse_key(f"web:{scope}:{DIGEST}", "entry 1")
    assert {str(needed) for needed in ApiScope if key.may(needed)} == enough_for


def test_settings_that_are_printed_or_logged_show_neither_keys_nor_hashes() -> None:
    environ = {"SIGMA_API_KEYS": f"web:read:{DIGEST}", "SIGMA_API_KEY": SECRET}
    settings = Settings.from_environment(environ)
    assert settings.access.api_key == SECRET
    for shown in (repr(settings), str(settings), repr(settings.access), json.dumps(repr(settings))):
        assert SECRET not in shown
        assert DIGEST not in shown


def test_a_wrong_key_of_the_client_is_not_shown() -> None:
    with pytest.raises(UsageError, match="SIGMA_API_KEY must be a key") as refused:
        Settings.from_environment({"SIGMA_API_KEY": f"{SECRET}\nx"})
    assert SECRET not in str(refused.value)


def test_a_new_key_has_256_random_bits_and_is_never_made_twice() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) == len("sigma_") + 43 for secret in secrets)
