"""Real servers for tests: Apache Kafka in KRaft mode and an S3 server that checks signatures, from their Maven artefacts.

`python -m tests.services.servers FOLDER` starts both, prints the settings that point at them, and stops them on Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
_START_S = 60.0


class Absent(Exception):
    """Java or Maven is not there."""


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def classpath(name: str, folder: Path) -> str:
    """The jars of `NAME.xml`, fetched by Maven into its own cache."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        raise Absent("java and mvn are needed to start the servers of the tests")
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
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"Maven cannot fetch {name}: {done.stdout[-2000:]}")
    return target.read_text(encoding="utf-8").strip()


class Server:
    """One Java process that can be killed and started again on the same address and data."""

    def __init__(self, name: str, folder: Path, port: int, command: list[str]) -> None:
        self.name, self.port = name, port
        self._log = folder / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and return when the port answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(
            f"{self.name} does not start: {self._log.read_text(encoding='utf-8', errors='replace')[-3000:]}"
        )

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End the process."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(30)


class Kafka(Server):
    """One broker that is its own controller."""

    def __init__(self, folder: Path) -> None:
        port, controller = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        java = [
            "java",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            classpath("kafka", folder),
        ]
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
        }
        file = folder / "server.properties"
        file.write_text(
            "".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8"
        )
        format_command = [
            *java,
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id()}",
            "-c",
            str(file),
        ]
        done = subprocess.run(
            format_command, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"Kafka's storage cannot be formatted: {done.stdout[-1000:]}{done.stderr[-2000:]}"
            )
        super().__init__("kafka", folder, port, [*java, "kafka.Kafka", str(file)])
        self.start()

    @property
    def bootstrap(self) -> str:
        """Its address."""
        return f"127.0.0.1:{self.port}"


class S3(Server):
    """S3Proxy over a folder."""

    def __init__(self, folder: Path) -> None:
        self.access_key, self.secret_key = "tests", uuid.uuid4().hex
        port = free_port()
        (folder / "buckets").mkdir(parents=True, exist_ok=True)
        settings = {
            "s3proxy.endpoint": f"http://127.0.0.1:{port}",
            "s3proxy.authorization": "aws-v4",
            "s3proxy.identity": self.access_key,
            "s3proxy.credential": self.secret_key,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(folder / "buckets"),
        }
        file = folder / "s3proxy.conf"
        file.write_text(
            "".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8"
        )
        file.chmod(0o600)
        java = [
            "java",
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            classpath("s3", folder),
        ]
        super().__init__(
            "s3", folder, port, [*java, "org.gaul.s3proxy.Main", "--properties", str(file)]
        )
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The settings that point at it."""
        return {
            "SIGMA_S3_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "SIGMA_S3_ACCESS_KEY": self.access_key,
            "SIGMA_S3_SECRET_KEY": self.secret_key,
        }


def cluster_id() -> str:
    """A new id in the form that Kafka wants: 16 bytes, base64 for URLs."""
    import base64

    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


@contextmanager
def stopped(server: Server) -> Iterator[Server]:
    """The server until the block ends."""
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    """Both servers, until a signal."""
    folder = Path(sys.argv[1]).absolute()
    with ExitStack() as stack:
        kafka = Kafka(folder / "kafka")
        stack.enter_context(stopped(kafka))
        s3 = S3(folder / "s3")
        stack.enter_context(stopped(s3))
        for name, value in ({"SIGMA_KAFKA_BOOTSTRAP": kafka.bootstrap} | s3.environment).items():
            print(f"export {name}={value}", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        signal.pause()


if __name__ == "__main__":
    os.umask(0o077)
    main()
