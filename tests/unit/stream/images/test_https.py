"""The guard: a hostile URL is refused soon, and no connection goes to an address not public."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import RejectInputError, RetryLaterError, UsageError
from stream.images.https import HttpsReader
from stream.images.public_addresses import connect, is_public, resolve
from stream.images.sources import Sources
from tests.unit.stream.images.public_host import (
    ADDRESS,
    Names,
    PublicHost,
    certificate,
    connector,
    reply,
)

HOST = "images.example.org"
URL = f"https://{HOST}"
CAP = 10_000
"""Bytes."""
SOON_S = 5
IMAGE = b"an image" * 100

PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.88.99.1",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%lo",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "2606:4700::1111%1",
    "fec0::1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "localhost",
    "",
]
NUMERIC = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.0x1",
    "127.0.0.1.",
    "169.254.169.254",
    "10.0.0.1",
    "100.64.0.1",
    "0.0.0.0",
    "0",
    "192.168.0.1",
    "8.8.8.8",
    "[::1]",
    "[::]",
    "[fe80::1%25lo]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001::1]",
    "[fd00:ec2::254]",
]
HOSTILE = {
    **{f"https://{host}/a.jpg": "forbidden-host" for host in NUMERIC},
    f"https://{HOST}@127.0.0.1/": "forbidden-host",
    f"https://user:secret@{HOST}/": "forbidden-host",
    f"https://{HOST}:443@10.0.0.1/": "forbidden-host",
    f"https://127.0.0.1#@{HOST}/": "forbidden-host",
    f"https://127.0.0.1?@{HOST}/": "forbidden-host",
    f"https://127.0.0.1\\@{HOST}/": "unsupported-source",
    f"https://{HOST}\\@127.0.0.1/": "unsupported-source",
    f"https:\\\\{HOST}/": "unsupported-source",
    f"https://127.0.0.1\t.{HOST}/": "unsupported-source",
    f"https://{HOST}\r\nHost: 127.0.0.1/": "unsupported-source",
    f"https://{HOST}/ HTTP/1.1\r\nX: y": "unsupported-source",
    f"https://{HOST}/\x00": "unsupported-source",
    f" https://{HOST}/": "unsupported-source",
    "https://127。0。0。1/": "unsupported-source",
    "https://１２７.0.0.1/": "unsupported-source",
    "https://ⓛocalhost/": "unsupported-source",
    f"https://{HOST}./": "forbidden-host",
    f"https://{HOST}.evil.example/": "forbidden-host",
    "https://example.org/": "forbidden-host",
    "https://evilpics.example.net/": "forbidden-host",
    "https://pics.example.net/": "forbidden-host",
    "https://localhost/": "forbidden-host",
    "https://%6cocalhost/": "forbidden-host",
    "https://127.0.0.1%2f.pics.example.net/": "forbidden-host",
    "HTTPS://LOCALHOST/": "forbidden-host",
    "https:///a.jpg": "forbidden-host",
    "https://": "forbidden-host",
    "https:a.jpg": "unsupported-source",
    f"https:/{HOST}/": "unsupported-source",
    f"https://{'a' * 64}.pics.example.net/": "forbidden-host",
    f"https://{HOST}:22/": "forbidden-port",
    f"https://{HOST}:6379/": "forbidden-port",
    f"https://{HOST}:0/": "forbidden-port",
    f"https://{HOST}:99999/": "forbidden-port",
    f"https://{HOST}:/": "forbidden-host",
    f"https://{HOST}:-1/": "forbidden-host",
    f"https://{HOST}/{'a' * 9000}": "unsupported-source",
    f"http://{HOST}/": "unsupported-source",
    "HTTP://127.0.0.1/": "unsupported-source",
    "file://host/etc/passwd": "unsupported-source",
    "gopher://127.0.0.1:6379/_INFO": "unsupported-source",
    "ftp://127.0.0.1/a.jpg": "unsupported-source",
    "data:image/png;base64,AAAA": "unsupported-source",
    "//127.0.0.1/a.jpg": "unsupported-source",
}


def redirects_elsewhere() -> list[str]:
    """The hostile addresses that a redirect can carry and that lead away from the host."""
    uris = ["//127.0.0.1/a.jpg", "data:image/png;base64,AAAA"]
    for uri in HOSTILE:
        # A header cannot carry line ends; without a host, an address stays on the same host.
        carried = "\n" not in uri and " " not in uri
        absolute = "://" in uri.strip("/") and uri not in ("https://", "https:///a.jpg")
        if carried and absolute:
            uris.append(uri)
    return uris


class World:
    """The public host, the names, and every address that a socket was asked to connect to."""

    def __init__(self, server: PublicHost, trust: ssl.SSLContext) -> None:
        self.server = server
        self.trust = trust
        self.names = Names()
        self.names.known[HOST] = [[ADDRESS]]
        self.connected: list[object] = []

    def reader(self, *, timeout_s: float = 5.0, connect_timeout_s: float = 3.0) -> HttpsReader:
        """A reader as in production, except for its resolver, connections and certificates."""
        return HttpsReader(
            (HOST, "*.pics.example.net"),
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            resolver=self.names,
            connector=connector(self.server),
            tls=self.trust,
        )

    def read(self, path: str) -> bytes:
        """Reads from the public host."""
        return self.reader().read(URL + path, CAP)

    def refused(self, path: str, timeout_s: float = 5.0) -> RejectInputError:
        """The refusal of an address, or of a path on the public host."""
        on_host = path.startswith("/") and not path.startswith("//")
        uri = URL + path if on_host else path
        started = time.monotonic()
        with pytest.raises(RejectInputError) as refused:
            self.reader(timeout_s=timeout_s).read(uri, CAP)
        assert time.monotonic() - started < SOON_S
        return refused.value


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key."""
    return certificate(tmp_path_factory.mktemp("tls"), HOST, "*.pics.example.net")


@pytest.fixture
def world(papers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in which connecting anywhere but to the test server fails the test."""
    server = PublicHost(*papers)
    world = World(server, ssl.create_default_context(cafile=papers[0]))
    real = socket.socket.connect

    def recorded(self: socket.socket, address: object) -> None:
        world.connected.append(address)
        if address != ("127.0.0.1", server.port):
            raise ConnectionRefusedError("the test allows no connection to this address")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    monkeypatch.setattr(socket.socket, "connect_ex", recorded)
    yield world
    monkeypatch.undo()
    server.stop()
    assert set(world.connected) <= {("127.0.0.1", server.port)}


def test_an_image_is_read_by_name_and_over_the_address_that_was_checked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    world.server.says("/a%20b.jpg?size=1", reply(IMAGE))
    assert world.read("/a%20b.jpg?size=1#part") == IMAGE
    assert world.server.names == [HOST]
    assert "Host: images.example.org\r\n" in world.server.requests[0]
    assert "Accept-Encoding: identity\r\n" in world.server.requests[0]
    world.names.known["x.pics.example.net"] = [[ADDRESS]]
    world.server.says("/", reply(IMAGE))
    assert world.reader().read("HTTPS://X.Pics.Example.Net:443", CAP) == IMAGE


def test_an_image_in_chunks_or_until_the_end_of_the_connection_is_read(world: World) -> None:
    world.server.says(
        "/chunks",
        reply(Content_Length=None, Transfer_Encoding="chunked"),
        b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
    )
    world.server.says("/end", reply(IMAGE, Content_Length=None))
    world.server.says("/full", reply(bytes(CAP)))
    assert world.read("/chunks") == b"abcde"
    assert world.read("/end") == IMAGE
    assert world.read("/full") == bytes(CAP)


@pytest.mark.parametrize("uri", HOSTILE)
def test_a_hostile_address_is_refused_without_a_look_up_or_a_connection(
    uri: str, world: World
) -> None:
    error = world.refused(uri)
    assert error.code == HOSTILE[uri]
    assert "secret" not in str(error)
    assert "\n" not in str(error)
    assert world.names.asked == []
    assert world.connected == []
    started = time.monotonic()
    with pytest.raises(RejectInputError):
        Sources(CAP, (), None, world.reader()).read(uri)
    assert time.monotonic() - started < SOON_S


@pytest.mark.parametrize("uri", redirects_elsewhere())
def test_a_redirect_to_a_hostile_address_is_refused(uri: str, world: World) -> None:
    world.server.says(
        "/start",
        b"HTTP/1.1 302 Found\r\nLocation: " + uri.encode() + b"\r\nContent-Length: 0\r\n\r\n",
    )
    error = world.refused("/start")
    assert error.code in (HOSTILE[uri], "forbidden-host", "unreadable")
    assert "secret" not in str(error)
    assert len(world.connected) == 1


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_with_any_address_that_is_not_public_is_refused(address: str, world: World) -> None:
    assert not is_public(address)
    for addresses in ([address], [ADDRESS, address], [address, ADDRESS]):
        world.names.known[HOST] = [addresses]
        assert world.refused("/").code == "private-address"
    assert world.connected == []
    world.names.known |= {HOST: [[ADDRESS]], "inner.pics.example.net": [[address]]}
    world.server.says("/go", reply(status="302 Found", Location="https://inner.pics.example.net/"))
    assert world.refused("/go").code == "private-address"
    assert len(world.connected) == 1


@pytest.mark.parametrize(
    "address",
    [ADDRESS, "8.8.8.8", "172.15.0.1", "100.63.0.1", "2606:4700:4700::1111", "2a00:1450:4001::1"],
)
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_a_name_that_changes_its_mind_cannot_move_the_connection(world: World) -> None:
    world.names.known[HOST] = [[ADDRESS], ["127.0.0.1"]]
    world.server.says("/a.jpg", reply(IMAGE))
    assert world.read("/a.jpg") == IMAGE
    assert world.names.asked == [HOST]
    world.names.known[HOST] = [[ADDRESS], ["127.0.0.1"]]
    world.server.says("/again", reply(status="302 Found", Location="/a.jpg"))
    assert world.refused("/again").code == "private-address"
    assert len(world.server.requests) == 2


def test_redirects_are_followed_three_times_and_no_further(world: World) -> None:
    world.server.says("/0", reply(status="301 Moved", Location=f"{URL}/1"))
    world.server.says("/1", reply(status="302 Found", Location="/2"))
    world.server.says("/2", reply(status="307 Temporary", Location="//x.pics.example.net/3"))
    world.server.says("/3", reply(IMAGE))
    world.names.known["x.pics.example.net"] = [[ADDRESS]]
    assert world.read("/0") == IMAGE
    world.server.says("/loop", reply(status="302 Found", Location="/loop"))
    assert world.refused("/loop").code == "too-many-redirects"
    assert len(world.server.requests) == 4 + 4
    world.server.says("/nowhere", reply(status="302 Found"))
    assert world.refused("/nowhere").code == "unreadable"


@pytest.mark.parametrize("declared", [CAP + 1, 10**15, 5, None])
def test_what_is_too_large_is_cut_whatever_it_declares(declared: int | None, world: World) -> None:
    start = reply(Content_Length=declared)

    def endless() -> Iterator[bytes]:
        yield start
        for _ in range(10_000):
            yield bytes(60_000)

    world.server.answers["/endless"] = endless
    if declared == 5:
        assert world.read("/endless") == bytes(5)
    else:
        assert world.refused("/endless").code == "too-many-bytes"


@pytest.mark.parametrize("size", [b"-1", b"-5", b"fffffffffffffff", b"1_0", b"x"])
def test_false_chunk_sizes_take_no_memory(size: bytes, world: World) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield reply(Content_Length=None, Transfer_Encoding="chunked") + size + b"\r\n"
        while sent < 600_000_000:
            sent += 60_000
            yield bytes(60_000)

    world.server.answers["/chunks"] = endless
    assert world.refused("/chunks").code in ("too-many-bytes", "unreadable")
    # What was not read waits in the buffers of the two sockets.
    assert sent < 30_000_000


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"x", status="404 Not Found"),
        reply(b"x", status="403 Forbidden"),
        reply(b"x", status="206 Partial Content"),
        reply(status="304 Not Modified"),
        reply(b"x", Content_Encoding="gzip"),
        reply(b"x", Content_Encoding="identity, br"),
        reply(b"x", Transfer_Encoding="gzip, chunked"),
        reply(b"short", Content_Length=50),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + bytes(100_000),
    ],
)
def test_an_answer_that_is_no_image_is_refused(answer: bytes, world: World) -> None:
    world.server.says("/a.jpg?sig=secret", answer)
    error = world.refused("/a.jpg?sig=secret")
    assert error.code == "unreadable"
    assert f"{URL}/a.jpg" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "status", ["500 Oops", "502 Bad Gateway", "503 Busy", "429 Slow Down", "408 Timeout"]
)
def test_what_passes_by_itself_is_tried_later(status: str, world: World) -> None:
    world.server.says("/a.jpg", reply(status=status))
    with pytest.raises(RetryLaterError, match=f"status {status[:3]}"):
        world.read("/a.jpg")


def test_a_connection_that_breaks_is_tried_later(world: World) -> None:
    world.server.says("/a.jpg")
    with pytest.raises(RetryLaterError, match="broke"):
        world.read("/a.jpg")


def test_a_slow_answer_is_cut_in_its_header_and_in_its_body(world: World) -> None:
    world.server.answers["/header"] = world.server.drips(b"HTTP/1.1 200 OK\r\n", b"X")
    world.server.answers["/body"] = world.server.drips(reply(Content_Length=5000), b"x")
    world.server.answers["/continue"] = world.server.drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    world.server.answers["/chunks"] = world.server.drips(
        reply(Content_Length=None, Transfer_Encoding="chunked"), b"1\r\nx\r\n"
    )
    world.server.answers["/silent"] = world.server.drips(b"", b"")
    for path in ("/header", "/body", "/continue", "/chunks", "/silent"):
        started = time.monotonic()
        assert world.refused(path, timeout_s=0.3).code == "timeout"
        assert time.monotonic() - started < 2


def test_a_server_that_does_not_greet_and_a_name_that_does_not_resolve_are_tried_later(
    world: World,
) -> None:
    answered = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute_port = mute.getsockname()[1]

        def to_mute(address: str, port: int, timeout_s: float) -> socket.socket:
            sock = socket.socket()
            sock.settimeout(timeout_s)
            # The method below the one that the fixture watches.
            socket.SocketType.connect(sock, ("127.0.0.1", mute_port))
            return sock

        reader = HttpsReader(
            (HOST,), connect_timeout_s=0.2, resolver=world.names, connector=to_mute, tls=world.trust
        )
        with pytest.raises(RetryLaterError, match="cannot be connected"):
            reader.read(URL, CAP)

    def asleep(host: str, port: int) -> list[str]:
        answered.wait(5)
        return [ADDRESS]

    reader = HttpsReader(
        (HOST,), timeout_s=0.2, resolver=asleep, connector=connector(world.server), tls=world.trust
    )
    with pytest.raises(RetryLaterError, match="not resolved within"):
        reader.read(URL, CAP)
    answered.set()


@pytest.mark.parametrize(
    ("number", "kind"), [(socket.EAI_NONAME, RejectInputError), (socket.EAI_AGAIN, RetryLaterError)]
)
def test_a_name_that_does_not_exist_is_refused_and_an_unavailable_resolver_is_retried(
    number: int, kind: type[Exception], world: World
) -> None:
    def failing(host: str, port: int) -> list[str]:
        raise socket.gaierror(number, "a message")

    reader = HttpsReader(
        (HOST,), resolver=failing, connector=connector(world.server), tls=world.trust
    )
    with pytest.raises(kind, match=HOST):
        reader.read(URL, CAP)


def test_a_certificate_must_be_trusted_and_of_the_name(world: World) -> None:
    world.names.known["other.example.org"] = [[ADDRESS]]
    for hosts, tls, uri in (
        ((HOST,), None, f"{URL}/a.jpg"),
        (("other.example.org",), world.trust, "https://other.example.org/a.jpg"),
    ):
        reader = HttpsReader(
            hosts, resolver=world.names, connector=connector(world.server), tls=tls
        )
        with pytest.raises(RejectInputError, match="certificate") as refused:
            reader.read(uri, CAP)
        assert refused.value.code == "unreadable"
    assert world.server.requests == []


def test_a_server_without_tls_is_refused(world: World) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    reader = HttpsReader(
        (HOST,),
        resolver=world.names,
        connector=lambda address, port, timeout_s: ours,
        tls=world.trust,
    )
    with theirs, pytest.raises(RejectInputError, match="TLS"):
        reader.read(URL, CAP)


def test_the_next_address_is_tried_when_one_does_not_answer(world: World) -> None:
    world.names.known[HOST] = [["8.8.8.8", ADDRESS]]
    world.server.says("/a.jpg", reply(IMAGE))
    tried: list[str] = []
    to_server = connector(world.server)

    def counted(address: str, port: int, timeout_s: float) -> socket.socket:
        tried.append(address)
        if address != ADDRESS:
            raise TimeoutError
        return to_server(address, port, timeout_s)

    reader = HttpsReader((HOST,), resolver=world.names, connector=counted, tls=world.trust)
    assert reader.read(f"{URL}/a.jpg", CAP) == IMAGE
    assert tried == ["8.8.8.8", ADDRESS]


def test_without_hosts_nothing_is_read_and_a_false_list_is_an_error(world: World) -> None:
    for source in (Sources(CAP, None), Sources(CAP, None, None, HttpsReader(()))):
        with pytest.raises(RejectInputError, match="SIGMA_HTTPS_HOSTS") as refused:
            source.read(f"{URL}/a.jpg")
        assert refused.value.code == "unsupported-source"
    for host in (
        "*",
        "*.org",
        "127.0.0.1",
        "https://x.example",
        "a..b",
        "x:443",
        "",
        "[::1]",
        "*.*.example.org",
    ):
        with pytest.raises(UsageError, match="SIGMA_HTTPS_HOSTS"):
            HttpsReader([host])


def test_the_systems_own_names_and_connections_are_used_by_default(world: World) -> None:
    assert not any(map(is_public, resolve("localhost", 443)))
    with pytest.raises(RejectInputError) as refused:
        HttpsReader(["localhost"]).read("https://localhost/", CAP)
    assert refused.value.code == "private-address"
    connect("127.0.0.1", world.server.port, 1).close()
