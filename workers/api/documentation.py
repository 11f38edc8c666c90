"""The documentation page: the description of the API as one page that loads nothing.

It is made of `/openapi.json` when the worker starts, so it says what that says. No script, no
style sheet and no font comes from anywhere.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Response

from schemas.records import JsonObject
from workers.api.addresses import DESCRIPTION_PATH, DOCUMENTATION_PATH

_HEADERS: Final = {
    # Whatever an attacker may get into the page, the browser loads and runs nothing.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
h2 { margin-top: 2.5rem; } h3 { margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid #ddd; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616; } a { color: #8ab4ff; }
  th, td { border-color: #444; }
}
"""

_METHODS = ("get", "put", "post", "delete")


def add_documentation(app: FastAPI) -> None:
    """Serve the page, made of the application's description."""
    router = APIRouter()

    @router.get(DOCUMENTATION_PATH, include_in_schema=False)
    async def page() -> Response:
        return Response(documentation_page(app.openapi()), media_type="text/html", headers=_HEADERS)

    app.include_router(router)


def documentation_page(description: JsonObject) -> str:
    """Write the page of a description of an API."""
    title = escape(description["info"]["title"])
    sections = []
    for path, operations in description["paths"].items():
        for method in _METHODS:
            if method in operations:
                sections.append(_operation(method, path, operations[method]))
    schemas = description.get("components", {}).get("schemas", {})
    records = [_record(name, schema) for name, schema in sorted(schemas.items())]
    about = escape(description["info"]["description"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p>{about}. For programs: <a href="{DESCRIPTION_PATH}">{DESCRIPTION_PATH}</a>.</p>
<h2>Requests</h2>
{"".join(sections)}
<h2>Records</h2>
{"".join(records)}
</body></html>
"""


def _operation(method: str, path: str, operation: JsonObject) -> str:
    name = escape(operation.get("operationId", ""))
    head = f"{method.upper()} {path}"
    parts = [
        f'<section id="{name}"><h3><code>{escape(head)}</code></h3>',
        f"<p>{escape(operation.get('summary', ''))}. Operation <code>{name}</code>.</p>",
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = []
        for parameter in parameters:
            needed = "required" if parameter.get("required") else ""
            about = parameter.get("description", "")
            rows.append((parameter["name"], _kind(parameter.get("schema", {})), needed, about))
        parts.append(_table(("parameter", "kind", "", "meaning"), rows))
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        rows = [
            (media_type, _kind(form.get("schema", {})), "", "") for media_type, form in body.items()
        ]
        parts.append(_table(("body", "kind", "", ""), rows))
        schema = body.get("application/json", {}).get("schema", {})
        if "properties" in schema:
            parts.append(_fields(schema))
    rows = []
    for status, answer in sorted(operation["responses"].items()):
        kinds = [_kind(form.get("schema", {})) for form in answer.get("content", {}).values()]
        rows.append((status, ", ".join(dict.fromkeys(kinds)), "", answer.get("description", "")))
    parts.append(_table(("status", "answer", "", ""), rows))
    return "".join([*parts, "</section>"])


def _record(name: str, schema: JsonObject) -> str:
    about = escape(schema.get("description", ""))
    head = f'<section id="record-{escape(name)}"><h3><code>{escape(name)}</code></h3>'
    return f"{head}<p>{about}</p>{_fields(schema)}</section>"


def _fields(schema: JsonObject) -> str:
    required = schema.get("required", [])
    rows = []
    for name, field in schema.get("properties", {}).items():
        needed = "required" if name in required else ""
        rows.append((name, _kind(field), needed, field.get("description", "")))
    return _table(("field", "kind", "", "meaning"), rows) if rows else ""


def _kind(schema: Mapping[str, Any]) -> str:
    """Say in a few words what a value is."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for choice in ("anyOf", "oneOf"):
        if choice in schema and "type" not in schema:
            return " or ".join(_kind(one) for one in schema[choice])
    if "const" in schema or "enum" in schema:
        return " or ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    bounds = [
        f"{words} {schema[name]}"
        for name, words in (
            ("minimum", "from"),
            ("maximum", "to"),
            ("minLength", "at least"),
            ("maxLength", "at most"),
        )
        if name in schema
    ]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        lines.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"
