"""The query request: the JSON body of `POST /v1/query`."""

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from schemas.filters import Filter, parse_filter
from stream.manifest import MAX_ID_LENGTH
from workers.api.json_body import BodyForm
from workers.api.parts import FILTER, part
from workers.query.query_text import MAX_QUERY_LETTERS, MAX_RESULTS, PAGE_RESULTS

# Bytes of a body. The longest query, every letter of it escaped as two halves, takes 24 kB, the
# longest cursor 43 kB.
MAX_BODY_BYTES = 64 * 1024

# The highest number that PostgreSQL's `int` holds.
MAX_GENERATION = 2**31 - 1

# Ids as events have them: without control characters.
ID_PATTERN: Final = r"^[^\u0000-\u001f]+$"

# What may be asked for, one of them in each request.
_SUBJECTS: Final = ("query", "image_id", "cursor")


def _given(value: Any) -> Any:
    """Refuse null where leaving a field out is meant: the description knows no null here."""
    if value is None:
        raise ValueError("null")
    return value


T = TypeVar("T")

# A field that is given or left out.
Given = Annotated[T | SkipJsonSchema[None], BeforeValidator(_given)]


def _one_subject(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"required": [name]} for name in _SUBJECTS]
    for name in _SUBJECTS:
        schema["properties"][name].pop("default", None)


class QueryRequest(BaseModel):
    """A query by a text or by a stored image, or the next page of an answer."""

    # Strict: neither true nor "3" is a number of images.
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_one_subject)

    query: Given[
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=MAX_QUERY_LETTERS,
                examples=["two small red circles on navy"],
            ),
        ]
    ] = None
    image_id: Given[
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=MAX_ID_LENGTH,
                pattern=ID_PATTERN,
                description="similar images to this one, which is stored",
            ),
        ]
    ] = None
    cursor: Given[
        Annotated[
            str,
            Field(
                min_length=1, pattern="^[A-Za-z0-9_-]+$", description="the next page of an answer"
            ),
        ]
    ] = None
    k: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_RESULTS,
            description=f"how many images; {PAGE_RESULTS} come at once, the others by cursor",
        ),
    ] = 10
    generation: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_GENERATION,
            description="answer from this generation or not at all; the live one without",
        ),
    ] = None
    mode: Annotated[
        Literal["fused", "paper"],
        Field(description="paper: five tokens decoded, primary identifiers only; of texts alone"),
    ] = "fused"
    filter: Annotated[
        dict[str, Any] | None,
        Field(description="only images whose metadata match"),
        part(FILTER, or_null=True),
    ] = None
    min_relevance: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="only images of at least this relevance; of texts alone",
        ),
    ] = None
    explain: Annotated[
        bool, Field(description="with the leaves that were reached and each result's cosine")
    ] = False

    @property
    def wanted(self) -> Filter | None:
        """The filter; `FilterError` for one that is not of the grammar."""
        return None if self.filter is None else parse_filter(self.filter)

    @model_validator(mode="after")
    def _ask_for_one(self) -> "QueryRequest":
        given = [name for name in _SUBJECTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "a query must have one of the fields query, image_id and cursor, got"
                f" {len(given)}; send one"
            )
        return self


QUERY_FORM: Final = BodyForm(
    QueryRequest,
    {
        "query": f"a text of 1 to {MAX_QUERY_LETTERS:,} letters",
        "image_id": f"an image id of 1 to {MAX_ID_LENGTH} letters",
        "cursor": "a cursor as an answer gave it",
        "k": f"a whole number from 1 to {MAX_RESULTS:,}",
        "generation": "the number of a generation, or null for the live one",
        "mode": '"fused" or "paper"',
        "filter": "an object, or null for all images",
        "min_relevance": "a number from 0 to 1, or null for all images",
        "explain": "true or false",
    },
    '{"query": "two small red circles on navy"}',
)
