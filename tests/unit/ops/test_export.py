"""`sigma deploy export`: a folder that needs no checkout, without a secret that others know."""

import re
import stat
from pathlib import Path

import pytest

from ops.cli.main import main
from ops.deploy.export import DISTRIBUTIONS, ExportRequest, export
from ops.deploy.installed_wheel import pack
from schemas.api_keys import ApiScope
from schemas.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Files in place of wheels, which take seconds to build: they are copied, not read."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in DISTRIBUTIONS:
        (folder / f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl").write_text(name)
    return folder


def test_a_folder_with_something_in_it_is_refused_and_replaced_by_force(
    tmp_path: Path, wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "there"
    command = ["deploy", "export", str(folder), "--wheels", str(wheels)]
    assert main([*command, "--generate-secrets"]) == 0
    (key,) = re.findall(r"^key    (\S+)$", capsys.readouterr().out, re.MULTILINE)
    secrets = (folder / ".env").read_text()
    assert key not in secrets
    assert main(command) == 2
    assert "needs an empty folder" in capsys.readouterr().err
    (folder / "compose.yaml").write_text("changed")
    (folder / "wheels" / "sigma_stream-0.0.9-py3-none-any.whl").write_text("older")
    assert main([*command, "--force"]) == 0
    assert "services:" in (folder / "compose.yaml").read_text()
    assert len(list((folder / "wheels").iterdir())) == len(DISTRIBUTIONS)
    # The database was made with these.
    assert (folder / ".env").read_text() == secrets
    assert main([*command, "--force", "--generate-secrets"]) == 2
    assert "services use already" in capsys.readouterr().err


def test_the_template_has_every_variable_of_compose_and_no_secret(
    tmp_path: Path, wheels: Path
) -> None:
    folder = tmp_path / "there"
    done = export(ExportRequest(folder, wheels))
    assert done.key is None
    assert not (folder / ".env").exists()
    asked = set()
    for name in ("compose.yaml", "compose.gpu.yaml"):
        asked |= set(re.findall(r"\$\{(\w+)", (folder / name).read_text(encoding="utf-8")))
    template = variables(folder / "env.example")
    assert template.keys() == asked
    required = re.findall(r"\$\{(\w+):\?", (folder / "compose.yaml").read_text(encoding="utf-8"))
    assert all(template[name] == "" for name in required)


def test_generated_secrets_are_private_and_differ_and_let_their_key_in(
    tmp_path: Path, wheels: Path
) -> None:
    made = [
        export(ExportRequest(tmp_path / name, wheels, generate_secrets=True)) for name in ("a", "b")
    ]
    first, second = (variables(tmp_path / name / ".env") for name in ("a", "b"))
    for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"):
        assert len(first[name]) >= 32
        assert first[name] != second[name]
    assert stat.S_IMODE((tmp_path / "a" / ".env").stat().st_mode) == 0o600
    assert made[0].key is not None
    (entry,) = first["SIGMA_API_KEYS"].split(",")
    assert entry.split(":")[1] == ApiScope.ADMIN
    assert made[0].key not in (tmp_path / "a" / ".env").read_text()


def test_an_installation_from_a_checkout_asks_for_wheels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be installed to be packed"):
        pack("no-such-distribution", tmp_path)
    with pytest.raises(UsageError, match="run make wheels"):
        export(ExportRequest(tmp_path / "there", tmp_path))
    assert not list(tmp_path.glob("*.whl"))


def test_every_package_of_the_image_has_the_version_of_the_constraints_and_hashes() -> None:
    text = (ROOT / "ops/deploy/files/requirements.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", text[text.index("\naccelerate") :].strip())
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    guide = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    for name, version in re.findall(r"(torch|torchvision)==([\d.]+)", guide):
        assert pins[name] == version
    named = set()
    for block in blocks:
        name, version = re.match(r"([\w-]+)==([\w.+]+)", block).groups()  # type: ignore[union-attr]
        assert pins.get(name, version) == version, name
        assert block.count("--hash=sha256:") >= 1, name
        named.add(name)
    assert {"torch", "transformers", "psycopg", "peft", "open-clip-torch"} <= named
    # Those that only other systems need have no pin.
    assert named - pins.keys() <= {"colorama"}


def variables(file: Path) -> dict[str, str]:
    """The variables of a file of environment variables."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
