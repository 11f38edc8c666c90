"""The named SQL queries and the migrations, read from the `.sql` files beside this module."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One forward step of the schema."""

    version: int
    name: str
    sql: bytes


@cache
def queries() -> Mapping[str, bytes]:
    """Every named query by its name. Bytes, because that is how psycopg takes SQL that is not a literal."""
    found: dict[str, bytes] = {}
    for file in sorted(resources.files("schemas").joinpath("sql").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            for name, text in split_queries(file.read_text(encoding="utf-8")).items():
                if name in found:
                    raise ValueError(f"query {name} in {file.name} is defined twice; rename one")
                found[name] = text.encode()
    return MappingProxyType(found)


def split_queries(text: str) -> dict[str, str]:
    """Splits the text of one file at its `-- name:` lines; comments and the final semicolon are dropped."""
    parts = _NAME.split(text)
    bodies = (
        "\n".join(line for line in body.splitlines() if not line.startswith("--"))
        for body in parts[2::2]
    )
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], bodies, strict=True)}


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations in order; file names are `NNNN_name.sql`."""
    folder = resources.files("schemas").joinpath("sql").joinpath("migrations")
    steps = [
        Migration(
            version=int(file.name[:4]),
            name=file.name[5:-4],
            sql=file.read_text(encoding="utf-8").encode(),
        )
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return tuple(sorted(steps, key=lambda step: step.version))
