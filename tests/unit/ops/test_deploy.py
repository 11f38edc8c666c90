"""The deployment files: well-formed, without default secrets, and every command, setting and metric in them exists."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from ops.cli import parser
from workers.metrics import IndexMetrics, IntakeMetrics, Metrics

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
OURS = ("init", "intake", "index", "scheduler", "query")


def test_every_command_of_ours_is_one_that_the_command_line_knows() -> None:
    for name in OURS:
        parser().parse_args(COMPOSE["services"][name]["command"])


def test_every_setting_is_one_that_is_read() -> None:
    known = set(re.findall(r"SIGMA_[A-Z0-9_]+", (ROOT / "schemas" / "settings.py").read_text(encoding="utf-8")))
    for name in OURS:
        assert set(COMPOSE["services"][name]["environment"]) <= known


def test_no_secret_has_a_default_and_no_port_is_open_beyond_loopback() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"):
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses)
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_every_service_has_limits_and_all_that_stay_have_a_health_check() -> None:
    for name, service in COMPOSE["services"].items():
        if name != "init":
            assert "healthcheck" in service, name
            assert service["deploy"]["resources"]["limits"]["memory"], name


def test_what_is_mounted_and_copied_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), volume
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line


def test_dashboards_and_alerts_ask_for_metrics_that_exist() -> None:
    registries: list[CollectorRegistry] = [IndexMetrics().registry, IntakeMetrics().registry, Metrics().registry]
    names = {name for registry in registries for family in registry.collect() for name in names_of(family)}
    board = json.loads((ROOT / "ops/deploy/grafana/dashboards/sigma.json").read_text(encoding="utf-8"))
    rules = yaml.safe_load((ROOT / "ops/deploy/alerts.yml").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used = {name for expression in asked for name in re.findall(r"sigma_[a-z_]+", expression)}
    assert len(used) > 10
    assert used <= names


def names_of(family: Any) -> set[str]:
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
    return {family.name + ending for ending in endings}
