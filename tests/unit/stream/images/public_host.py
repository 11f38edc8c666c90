"""A web server on loopback that plays a host of the open internet, and a resolver for tests."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from stream.images.public_addresses import connect

ADDRESS = "93.184.216.34"
"""The public address that the server answers for."""

Answer = Callable[[], Iterable[bytes]]


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A self-signed certificate of today and its key."""
    cert = folder / "cert.pem"
    key = folder / "key.pem"
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = ["-subj", "/CN=test", "-addext", f"subjectAltName={alternatives}"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
    return cert, key


def reply(body: bytes = b"", status: str = "200 OK", **headers: object) -> bytes:
    """A whole answer; underscores in header names become hyphens.

    `Content_Length=None` leaves the length out.
    """
    lines = [f"HTTP/1.1 {status}"]
    for name, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            lines.append(f"{name.replace('_', '-')}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class PublicHost:
    """Answers by path; keeps what it was asked in `requests`, and the names of TLS in `names`."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.names: list[str | None] = []
        self.stopping = threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self._context.sni_callback = lambda sock, name, context: self.names.append(name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        """Ends all threads."""
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def says(self, path: str, *parts: bytes) -> None:
        """Sets the answer of a path."""
        self.answers[path] = lambda: parts

    def drips(self, start: bytes, piece: bytes) -> Answer:
        """An answer that goes on and on, a piece every 20 ms."""

        def answer() -> Iterable[bytes]:
            yield start
            while not self.stopping.wait(0.02):
                yield piece

        return answer

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                conn, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(conn,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, conn: socket.socket) -> None:
        conn.settimeout(5)
        with conn, suppress(OSError), self._context.wrap_socket(conn, server_side=True) as tls:
            request = b""
            while b"\r\n\r\n" not in request:
                part = tls.recv(65536)
                if not part:
                    return
                request += part
            self.requests.append(request.decode())
            for part in self.answers[request.split()[1].decode()]():
                tls.sendall(part)


class Names:
    """A resolver: each name has a list of answers, one a look-up, and the last one stays."""

    def __init__(self) -> None:
        self.known: dict[str, list[Sequence[str]]] = {}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self.known.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def connector(server: PublicHost) -> Callable[[str, int, float], socket.socket]:
    """A connector that takes the public address to the server, and any other to itself."""

    def connected(address: str, port: int, timeout_s: float) -> socket.socket:
        if (address, port) == (ADDRESS, 443):
            return connect("127.0.0.1", server.port, timeout_s)
        return connect(address, port, timeout_s)

    return connected
