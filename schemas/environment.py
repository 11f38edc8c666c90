"""Environment variables: how the text of a setting is read, checked and documented.

A field of a settings dataclass names its variable:

    beams: int = setting("SIGMA_BEAMS", whole(1, 1000), "…", default=20)

Everything else follows from that: reading, the refusal of a wrong value, and the documentation.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Generic, NamedTuple, TypeVar

from schemas.errors import UsageError

_METADATA_KEY = "variable"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Form(Generic[T_co]):
    """What a variable's text may be, and the value it stands for."""

    allowed: str
    """Completes "X must be …"."""
    parse: Callable[[str], T_co]
    """From text to value; raises `ValueError` with the part of the text that is not allowed."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    form: Form[object]
    about: str
    """Meaning and unit, for the documentation."""
    unset: str
    """What applies while it is not set, in words; empty when the field's default says it."""
    secret: bool
    """Whether the value may hold a password, so that no message may show it."""


class DocumentedSetting(NamedTuple):
    """One row of the documentation of settings."""

    variable: str
    default: str
    description: str


def setting(
    name: str, form: Form[T], about: str, *, default: T, unset: str = "", secret: bool = False
) -> T:
    """Declare a dataclass field that is read from the environment variable `name`.

    For a field without a default, use `field(metadata=variable(…))`.
    """
    metadata = variable(name, form, about, unset=unset, secret=secret)
    return field(default=default, repr=not secret, metadata=metadata)


def variable(
    name: str, form: Form[object], about: str, *, unset: str = "", secret: bool = False
) -> Mapping[str, Variable]:
    """Build the metadata of a dataclass field that is read from the variable `name`."""
    return {_METADATA_KEY: Variable(name, form, about, unset, secret)}


def read_variables(settings: type, environ: Mapping[str, str]) -> dict[str, Any]:
    """Read the fields of a settings dataclass whose variables are set and not empty.

    Returns values by field name. `UsageError` names the variable, what is allowed and what it got.
    """
    values: dict[str, Any] = {}
    for member, declared in _variables(settings):
        text = environ.get(declared.name)
        if text:
            values[member.name] = _read(declared, text, _default_text(member, declared))
    return values


def document(settings: type) -> Iterator[DocumentedSetting]:
    """Yield a row for each field of a settings dataclass that has a variable, in their order."""
    for member, declared in _variables(settings):
        description = f"{declared.about} Allowed: {declared.form.allowed}."
        yield DocumentedSetting(declared.name, _default_text(member, declared), description)


def any_text() -> Form[str]:
    """Take any text as it is."""
    return Form("any text", str)


def whole(low: int, high: int) -> Form[int]:
    """Take a whole number from `low` to `high`, both included; underscores may group digits."""

    def parse(text: str) -> int:
        digits = text.replace("_", "")
        # isdigit alone also accepts superscripts, which int() refuses.
        if not (digits.isascii() and digits.isdigit() and low <= int(digits) <= high):
            raise ValueError(text)
        return int(digits)

    return Form(f"a whole number from {low} to {high}", parse)


def number(low: float, high: float) -> Form[float]:
    """Take a number from `low` to `high`, both included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(text) from error
        # False for NaN too, which float() accepts.
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Form(f"a number from {low:g} to {high:g}", parse)


def choice(*names: str) -> Form[str]:
    """Take one of `names`, in any case; the value has the case given here."""
    by_text = {name.lower(): name for name in names}

    def parse(text: str) -> str:
        if text.lower() not in by_text:
            raise ValueError(text)
        return by_text[text.lower()]

    return Form(f"one of {', '.join(names)}", parse)


def yes_no() -> Form[bool]:
    """Take `yes` or `no`, in any case, as a bool."""

    def parse(text: str) -> bool:
        if text.lower() not in ("yes", "no"):
            raise ValueError(text)
        return text.lower() == "yes"

    return Form("yes or no", parse)


def matching(pattern: re.Pattern[str], allowed: str) -> Form[str]:
    """Take text that matches `pattern` as a whole."""

    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(text)
        return text

    return Form(allowed, parse)


def separated(item: Form[T]) -> Form[tuple[T, ...]]:
    """Take several items, separated by commas; spaces around them are ignored."""

    def parse(text: str) -> tuple[T, ...]:
        parts = [part.strip() for part in text.split(",")]
        return tuple(item.parse(part) for part in parts if part)

    return Form(f"{item.allowed}, several separated by commas", parse)


def _variables(settings: type) -> Iterator[tuple[Field[Any], Variable]]:
    for member in fields(settings):
        declared = member.metadata.get(_METADATA_KEY)
        if declared is not None:
            yield member, declared


def _read(declared: Variable, text: str, default: str) -> Any:
    try:
        return declared.form.parse(text)
    except ValueError as error:
        problem = f"{declared.name} must be {declared.form.allowed}"
        if declared.secret:
            # Without the cause: its message and traceback hold the value.
            raise UsageError(
                f"{problem}; correct it (the value is not shown: it may hold a password)"
            ) from None
        raise UsageError(
            f"{problem}, got {str(error)!r}; correct it, or unset it for the default ({default})"
        ) from error


def _default_text(member: Field[Any], declared: Variable) -> str:
    if declared.unset:
        return declared.unset
    if member.default is MISSING:
        return "required"
    if isinstance(member.default, bool):
        return "yes" if member.default else "no"
    return str(member.default)
