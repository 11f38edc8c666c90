"""The access settings: who may ask the query API, under which names, and how often."""

import re
from dataclasses import dataclass
from pathlib import Path

from schemas.api_keys import (
    ENTRY_FORM,
    HIGHEST_RATE,
    LOWEST_RATE,
    ApiKey,
    ApiScope,
    parse_key,
    unique_keys,
)
from schemas.environment import Form, matching, number, separated, setting


def _parse_keys(text: str) -> tuple[ApiKey, ...]:
    keys = []
    for number_, entry in enumerate(text.split(","), start=1):
        if entry.strip():
            keys.append(parse_key(entry, f"entry {number_} of SIGMA_API_KEYS"))
    return unique_keys(keys)


def _parse_name(text: str) -> str:
    """Return a host name in the form in which it is compared: small letters, no dot at the end."""
    name = text.lower().removesuffix(".")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?", name):
        raise ValueError(text)
    return name


_KEYS = Form(
    f"{ENTRY_FORM}, several separated by commas, with a scope of {', '.join(ApiScope)}", _parse_keys
)
_KEY = matching(re.compile(r"[!-~]{16,200}"), "a key as `sigma keys new` prints it")
_URL = matching(
    re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?"),
    "an address such as https://search.example.org",
)
_FILE = Form("a file", Path)
_SERVED_NAME = Form("a host name such as search.example.org or an IPv4 address", _parse_name)


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may ask the query API."""

    api_keys: tuple[ApiKey, ...] = setting(
        "SIGMA_API_KEYS",
        _KEYS,
        "Keys of the query API, as hashes; `sigma keys new` makes them. Required beyond loopback. "
        "RATE is a key's own, in requests a second.",
        default=(),
        unset="no keys",
        secret=True,
    )
    api_keys_file: Path | None = setting(
        "SIGMA_API_KEYS_FILE",
        _FILE,
        "Further keys, one entry a line. It is read again when it changes.",
        default=None,
        unset="no file",
    )
    key_rate: float = setting(
        "SIGMA_KEY_RATE",
        number(LOWEST_RATE, HIGHEST_RATE),
        "Requests a second that one key may send, and as many at once.",
        default=100.0,
    )
    allowed_hosts: tuple[str, ...] = setting(
        "SIGMA_ALLOWED_HOSTS",
        separated(_SERVED_NAME),
        "Names, beside localhost, 127.0.0.1 and [::1], by which a port on loopback may be asked, "
        "such as that of a proxy on this machine.",
        default=(),
        unset="none",
    )
    public_url: str | None = setting(
        "SIGMA_PUBLIC_URL",
        _URL,
        "The address by which clients reach the query API, such as that of a proxy: links to "
        "pictures begin with it.",
        default=None,
        unset="the address that a client asked",
    )
    api_key: str | None = setting(
        "SIGMA_API_KEY",
        _KEY,
        "The key that `sigma query` sends.",
        default=None,
        unset="no key",
        secret=True,
    )

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self.api_keys) or self.api_keys_file is not None
