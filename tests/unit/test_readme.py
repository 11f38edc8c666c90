"""The README's picture of the house is the house."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_module_stands_in_the_readme_with_the_first_line_of_its_docstring() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [path for package in ("model", "ops", "schemas", "stream", "workers") for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(modules) > 100
    missing = []
    for path in modules:
        words = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
        shown = f"{path.parent.relative_to(ROOT)}/" if path.name == "__init__.py" else f"  {path.name}"
        if not any(line.startswith(shown) and line.endswith(words) for line in readme.splitlines()):
            missing.append(str(path.relative_to(ROOT)))
    assert not missing, "the README's tree does not show these as they are"
