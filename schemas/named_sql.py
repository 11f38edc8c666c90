"""The named SQL queries and the migrations, read from the `.sql` files beside this module."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType

_QUERY_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One forward step of the schema."""

    version: int
    name: str
    sql: bytes


@cache
def queries() -> Mapping[str, bytes]:
    """Read every named query, by its name.

    Bytes, because that is how psycopg takes SQL that is not a literal.
    """
    by_name: dict[str, bytes] = {}
    # Sorted, so that a name that is defined twice is always reported for the same file.
    for file in sorted(_sql_folder().iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        for name, text in split_queries(file.read_text(encoding="utf-8")).items():
            if name in by_name:
                raise ValueError(f"query {name} in {file.name} is defined twice; rename one")
            by_name[name] = text.encode()
    return MappingProxyType(by_name)


def split_queries(text: str) -> dict[str, str]:
    """Split the text of one file at its `-- name:` lines.

    Returns each query by name, without comment lines and without the final semicolon.
    """
    # With a group in the pattern, split gives: preamble, name, body, name, body, …
    parts = _QUERY_NAME.split(text)
    by_name: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in body.splitlines() if not line.startswith("--")]
        by_name[name] = "\n".join(lines).strip().rstrip(";")
    return by_name


@cache
def migrations() -> tuple[Migration, ...]:
    """Read all migrations, in the order in which they are applied.

    The file `0003_jobs.sql` is version 3, named jobs.
    """
    steps: list[Migration] = []
    for file in _sql_folder().joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            version, _, name = file.name.removesuffix(".sql").partition("_")
            sql = file.read_text(encoding="utf-8").encode()
            steps.append(Migration(version=int(version), name=name, sql=sql))
    return tuple(sorted(steps, key=lambda step: step.version))


def _sql_folder() -> Traversable:
    return resources.files("schemas").joinpath("sql")
