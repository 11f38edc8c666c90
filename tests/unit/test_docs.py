"""The docs' picture of the house is the house."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_of_the_code_stands_in_the_concepts_with_the_question_it_answers() -> None:
    concepts = " ".join((ROOT / "docs" / "concepts.md").read_text(encoding="utf-8").split())
    folders = [
        path
        for package in ("model", "ops", "schemas", "stream", "workers")
        for path in sorted((ROOT / package).rglob("__init__.py"))
    ]
    assert len(folders) > 15
    missing = []
    for path in folders:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        question = " ".join(docstring.split("\n\n")[0].split())
        entry = f"`{path.parent.relative_to(ROOT)}/` {question}"
        if entry not in concepts:
            missing.append(entry)
    assert not missing, "docs/concepts.md does not introduce these folders as they do themselves"
