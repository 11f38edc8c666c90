"""Real servers for tests: Apache Kafka in KRaft mode, and an S3 server that checks signatures.

Both come as Maven artefacts. `python -m tests.services.servers FOLDER` starts both, prints the
settings that point at them, and stops them on Ctrl-C.
"""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent

_START_TIMEOUT_S = 60.0
"""How long a server may take to answer; a JVM on a busy machine starts slowly."""

_STOP_TIMEOUT_S = 30.0
"""How long a signalled server may take to end."""

_MAVEN_TIMEOUT_S = 600.0
"""How long Maven may take; the first time it downloads all jars."""


class ToolMissingError(Exception):
    """A program that the tests need is not installed here."""


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """One Java process that can be killed and started again on the same address and data."""

    def __init__(self, name: str, folder: Path, port: int, command: list[str]) -> None:
        self.name = name
        self.port = port
        self._log = folder / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until its port answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        output = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{self.name} does not start: {output}")

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End the process with a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(_STOP_TIMEOUT_S)


class KafkaServer(Server):
    """One Kafka broker that is its own controller."""

    @classmethod
    def start_in(cls, folder: Path) -> Self:
        """Create a broker with its data in a folder, and start it."""
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        java = jvm("kafka", folder, memory="512m")
        settings = _write_properties(
            folder / "server.properties", _kafka_settings(port, free_port(), folder / "data")
        )
        _format_storage(java, settings)
        server = cls("kafka", folder, port, [*java, "kafka.Kafka", str(settings)])
        server.start()
        return server

    @property
    def data(self) -> Path:
        """The folder with a folder for each partition."""
        return self._log.parent / "data"

    @property
    def bootstrap(self) -> str:
        """The address of the broker."""
        return f"127.0.0.1:{self.port}"


class S3Server(Server):
    """S3Proxy over a folder."""

    access_key = "tests"

    def __init__(self, folder: Path, port: int, command: list[str], secret_key: str) -> None:
        super().__init__("s3", folder, port, command)
        self.secret_key = secret_key

    @classmethod
    def start_in(cls, folder: Path) -> Self:
        """Create a server with its buckets in a folder, and start it."""
        (folder / "buckets").mkdir(parents=True, exist_ok=True)
        port = free_port()
        secret_key = uuid.uuid4().hex
        settings = _write_properties(
            folder / "s3proxy.conf",
            {
                "s3proxy.endpoint": f"http://127.0.0.1:{port}",
                "s3proxy.authorization": "aws-v4",
                "s3proxy.identity": cls.access_key,
                "s3proxy.credential": secret_key,
                "jclouds.provider": "filesystem-nio2",
                "jclouds.filesystem.basedir": str(folder / "buckets"),
            },
        )
        settings.chmod(0o600)
        java = jvm("s3", folder, memory="256m")
        command = [*java, "org.gaul.s3proxy.Main", "--properties", str(settings)]
        server = cls(folder, port, command, secret_key)
        server.start()
        return server

    @property
    def environment(self) -> dict[str, str]:
        """The settings that point at the server."""
        return {
            "SIGMA_S3_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "SIGMA_S3_ACCESS_KEY": self.access_key,
            "SIGMA_S3_SECRET_KEY": self.secret_key,
        }


def _kafka_settings(port: int, controller_port: int, data: Path) -> Mapping[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        # One broker cannot replicate, and few partitions start faster.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        # Tests join groups all the time, and need not wait for further members.
        "group.initial.rebalance.delay.ms": "0",
        # A topic that a test forgot to create must be an error.
        "auto.create.topics.enable": "false",
        "default.replication.factor": "1",
    }


def _format_storage(java: list[str], settings: Path) -> None:
    command = [
        *java,
        "kafka.tools.StorageTool",
        "format",
        # With an equals sign, because an id may begin with a hyphen.
        f"--cluster-id={cluster_id()}",
        "-c",
        str(settings),
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if completed.returncode != 0:
        raise RuntimeError(
            "Kafka's storage cannot be formatted: "
            f"{completed.stdout[-1000:]}{completed.stderr[-2000:]}"
        )


def cluster_id() -> str:
    """Return a new id in the form that Kafka wants: 16 bytes, base64 for URLs."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def jvm(name: str, folder: Path, *, memory: str) -> list[str]:
    """The command of a small JVM that starts fast, with the jars of `NAME.xml`."""
    return [
        "java",
        f"-Xmx{memory}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        classpath(name, folder),
    ]


def classpath(name: str, folder: Path) -> str:
    """Return the jars of `NAME.xml`, which Maven fetches into its own cache.

    `ToolMissingError` when Java or Maven is not installed.
    """
    if shutil.which("java") is None or shutil.which("mvn") is None:
        raise ToolMissingError("java and mvn are needed to start the servers of the tests")
    target = folder / f"{name}.classpath"
    command = [
        "mvn",
        "-q",
        "-B",
        "-f",
        str(HERE / f"{name}.xml"),
        "dependency:build-classpath",
        f"-Dmdep.outputFile={target}",
    ]
    completed = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_MAVEN_TIMEOUT_S
    )
    if completed.returncode != 0:
        raise RuntimeError(f"Maven cannot fetch {name}: {completed.stdout[-2000:]}")
    return target.read_text(encoding="utf-8").strip()


def _write_properties(file: Path, settings: Mapping[str, str]) -> Path:
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@contextmanager
def stopping(server: Server) -> Iterator[Server]:
    """Stop the server when the block ends."""
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    """Run both servers until a signal."""
    folder = Path(sys.argv[1]).absolute()
    with ExitStack() as stack:
        kafka = KafkaServer.start_in(folder / "kafka")
        stack.enter_context(stopping(kafka))
        s3 = S3Server.start_in(folder / "s3")
        stack.enter_context(stopping(s3))
        settings = {"SIGMA_KAFKA_BOOTSTRAP": kafka.bootstrap, **s3.environment}
        for name, value in settings.items():
            print(f"export {name}={value}", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        signal.pause()


if __name__ == "__main__":
    os.umask(0o077)
    main()
