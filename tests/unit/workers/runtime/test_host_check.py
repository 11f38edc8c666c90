"""The host check: a web page that gives its own name the address 127.0.0.1 is not answered."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of
from schemas.errors import RefuseToStartError, UsageError
from schemas.settings import Settings
from workers.runtime.host_check import HostCheck, is_loopback, require_keys
from workers.runtime.process import bind
from workers.runtime.refusal import RawHeaders

ANSWERED = {
    "as by default": b"localhost:8631",
    "without a port": b"localhost",
    "another port, of a tunnel": b"localhost:1",
    "the highest port": b"127.0.0.1:65535",
    "an address": b"127.0.0.1",
    "IPv6": b"[::1]:8631",
    "IPv6 without a port": b"[::1]",
    "IPv6 in full": b"[0:0:0:0:0:0:0:1]:8631",
    "upper case": b"LocalHost:8631",
    "a final dot": b"localhost.:8631",
    "a name of the settings": b"search.example.org",
    "a name of the settings in capitals, with a port": b"SEARCH.Example.org:443",
    "a name of the settings with a final dot": b"search.example.org.",
}

REFUSED = {
    "the attacker's name": b"evil.example",
    "the attacker's name with our port": b"evil.example:8631",
    "a name that begins like ours": b"localhost.evil.example",
    "a name that ends like ours": b"evil-localhost",
    "a subdomain of localhost": b"evil.localhost",
    "a subdomain of a name of the settings": b"evil.search.example.org",
    "a domain above a name of the settings": b"example.org",
    "an address with a name behind": b"127.0.0.1.evil.example",
    "another loopback address": b"127.0.0.2",
    "an address that is short": b"127.1",
    "an address as one number": b"2130706433",
    "an address in hexadecimal": b"0x7f000001",
    "an address in octal": b"0177.0.0.1",
    "all addresses": b"0.0.0.0:8631",
    "all addresses, IPv6": b"[::]:8631",
    "IPv4 in IPv6": b"[::ffff:127.0.0.1]",
    "IPv6 with a zone": b"[::1%25lo]",
    "IPv6 without brackets": b"::1",
    "IPv6 without its end": b"[::1",
    "IPv6 that is none": b"[1:2:3]",
    "brackets around a name": b"[localhost]",
    "a user": b"localhost@evil.example",
    "a user before our name": b"evil@localhost",
    "user and password": b"a:b@localhost:8631",
    "an address of the web": b"http://localhost:8631",
    "a path": b"localhost/evil.example",
    "a query": b"localhost?evil.example",
    "two names": b"localhost, evil.example",
    "two names and a space": b"localhost evil.example",
    "a space before": b" localhost",
    "a tab behind": b"localhost\t",
    "a zero": b"localhost\0.evil.example",
    "a line end": b"localhost\n",
    "a port alone": b":8631",
    "nothing": b"",
    "a dot": b".",
    "two final dots": b"localhost..",
    "a colon without a port": b"localhost:",
    "two ports": b"localhost:1:2",
    "a port that is no number": b"localhost:http",
    "a negative port": b"localhost:-1",
    "a port that is too high": b"localhost:65536",
    "a port of thousands of digits": b"localhost:" + b"9" * 10_000,
    "a port in Arabic digits": "localhost:٨٦٣١".encode(),
    "a name in full-width letters": "ｌｏｃａｌｈｏｓｔ".encode(),
    "a Cyrillic letter": "lоcalhost".encode(),
    "latin-1": "löcalhost".encode("latin-1"),
    "Punycode": b"xn--lcalhost-55a",
    "percent escapes": b"local%68ost",
    "kilobytes": b"evil." * 2000,
    "control characters": b"\x1b[2Jevil.example",
}

LOCAL = HostCheck.of_listener("127.0.0.1", ("search.example.org",))


def request(hosts: Sequence[bytes]) -> RawHeaders:
    return [(b"host", host) for host in hosts] + [(b"accept", b"localhost")]


@pytest.mark.parametrize("name", ANSWERED)
def test_i_ask_by_a_local_name(name: str) -> None:
    assert LOCAL.refusal(request([ANSWERED[name]])) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_web_page_asks_by_another_name(name: str) -> None:
    refusal = LOCAL.refusal(request([REFUSED[name]]), may_be_missing=True)
    assert refusal is not None
    assert refusal.status == 421
    assert "SIGMA_ALLOWED_HOSTS" in refusal.sentence
    assert len(refusal.sentence) < 500
    assert refusal.sentence.isprintable()
    json.dumps(refusal.sentence).encode("ascii")


@pytest.mark.parametrize("hosts", [[b"localhost", b"localhost"], [b"localhost", b"evil"], []])
def test_two_host_headers_or_none_are_refused(hosts: list[bytes]) -> None:
    refusal = LOCAL.refusal(request(hosts))
    assert refusal is not None
    assert refusal.status == 421


def test_a_load_balancer_that_sends_no_host_may_ask_whether_i_am_well() -> None:
    assert LOCAL.refusal(request([]), may_be_missing=True) is None
    assert LOCAL.refusal(request([b"localhost", b"evil"]), may_be_missing=True) is not None


def test_beyond_loopback_any_name_is_answered_because_keys_are_needed() -> None:
    assert HostCheck.of_listener("10.0.0.7", ()).refusal(request([b"search.example.org"])) is None


def test_who_listens_on_another_loopback_address_is_asked_by_it() -> None:
    check = HostCheck.of_listener("127.0.0.2", ())
    assert check.refusal(request([b"127.0.0.2:8631"])) is None
    assert check.refusal(request([b"127.0.0.3:8631"])) is not None


@pytest.mark.parametrize(
    "name", ["*.example.org", "a b", "http://a.example", "[::1]", "a.example:8"]
)
def test_a_name_of_the_settings_that_is_none_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(UsageError, match="SIGMA_ALLOWED_HOSTS must be a host name"):
        Settings.from_environment({"SIGMA_ALLOWED_HOSTS": name})


def test_names_of_the_settings_are_compared_without_case_and_final_dot() -> None:
    settings = Settings.from_environment({"SIGMA_ALLOWED_HOSTS": "Search.Example.org., b.example"})
    assert settings.access.allowed_hosts == ("search.example.org", "b.example")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("8.8.8.8", False),
        ("/run/sigma.sock", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])
def test_i_open_the_port_to_everybody_without_keys(host: str) -> None:
    with (
        bind(host, 0) as listener,
        pytest.raises(RefuseToStartError, match="SIGMA_API_KEYS must be set") as refused,
    ):
        require_keys(Settings(http_host=host), listener)
    assert "sigma keys new NAME" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_with_keys_or_on_loopback_the_port_opens(tmp_path: Path) -> None:
    key = ApiKey("web", ApiScope.READ, digest_of(b"secret"))
    with bind("0.0.0.0", 0) as listener:
        require_keys(Settings(access=AccessSettings(api_keys=(key,))), listener)
        require_keys(Settings(access=AccessSettings(api_keys_file=tmp_path / "keys")), listener)
    for host in ("localhost", "127.0.0.1", "::1"):
        with bind(host, 0) as listener:
            require_keys(Settings(), listener)


def test_a_socket_of_another_kind_needs_keys_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(RefuseToStartError):
            require_keys(Settings(), listener)
