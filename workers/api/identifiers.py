"""Identifiers: the tree of a generation, a prefix at a time, with some images of each branch."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import UsageError
from schemas.identifiers import LEVELS
from schemas.records import JsonObject
from workers.api.addresses import SUBTREE_PATH, TREE_PATH
from workers.api.answers import KEYED, NOT_FOUND, only, refusals
from workers.api.context import ApiContext
from workers.api.explanations import explanation_of
from workers.api.json_body import RequestRefusedError
from workers.api.picture_links import PictureLinks
from workers.query.query_request import MAX_GENERATION
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.identifier_tree import (
    LeafImage,
    Subtree,
    images_below,
    leaf_images,
    subtrees,
)

# Images that are shown of each branch.
_EXAMPLES = 4

# Images of a leaf on one page.
_LEAF_PAGE = 100

# A prefix such as 3.12.7: one to four codes.
_PREFIX = r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}$"


class TreeImage(BaseModel):
    """An image of the tree."""

    model_config = ConfigDict(extra="forbid")

    image_id: str
    link: str


class BranchAnswer(BaseModel):
    """One branch below a prefix."""

    model_config = ConfigDict(extra="forbid")

    prefix: str
    codes: list[int]
    images: int = Field(ge=1)
    examples: list[TreeImage]


class LeafImageAnswer(TreeImage):
    """An image of a leaf."""

    identifier: list[int]


class TreeAnswer(BaseModel):
    """What lies below a prefix: branches, or the images of a leaf."""

    model_config = ConfigDict(extra="forbid")

    generation: int
    prefix: str = Field(description="codes joined by dots; empty for the root")
    codes: list[int]
    images: int = Field(ge=0)
    explanation: str | None = Field(description="what the codes say, where it was asked for")
    branches: list[BranchAnswer] = Field(description="empty below four codes, which name a leaf")
    leaf: list[LeafImageAnswer] = Field(description="images of a leaf, in the order of suffixes")
    next_suffix: int | None = Field(description="`after` of the next page of a leaf")


GenerationNumber = Annotated[
    int | None, Query(ge=1, le=MAX_GENERATION, description="the live one without")
]
Explained = Annotated[bool, Query(description="with what the codes say, in words")]


def identifier_router(context: ApiContext) -> APIRouter:
    """The addresses of the tree."""
    router = APIRouter(tags=["identifiers"])

    async def answer(
        request: Request, codes: list[int], wanted: int | None, after: int, explain: bool
    ) -> JsonObject:
        links = context.links
        document = await context.calls.read(
            lambda conn: _tree(conn, codes, wanted, after, links, request)
        )
        if explain and codes:
            document["explanation"] = await explanation_of(context, document["generation"], codes)
        return document

    @router.get(
        TREE_PATH,
        operation_id="getIdentifierTree",
        response_model=TreeAnswer,
        summary="Read the first branches of the tree of identifiers",
        dependencies=[KEYED, only("generation", "explain")],
        responses=refusals(404),
    )
    async def root(
        request: Request, generation: GenerationNumber = None, explain: Explained = False
    ) -> JsonObject:
        return await answer(request, [], generation, -1, explain)

    @router.get(
        SUBTREE_PATH,
        operation_id="getIdentifierBranch",
        response_model=TreeAnswer,
        summary="Read what lies below one to four codes of an identifier",
        dependencies=[KEYED, only("generation", "explain", "after")],
        responses=refusals(404),
    )
    async def branch(
        request: Request,
        prefix: Annotated[
            str, Path(pattern=_PREFIX, description="codes joined by dots", examples=["3.12.7"])
        ],
        generation: GenerationNumber = None,
        explain: Explained = False,
        after: Annotated[
            int, Query(ge=-1, le=MAX_GENERATION, description="of a leaf: from this suffix on")
        ] = -1,
    ) -> JsonObject:
        codes = [int(code) for code in prefix.split(".")]
        return await answer(request, codes, generation, after, explain)

    return router


def _tree(
    conn: Connection,
    codes: list[int],
    wanted: int | None,
    after: int,
    links: PictureLinks,
    request: Request,
) -> JsonObject:
    generation = _generation(conn, wanted)
    shape = generation.shape
    if any(code >= count for code, count in zip(codes, shape.codes, strict=False)):
        counts = ", ".join(map(str, shape.codes))
        raise RequestRefusedError(
            f"the codes must be below {counts} in generation {generation.id}; begin at {TREE_PATH}",
            NOT_FOUND,
        )
    branches: list[Subtree] = []
    leaf: list[LeafImage] = []
    if len(codes) < LEVELS:
        branches = subtrees(conn, generation.id, shape, codes, _EXAMPLES)
        images = sum(branch.images for branch in branches)
    else:
        images = images_below(conn, generation.id, shape, codes)
        leaf = leaf_images(conn, generation.id, shape.pack(codes), after=after, amount=_LEAF_PAGE)
    return {
        "generation": generation.id,
        "prefix": _joined(codes),
        "codes": codes,
        "images": images,
        "explanation": None,
        "branches": [_branch(branch, links, request) for branch in branches],
        "leaf": [_leaf_image(image, codes, links, request) for image in leaf],
        "next_suffix": leaf[-1].suffix if len(leaf) == _LEAF_PAGE else None,
    }


def _generation(conn: Connection, wanted: int | None) -> Generation:
    if wanted is None:
        generation = generations.live(conn)
        if generation is None:
            raise UsageError("no generation is live yet; train one with: sigma train --manifest F")
        return generation
    try:
        return generations.get(conn, wanted)
    except UsageError as error:
        raise RequestRefusedError(str(error), NOT_FOUND) from None


def _branch(branch: Subtree, links: PictureLinks, request: Request) -> JsonObject:
    return {
        "prefix": _joined(branch.codes),
        "codes": list(branch.codes),
        "images": branch.images,
        "examples": [_image(image_id, links, request) for image_id in branch.examples],
    }


def _leaf_image(
    image: LeafImage, codes: list[int], links: PictureLinks, request: Request
) -> JsonObject:
    return _image(image.image_id, links, request) | {"identifier": [*codes, image.suffix]}


def _image(image_id: str, links: PictureLinks, request: Request) -> JsonObject:
    return {"image_id": image_id, "link": links.link(image_id, request)}


def _joined(codes: list[int] | tuple[int, ...]) -> str:
    return ".".join(str(code) for code in codes)
