"""Profile documents: every number of a profile by name, TOML for people, JSON for checkpoints.

The fields of the dataclasses are the keys, so a field that is added there is read, checked and
written without a line here. Stages are tables under their names: `[stages.align]`.
"""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from model.network.profiles import PROFILES, Profile, Stage, Stages, TinySize, profile
from schemas.errors import UsageError
from schemas.records import JsonObject

# Names the built-in profile whose numbers hold where a file says nothing.
BASE_KEY = "base"

# How a file of a profile ends; anything else names a built-in one.
SUFFIX = ".toml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_SHARE = (0, 1)
_COUNT = (1, 1 << 20)

# What numbers may be, ends included, by field; of others `_ANY_COUNT` or `_ANY_AMOUNT`.
_BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (0, 1000),
    "learning_rate": _SHARE,
    "warmup": _SHARE,
    "weight_decay": _SHARE,
    # A mean over all gradients alike would never move.
    "beta2": (0, 0.999_999),
    "without_suffix": _SHARE,
    "shortened": _SHARE,
    "hidden_words": _SHARE,
    "held_out": (0, 0.5),
    "wins": _SHARE,
    "batch": _COUNT,
    "rounds": (1, 100),
    "codes": _COUNT,
    "suffixes": _COUNT,
    "embedding_width": (1, 1 << 16),
    "max_text_tokens": (8, 1 << 15),
    "subspaces": (1, 64),
    "min_pixels": (1, 1 << 26),
    "max_pixels": (1, 1 << 26),
}
_ANY_COUNT = (0, 1 << 40)
_ANY_AMOUNT = (0, 1_000_000)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
# Of `TinySize` nothing may be zero.
_TINY_COUNT = (1, 1 << 20)


def read_profile(name: str) -> Profile:
    """The built-in profile of a name, or that of a TOML file.

    `UsageError` for a name or a file that there is not, and for anything in it that is no profile.
    """
    if not name.endswith(SUFFIX):
        if name not in PROFILES:
            raise UsageError(
                f"profile must be one of {', '.join(PROFILES)} or a file that ends in {SUFFIX}, "
                f"got {name!r}"
            )
        return profile(name)
    file = Path(name)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"profile {file} cannot be read ({error}); correct the file") from error
    document.setdefault("name", file.stem)
    return profile_of(document, str(file))


def profile_of(document: Mapping[str, Any], source: str) -> Profile:
    """The profile that a document describes; `source` names it in errors.

    `UsageError` names the key that is unknown, missing, of another type or out of its range.
    """
    rest = dict(document)
    base = rest.pop(BASE_KEY, None)
    if base is not None and base not in PROFILES:
        raise _misfit(source, BASE_KEY, f"one of {', '.join(PROFILES)}", base)
    found: Profile = _read_dataclass(
        Profile, rest, None if base is None else PROFILES[base], source, ""
    )
    _check(found, source)
    return found


def recorded_profile(name: str, document: Mapping[str, Any] | None) -> Profile:
    """The profile that a generation was trained with.

    Versions that recorded no numbers knew built-in profiles only. Keys of a later version are left
    out: where they matter, the checkpoint has another format.
    """
    if document is None:
        return profile(name)
    base = PROFILES.get(name)
    if base is None:
        base = next(iter(PROFILES.values()))
    known = _known(document, profile_document(base))
    return profile_of(known, f"the record of profile {name}")


def profile_document(chosen: Profile) -> JsonObject:
    """All fields of a profile as plain values, nested; null where there is none."""
    document: JsonObject = _plain(chosen)
    return document


def profile_toml(chosen: Profile) -> str:
    """The profile as a TOML file that `read_profile` reads as the same profile."""
    return "\n".join(_lines(profile_document(chosen), "")) + "\n"


def with_sources(chosen: Profile, model: str | None, teacher: str | None) -> Profile:
    """The profile with another model or teacher where one is named.

    `UsageError` for a profile that trains a small model of its own and takes neither.
    """
    if chosen.tiny is not None and (model or teacher):
        option = "--model" if model else "--teacher"
        raise UsageError(
            f"{option} needs a profile that trains pretrained weights, such as qwen-3b, got "
            f"{chosen.name}, whose model and teacher are made here; name another --profile"
        )
    return replace(chosen, model=model or chosen.model, teacher=teacher or chosen.teacher)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], Stage):
        return {stage.name: _plain(stage) for stage in value}
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        if isinstance(value, Stage):
            del hints["name"]
        # Whole numbers are allowed where fractions are; they are written like those.
        return {
            name: float(getattr(value, name)) if hint is float else _plain(getattr(value, name))
            for name, hint in hints.items()
        }
    return list(value) if isinstance(value, tuple) else value


def _lines(table: Mapping[str, Any], path: str) -> list[str]:
    """The lines of a table: its values, then the tables in it."""
    lines: list[str] = []
    if path and any(not isinstance(value, dict) for value in table.values()):
        lines += ["", f"[{path}]"]
    for key, value in table.items():
        if value is None:
            lines.append(f"# {key}: none")
        elif not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{path}.{key}" if path else key)
    return lines


def _known(document: Mapping[str, Any], pattern: Mapping[str, Any]) -> JsonObject:
    """A document without the keys that this version has none of, and without nulls."""
    known: JsonObject = {}
    for key, value in document.items():
        if value is None or key not in pattern:
            continue
        inner = pattern[key]
        if isinstance(value, Mapping):
            inner = _plain(TinySize()) if key == "tiny" else inner
            value = _known(value, inner) if isinstance(inner, Mapping) else value
        known[key] = value
    return known


def _read_dataclass(kind: Any, table: Any, base: Any, source: str, path: str) -> Any:
    """An instance of a dataclass from a table; what the table leaves out is the base's."""
    if not isinstance(table, Mapping):
        raise _misfit(source, path, "a table", table)
    hints = get_type_hints(kind)
    own = {field.name: field for field in fields(kind)}
    allowed = [name for name in own if not (kind is Stage and name == "name")]
    unknown = [key for key in table if key not in allowed]
    if unknown:
        raise UsageError(
            f"{source}: {_joined(path, unknown[0])} is no key of a profile, allowed are "
            f"{', '.join(allowed)}; correct it or leave it out"
        )
    values: dict[str, Any] = {}
    for name in allowed:
        key = _joined(path, name)
        before = MISSING if base is None else getattr(base, name)
        if name in table:
            values[name] = _read(hints[name], table[name], before, source, key, name)
        elif before is not MISSING:
            values[name] = before
        elif not _has_default(own[name], hints[name]):
            raise UsageError(
                f"{source}: {key} must be given, got nothing; add it, or start from a built-in "
                f'profile with {BASE_KEY} = "qwen-3b"'
            )
        elif own[name].default is MISSING:
            values[name] = None
    if kind is Stage:
        values["name"] = path.rpartition(".")[2]
    return _built(kind, values, source, path)


def _built(kind: Any, values: dict[str, Any], source: str, path: str) -> Any:
    try:
        return kind(**values)
    except UsageError as error:  # of a class that checks itself
        raise UsageError(f"{source}: {path}: {error}") from error


def _has_default(field: "Field[Any]", hint: Any) -> bool:
    return field.default is not MISSING or type(None) in get_args(hint)


def _read(hint: Any, value: Any, base: Any, source: str, key: str, name: str) -> Any:
    """A value of the type that a field's hint asks for."""
    if hint == Stages:
        return _read_stages(value, base, source, key)
    if get_origin(hint) in (Union, UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        inner = base if is_dataclass(base) else None
        return _read_dataclass(hint, value, inner, source, key)
    if get_origin(hint) is tuple:
        return _read_tuple(get_args(hint), value, source, key, name)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise _misfit(source, key, f"one of {', '.join(map(str, get_args(hint)))}", value)
        return value
    return _read_plain(hint, value, source, key, name)


def _read_stages(value: Any, base: Any, source: str, key: str) -> Any:
    names = [stage.name for stage in PROFILES["tiny"].stages]
    if not isinstance(value, Mapping):
        raise _misfit(source, key, f"tables {', '.join(names)}", value)
    for name in value:
        if name not in names:
            raise _misfit(source, key, f"tables {', '.join(names)}", name)
    stages = []
    for index, name in enumerate(names):
        before = None if base is MISSING else base[index]
        if before is None and name not in value:
            raise _misfit(source, key, f"tables {', '.join(names)}", ", ".join(value) or "none")
        stages.append(_read_dataclass(Stage, value.get(name, {}), before, source, f"{key}.{name}"))
    return tuple(stages)


def _read_tuple(hints: tuple[Any, ...], value: Any, source: str, key: str, name: str) -> Any:
    endless = len(hints) == 2 and hints[1] is Ellipsis
    if not isinstance(value, list) or (not endless and len(value) != len(hints)):
        raise _misfit(source, key, "a list" if endless else f"a list of {len(hints)}", value)
    kinds = [hints[0]] * len(value) if endless else hints
    return tuple(
        _read_plain(kind, item, source, key, name) for kind, item in zip(kinds, value, strict=True)
    )


def _read_plain(kind: type, value: Any, source: str, key: str, name: str) -> Any:
    # In Python a bool is an int too.
    given = type(value)
    if kind is float and given is int:
        value = float(value)
    elif given is not kind:
        raise _misfit(source, key, _WORDS.get(kind, kind.__name__), value)
    if kind in (int, float):
        low, high = _bounds(kind, key, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise _misfit(source, key, f"{_WORDS[kind]} from {low:,} to {high:,}", value)
    elif kind is str and not value:
        raise _misfit(source, key, "a text that is not empty", value)
    return value


def _bounds(kind: type, key: str, name: str) -> tuple[float, float]:
    if key.startswith("tiny."):
        return _TINY_COUNT
    return _BOUNDS.get(name, _ANY_COUNT if kind is int else _ANY_AMOUNT)


def _check(found: Profile, source: str) -> None:
    """`UsageError` for fields that contradict each other."""
    if not _NAME.fullmatch(found.name):
        raise _misfit(source, "name", "letters, digits, dots, dashes and underscores", found.name)
    if (found.model is None) == (found.tiny is None):
        raise UsageError(
            f"{source}: a profile must have either model, for pretrained weights, or the table "
            f"[tiny], for sizes of its own, got {'none' if found.model is None else 'both'}; keep "
            "one"
        )
    if found.min_pixels and found.max_pixels and found.min_pixels > found.max_pixels:
        most = f"at most max_pixels, {found.max_pixels}"
        raise _misfit(source, "min_pixels", most, found.min_pixels)
    size = found.tiny
    if size is not None:
        _check_tiny(size, source)


def _check_tiny(size: TinySize, source: str) -> None:
    pairs = (
        ("hidden", size.hidden, "twice the heads", 2 * size.heads),
        ("heads", size.heads, "kv_heads", size.kv_heads),
        ("vision_hidden", size.vision_hidden, "four times vision_heads", 4 * size.vision_heads),
        ("image_px", size.image_px, "twice patch_px", 2 * size.patch_px),
    )
    for name, value, words, divisor in pairs:
        if value % divisor:
            raise _misfit(source, f"tiny.{name}", f"a multiple of {divisor} ({words})", value)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _misfit(source: str, key: str, allowed: str, found: object) -> UsageError:
    return UsageError(f"{source}: {key} must be {allowed}, got {found!r}; correct it")
