"""The Kubernetes manifests: valid, without rights, about commands and addresses that exist."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ops.cli.main import parser
from schemas.settings import Settings, documented_settings
from tests.doc_blocks import blocks
from workers.api.addresses import HEALTH_PATH, READINESS_PATH
from workers.runtime.metrics_server import METRICS_PATH

FOLDER = Path(__file__).resolve().parents[3] / "ops/deploy/files/kubernetes"

VERSIONS = ("1.27", kubernetes_validate.latest_version())
"""The oldest one that manifests are written for, and the newest that is known."""

SECRET_NAMES = {"sigma-secrets", "sigma-api-keys"}


def documents() -> Iterator[dict[str, Any]]:
    """All objects of all manifests."""
    for file in sorted(FOLDER.glob("*.yaml")):
        if file.name != "kustomization.yaml":
            yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


OBJECTS = {(document["kind"], document["metadata"]["name"]): document for document in documents()}
PODS = {
    name: document["spec"]["template"]
    for (kind, name), document in OBJECTS.items()
    if kind in ("Deployment", "Job")
}
SETTINGS = dict(
    line.split("=", 1)
    for line in (FOLDER / "settings.env").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_of_its_kind(version: str) -> None:
    assert len(OBJECTS) >= 10
    for document in OBJECTS.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_kustomization_names_every_manifest_and_renders() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(FOLDER)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pods = [
        document["spec"]["template"]["spec"]
        for document in yaml.safe_load_all(rendered)
        if document["kind"] in ("Deployment", "Job")
    ]
    assert len(pods) == len(PODS)
    for pod in pods:
        assert pod["containers"][0]["image"].startswith("registry.example.org/sigma-stream:")


def test_the_overlay_of_the_readme_names_the_image_by_digest_and_renders(tmp_path: Path) -> None:
    (document,) = blocks("ops/deploy/files/README.md", "yaml")
    digest = f"sha256:{'0' * 64}"
    kustomization = yaml.safe_load(document.replace("sha256:…", digest))
    (image,) = kustomization["images"]
    renamed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["images"]
    assert image["name"] in {entry["newName"] for entry in renamed}
    for name in (*kustomization["resources"], *kustomization["components"]):
        assert (FOLDER / "overlay" / name / "kustomization.yaml").is_file() or (
            FOLDER.parent / name.removeprefix("../") / "kustomization.yaml"
        ).is_file()
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/settings.env").write_text("SIGMA_BEAMS=30\n")
    (tmp_path / "overlay/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    command = ["kubectl", "kustomize", str(tmp_path / "overlay")]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for document in yaml.safe_load_all(rendered):
        if document["kind"] in ("Deployment", "Job"):
            (container,) = document["spec"]["template"]["spec"]["containers"]
            assert container["image"] == f"YOUR-REGISTRY/sigma-stream@{digest}"


def test_a_gpu_goes_to_each_process_that_runs_a_model() -> None:
    component = yaml.safe_load((FOLDER / "gpu/kustomization.yaml").read_text(encoding="utf-8"))
    (patch,) = component["patches"]
    assert set(patch["target"]["name"].split("|")) == {"index", "query", "scheduler"}
    (operation,) = yaml.safe_load(patch["patch"])
    found: Any = OBJECTS["Deployment", "index"]
    *parents, _ = operation["path"].strip("/").split("/")
    for part in parents:
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert "memory" in found


def test_every_command_is_one_of_ours_and_every_setting_is_read() -> None:
    assert PODS.keys() == {"init", "intake", "index", "query", "scheduler"}
    for pod in PODS.values():
        parser().parse_args(pod["spec"]["containers"][0]["args"])
    documented = {setting.variable for setting in documented_settings()}
    assert SETTINGS.keys() <= documented
    # They are accepted together, with the secrets that the pods get beside them.
    secrets = {"SIGMA_S3_ACCESS_KEY": "a", "SIGMA_S3_SECRET_KEY": "b"}
    Settings.from_environment(SETTINGS | secrets)


def test_probes_ask_ports_and_addresses_that_are_there() -> None:
    ports = {"metrics": int(SETTINGS["SIGMA_METRICS_PORT"]), "api": 8631}
    for name, pod in PODS.items():
        (container,) = pod["spec"]["containers"]
        for port in container.get("ports", ()):
            assert port["containerPort"] == ports[port["name"]]
        kinds = ("startupProbe", "livenessProbe", "readinessProbe")
        asked = {kind: container[kind]["httpGet"] for kind in kinds if kind in container}
        wanted = {"init": {}, "query": {HEALTH_PATH, READINESS_PATH}}.get(name, {METRICS_PATH})
        assert {get["path"] for get in asked.values()} == set(wanted)
        assert {get["port"] for get in asked.values()} <= {
            "api" if name == "query" else "metrics",
        }
    readiness = PODS["query"]["spec"]["containers"][0]["readinessProbe"]
    assert readiness["httpGet"]["path"] == READINESS_PATH


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_has_no_rights_and_limits(name: str) -> None:
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() == {"cpu", "memory"}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {"/tmp", SETTINGS["SIGMA_HOME"]} <= mounts.keys()
    assert {mount["name"] for mount in mounts.values()} == {
        volume["name"] for volume in spec["volumes"]
    }


def test_checkpoints_are_written_by_the_one_scheduler_alone() -> None:
    spec = OBJECTS["Deployment", "scheduler"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    writers = {
        name
        for name, pod in PODS.items()
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "generations" and not mount.get("readOnly")
    }
    assert writers == {"scheduler"}


def test_secrets_are_named_and_never_held() -> None:
    assert not any(kind == "Secret" for kind, _ in OBJECTS)
    assert not any(word in name for name in SETTINGS for word in ("PASSWORD", "SECRET", "API_KEY"))
    assert "SIGMA_DATABASE_URL" not in SETTINGS
    named = {
        source["secretRef"]["name"]
        for pod in PODS.values()
        for source in pod["spec"]["containers"][0]["envFrom"]
        if "secretRef" in source
    }
    assert named == SECRET_NAMES
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"create secret generic {name}" in readme for name in SECRET_NAMES)


def test_what_points_at_pods_finds_them() -> None:
    labels = PODS["query"]["metadata"]["labels"]
    assert OBJECTS["Service", "query"]["spec"]["selector"] == labels
    assert OBJECTS["PodDisruptionBudget", "query"]["spec"]["selector"]["matchLabels"] == labels
    scaler = OBJECTS["HorizontalPodAutoscaler", "query"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "query"
    # Otherwise each apply would set the number back.
    assert "replicas" not in OBJECTS["Deployment", "query"]["spec"]
    for (kind, name), document in OBJECTS.items():
        if kind == "Deployment":
            selector = document["spec"]["selector"]["matchLabels"]
            assert selector == PODS[name]["metadata"]["labels"]
