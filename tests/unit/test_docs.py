"""The docs say what the code says."""

import ast
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from ops.cli import reference
from ops.cli.main import parser
from tests.doc_blocks import DRAWING, PAGES, ROOT, DocBlock, all_blocks

PACKAGES = ("model", "ops", "schemas", "stream", "workers")
CONSOLE = re.compile(r"^\$ sigma (.*)$", re.MULTILINE)
REASON = re.compile(r"not run as a test, because \w+ \w+")
BOXES = re.compile(r"[─│┌└►▼]")
OTHER_BLOCKS = re.compile(r"^(?: +(?:```|~~~)|~~~|<pre|(?<=\n\n) {4}\S)", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def test_every_folder_of_the_code_stands_in_the_concepts_with_the_question_it_answers() -> None:
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    folders = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("__init__.py"))]
    assert len(folders) > 15
    missing = []
    for path in folders:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        question = " ".join(docstring.split("?")[0].split())
        row = f"| `{path.parent.relative_to(ROOT)}/` | {question}? |"
        if row not in concepts.splitlines():
            missing.append(row)
    assert not missing, "docs/concepts.md lacks these rows"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_the_docs_is_one_that_the_command_line_takes(page: Path) -> None:
    for line in CONSOLE.findall(page.read_text(encoding="utf-8")):
        command = re.split(r"\s+(?:#|&&|\||>)", line)[0]
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        try:
            parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{page.relative_to(ROOT)} shows a command that does not parse: {line}")


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: f"{block.page}:{block.line}")
def test_every_block_is_run_by_a_test_or_says_why_not(block: DocBlock) -> None:
    said = REASON.search(block.beside)
    if block.words == (DRAWING,):
        assert BOXES.search(block.code), "a drawing has lines and arrows"
        assert not re.search(r"^\s*\$ ", block.code, re.MULTILINE)
    elif block.words:
        assert block.tests == block.words, "only files of tests and `drawing` stand there"
        assert said is None, "it is run and says that it is not"
        for test in block.tests:
            source = (ROOT / test).read_text(encoding="utf-8")
            # The helper gives a test all blocks of a page and language that are marked with it.
            wanted = rf'blocks\("{re.escape(block.page)}", "{block.language}"\)'
            assert re.search(wanted, source), f"{test} does not take the blocks of {block.page}"
    else:
        assert said, "name the test behind the block's language, or say beside it why there is none"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_stands_in_blocks_that_are_looked_at(page: Path) -> None:
    assert OTHER_BLOCKS.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_in_the_docs_leads_to_a_file(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not (page.parent / target).exists():
            broken.append(target)
    assert not broken, f"{page.relative_to(ROOT)} links to files that do not exist"


def test_every_python_file_that_the_docs_name_exists() -> None:
    named = re.compile(r"`((?:model|ops|schemas|stream|workers|tests)/[\w/.-]+\.\w+)`")
    missing = []
    for page in PAGES:
        for name in named.findall(page.read_text(encoding="utf-8")):
            if not (ROOT / name).exists():
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert not missing


def test_the_page_of_dependencies_has_those_of_the_project_and_no_others() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    rows = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").split("## Ours")[0]
    named = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (`[^|]*)\|", rows, re.MULTILINE)))
    assert sorted(named) == sorted(re.split(r"[\[<>=]", package)[0] for package in wanted)


def test_every_alert_has_a_section_in_the_operations_page_and_every_section_an_alert() -> None:
    rules = (ROOT / "ops" / "deploy" / "files" / "alerts.yml").read_text(encoding="utf-8")
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## ([A-Z]\w+)$", page, re.MULTILINE))
    assert len(alerts) > 10
    assert sections == alerts


def test_the_readme_fits_on_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_pages_of_settings_and_commands_are_what_the_code_says() -> None:
    for file, text in reference.pages().items():
        assert file.read_text(encoding="utf-8") == text, (
            f"{file.name} is out of date; write it with: python -m ops.cli.reference"
        )
