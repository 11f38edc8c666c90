"""docs/training-walkthrough.md names functions and files that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training-walkthrough.md"

NAMED = re.compile(r"`((?:\w+/)+\w+\.py)`\s+`([\w.]+)`")
"""A file followed by the name of a function, or of a method as `Class.method`."""

FILE = re.compile(r"`((?:\w+/)+\w+\.py)`")


def definitions(path: Path) -> set[str]:
    """Names of a module's functions and classes, and of their methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef)
            }
    return names


def test_every_function_of_the_walkthrough_exists() -> None:
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) > 30
    missing = [f"{file} {name}" for file, name in named if name not in definitions(ROOT / file)]
    assert not missing


def test_every_file_of_the_walkthrough_exists() -> None:
    files = FILE.findall(PAGE.read_text(encoding="utf-8"))
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_walkthrough_names_the_steps_in_the_order_in_which_they_run() -> None:
    page = PAGE.read_text(encoding="utf-8")
    steps = ("begin_run", "prepare", "run_stages", "InitialLoader.load_from_parent", "publish")
    positions = [page.index(f"`{step}`") for step in steps]
    assert positions == sorted(positions)
