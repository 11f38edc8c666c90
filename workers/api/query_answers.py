"""The answers of queries, as the description of the API has them."""

from pydantic import BaseModel, ConfigDict, Field


class QueryResult(BaseModel):
    """One image."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(ge=1)
    image_id: str
    uri: str = Field(description="where the image came from")
    link: str = Field(description="opens the picture in a browser, for an hour at least")
    identifier: list[int]
    score: float = Field(description="of this generation only")
    relevance: float | None = Field(
        ge=0,
        le=1,
        description="how well the image fits the text, comparable between queries; null for"
        " pictures, the mode paper and a generation without a calibration",
    )
    captions: list[str]
    metadata: dict[str, str | int | float | bool | list[str]]
    cosine: float | None = Field(description="with the query's vector; null unless explained")


class ReachedLeafAnswer(BaseModel):
    """A leaf that the query was decoded to."""

    model_config = ConfigDict(extra="forbid")

    codes: list[int]
    log_probability: float = Field(le=0)


class QueryExplanation(BaseModel):
    """Why these images: they are in these leaves."""

    model_config = ConfigDict(extra="forbid")

    leaves: list[ReachedLeafAnswer] = Field(description="best first")


class QueryResponse(BaseModel):
    """Images, best first."""

    model_config = ConfigDict(extra="forbid")

    query: str | None = Field(description="the text; null for a picture and a further page")
    generation: int
    took_ms: float = Field(ge=0)
    candidates: int = Field(ge=0, description="images that were scored")
    results: list[QueryResult]
    cursor: str | None = Field(description="brings the next page; null on the last one")
    explanation: QueryExplanation | None = Field(description="null unless asked for")


class BatchItem(BaseModel):
    """What came of one query of a batch: an answer, or why there is none."""

    model_config = ConfigDict(extra="forbid")

    status: int = Field(description="as the query alone would have had")
    answer: QueryResponse | None
    error: str | None


class BatchResponse(BaseModel):
    """What came of each query, in their order."""

    model_config = ConfigDict(extra="forbid")

    answers: list[BatchItem]
