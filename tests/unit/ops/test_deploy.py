"""The deployment files: well-formed, without default secrets.

Every command, setting and metric in them exists.
"""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry

from ops.cli.main import parser
from ops.deploy.export import DISTRIBUTIONS, ExportRequest, export
from schemas.events import ACCEPTED, ARRIVED
from schemas.settings import documented_settings
from stream.log.topics import TOPICS
from tests.doc_blocks import blocks
from workers.runtime import metrics, query_metrics

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "ops/deploy/files"
COMPOSE: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text(encoding="utf-8"))
BOARD: dict[str, Any] = json.loads(
    (FILES / "grafana/dashboards/sigma.json").read_text(encoding="utf-8")
)
RULES: dict[str, Any] = yaml.safe_load((FILES / "alerts.yml").read_text(encoding="utf-8"))
OURS = ("init", "intake", "index", "scheduler", "query")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as `sigma deploy export` writes them, with empty files in place of wheels."""
    folder = tmp_path_factory.mktemp("export")
    for name in DISTRIBUTIONS:
        (folder / f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl").touch()
    export(ExportRequest(folder / "there", folder))
    return folder / "there"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_fit_the_schema_of_compose(name: str) -> None:
    package = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(package.read_text(encoding="utf-8"))
    file = yaml.safe_load((FILES / name).read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(file)


def test_the_stack_is_at_the_root_of_a_checkout_too() -> None:
    assert (ROOT / "compose.yaml").resolve() == FILES / "compose.yaml"


def test_every_command_of_ours_is_one_that_the_command_line_knows() -> None:
    for name in OURS:
        parser().parse_args(COMPOSE["services"][name]["command"])


def test_every_setting_is_one_that_is_read() -> None:
    known = {documented.variable for documented in documented_settings()}
    for name in OURS:
        assert set(COMPOSE["services"][name]["environment"]) <= known


def test_no_secret_has_a_default_and_no_port_is_open_beyond_loopback() -> None:
    text = (FILES / "compose.yaml").read_text(encoding="utf-8")
    for name in (
        "POSTGRES_PASSWORD",
        "S3_ACCESS_KEY",
        "S3_SECRET_KEY",
        "GRAFANA_PASSWORD",
        "SIGMA_API_KEYS",
    ):
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses)
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_file_for_gpus_gives_one_to_each_process_that_runs_a_model_and_to_no_other() -> None:
    text = (FILES / "compose.gpu.yaml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    assert services.keys() == {"index", "query", "scheduler"} <= COMPOSE["services"].keys()
    for service in services.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])


PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)*@sha256:[0-9a-f]{64}")
"""A name, an exact version and the digest of its index."""


def test_every_image_of_others_has_an_exact_version_and_a_digest_and_ours_its_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    images = {name: service["image"] for name, service in COMPOSE["services"].items()}
    assert {images.pop(name) for name in OURS} == {f"sigma-stream:{version[1]}"}
    dockerfile = (FILES / "Dockerfile").read_text(encoding="utf-8")
    (images["base"],) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"$PYTHON_IMAGE"}
    assert len(images) >= 7
    assert [name for name, image in images.items() if not PINNED.fullmatch(image)] == []
    kustomization = yaml.safe_load((FILES / "kubernetes/kustomization.yaml").read_text())
    assert [image["newTag"] for image in kustomization["images"]] == [version[1]]


def test_every_service_has_limits_and_all_that_stay_have_a_health_check() -> None:
    for name, service in COMPOSE["services"].items():
        if name != "init":
            assert "healthcheck" in service, name
            assert service["deploy"]["resources"]["limits"]["memory"], name


def test_what_is_mounted_and_copied_is_exported(exported: Path) -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (exported / source).exists(), volume
    copies = re.findall(
        r"^COPY (?!--from)(.+) \S+$",
        (exported / "Dockerfile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    names = [name for line in copies for name in line.split()]
    allowed = (exported / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert names
    assert all((exported / name).exists() for name in names)
    # Everything else stays out of the image, secrets most of all.
    assert sorted(line for line in allowed if line[0] != "#") == sorted(
        ["*", *(f"!{name}" for name in names)]
    )


@pytest.fixture(scope="module")
def families() -> dict[str, set[str]]:
    """The samples of every metric of the workers, by the metric's name."""
    found = {}
    for name, metrics_class in {**vars(metrics), **vars(query_metrics)}.items():
        if name.endswith("Metrics"):
            registry: CollectorRegistry = metrics_class().registry
            for family in registry.collect():
                found[family.name] = sample_names(family)
    return found


def test_dashboards_and_alerts_ask_for_metrics_that_exist(families: dict[str, set[str]]) -> None:
    used = set()
    for expression in expressions():
        used |= set(re.findall(r"sigma_[a-z0-9_]+", expression))
    assert len(used) > 20
    assert used <= set().union(*families.values())


@pytest.mark.parametrize("page", ["deployment.md", "operations.md", "scale.md", "http.md"])
def test_every_metric_that_the_docs_name_exists(page: str, families: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`(sigma_[a-z0-9_]+)", text)) - {"sigma_stream_client"}
    assert named <= families.keys() | set().union(*families.values())
    if page == "deployment.md":
        assert len(named) >= 10


def test_the_guide_names_the_number_of_partitions() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (number,) = re.findall(r"the topics have (\d+) unless", text)
    shared = {topic.partitions for topic in TOPICS if topic.name in (ARRIVED, ACCEPTED)}
    assert shared == {int(number)}


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [cell for panel in panels for cell in cells(panel["gridPos"])]
    assert len(taken) == len(set(taken))


def test_every_rule_says_how_urgent_it_is_and_names_commands_that_exist() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        summary = rule["annotations"]["summary"]
        for command, word in re.findall(r"\bsigma ([a-z-]+) ([a-z-]+)", summary):
            parser().parse_args([command, word])


def test_a_label_named_job_survives_the_scrape() -> None:
    # Prometheus calls the target that it scrapes `job` too, and renames ours unless labels are
    # honoured.
    text = (FILES / "prometheus.yml").read_text(encoding="utf-8")
    scrapes = yaml.safe_load(text)["scrape_configs"]
    assert any("(job" in expression or "{job" in expression for expression in expressions())
    assert all(scrape["honor_labels"] is True for scrape in scrapes)
    targets = [target for scrape in scrapes for target in scrape["dns_sd_configs"]]
    names = {name for target in targets for name in target["names"]}
    assert {"intake", "index", "scheduler", "query"} <= names


def test_the_scrape_of_the_page_keeps_the_labels_and_sends_a_key() -> None:
    (document,) = blocks("docs/operations.md", "yaml")
    (scrape,) = yaml.safe_load(document)["scrape_configs"]
    assert scrape["honor_labels"] is True
    assert scrape["authorization"].keys() == {"credentials_file"}
    ours = yaml.safe_load((FILES / "prometheus.yml").read_text(encoding="utf-8"))
    assert scrape["job_name"] in {known["job_name"] for known in ours["scrape_configs"]}


def test_prometheus_asks_every_worker_on_the_port_that_needs_no_key() -> None:
    text = (FILES / "prometheus.yml").read_text(encoding="utf-8")
    scrapes = yaml.safe_load(text)["scrape_configs"]
    ports = {}
    for target in [target for scrape in scrapes for target in scrape["dns_sd_configs"]]:
        ports |= dict.fromkeys(target["names"], target["port"])
    for name in ("intake", "index", "scheduler", "query"):
        environment = COMPOSE["services"][name]["environment"]
        assert ports[name] == ports[f"tasks.{name}"] == int(environment["SIGMA_METRICS_PORT"])
        # Prometheus is another container: it does not reach this one's loopback.
        assert environment["SIGMA_METRICS_HOST"] == "0.0.0.0"


def test_the_query_service_listens_to_everybody_and_so_has_keys() -> None:
    environment = COMPOSE["services"]["query"]["environment"]
    assert environment["SIGMA_HTTP_HOST"] == "0.0.0.0"
    assert environment["SIGMA_API_KEYS"].startswith("${SIGMA_API_KEYS:?")


def rules() -> list[dict[str, Any]]:
    """Every alerting rule."""
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Every expression of the dashboard and of the rules."""
    panels = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    return panels + [rule["expr"] for rule in rules()]


def cells(place: dict[str, int]) -> list[tuple[int, int]]:
    """Cells of the dashboard's grid that a panel covers."""
    columns = range(place["x"], place["x"] + place["w"])
    lines = range(place["y"], place["y"] + place["h"])
    return [(x, y) for x in columns for y in lines]


def sample_names(family: Any) -> set[str]:
    """Names under which a family's samples are stored."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for ending in endings.get(family.type, ("",))}
