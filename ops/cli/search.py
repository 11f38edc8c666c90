"""Commands that ask a generation: `query`, `evaluate`, `explain`."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ops.cli.context import AddCommand, emit, entries_of, open_database
from ops.cli.terminal import terminal_line
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.filters import parse_filter
from schemas.records import JsonObject
from schemas.settings import Settings
from workers.repository.connection import Connection
from workers.repository.generations import Generation, learnt_captions
from workers.repository.postings import image_at, postings_of
from workers.repository.stored_images import images_by_id, images_by_key


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    query_command = add("query", query, "find images by text")
    query_command.add_argument("text", metavar="TEXT")
    query_command.add_argument("-k", type=int, default=10, help="how many images (default 10)")
    query_command.add_argument(
        "--generation",
        type=int,
        metavar="G",
        help="answer from this generation instead of the live one",
    )
    query_command.add_argument(
        "--mode",
        default="fused",
        choices=("fused", "paper"),
        help="paper: five tokens over primary identifiers",
    )
    query_command.add_argument(
        "--filter",
        metavar="JSON",
        help='only images whose metadata match, such as {"field": "year", "gte": 2020}',
    )
    query_command.add_argument(
        "--min-relevance",
        type=float,
        metavar="R",
        help="only images of at least this relevance, from 0 to 1",
    )
    evaluate_command = add(
        "evaluate", evaluate, "recall per image beside exact dense and two-tower search"
    )
    evaluate_command.add_argument("--manifest", type=Path, required=True, metavar="F")
    evaluate_command.add_argument("--split", help="only entries of this split")
    evaluate_command.add_argument("--generation", type=int, metavar="G")
    evaluate_command.add_argument(
        "--queries",
        type=int,
        metavar="N",
        help="sample at most N queries of seen and of unseen images",
    )
    evaluate_command.add_argument("--seed", type=int, default=0)
    evaluate_command.add_argument(
        "--ablate",
        action="store_true",
        help="also measure one posting an image, analytic assignment, and search without a guide",
    )
    evaluate_command.add_argument(
        "--words",
        action="store_true",
        help="also judge the words that the model says of generated scenes, beside the nearest"
        " training caption",
    )
    explain_command = add("explain", explain, "the caption that an identifier stands for")
    explain_command.add_argument(
        "what",
        nargs="+",
        metavar="IMAGE_ID|IDENTIFIER",
        help="an image id, or one to five codes such as 3,1,4,2",
    )
    explain_command.add_argument("--generation", type=int, metavar="G")


def query(options: Namespace, settings: Settings) -> int:
    """`sigma query`: asks the running query worker; without one it loads the model itself."""
    from ops.query_client import CommandLineQuery, ask

    asked = CommandLineQuery(
        options.text,
        options.k,
        options.generation,
        options.mode,
        _filter(options.filter),
        _relevance(options.min_relevance),
    )
    document = ask(settings, asked)
    lines = []
    for result in document["results"]:
        caption = result["captions"][0] if result["captions"] else ""
        # A worker of an earlier version tells none.
        relevance = result.get("relevance")
        share = " " * 5 if relevance is None else f"{relevance:5.2f}"
        lines.append(
            f"{result['rank']:>3}  {result['score']:8.3f}  {share}"
            f"  {terminal_line(result['image_id'])}  {terminal_line(caption)}"
        )
    emit(document, options.json, "\n".join(lines) or "nothing found")
    return 0


def _relevance(least: float | None) -> float | None:
    if least is not None and not 0 <= least <= 1:
        raise UsageError(f"--min-relevance must be between 0 and 1, got {least}; change it")
    return least


def _filter(text: str | None) -> JsonObject | None:
    """The filter that was typed, checked here: the query worker may be another version."""
    if text is None:
        return None
    try:
        document: JsonObject = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f'--filter must be JSON such as {{"field": "year", "gte": 2020}}, got {error}; '
            "quote it for the shell"
        ) from error
    parse_filter(document)
    return document


def evaluate(options: Namespace, settings: Settings) -> int:
    """`sigma evaluate`"""
    from ops.cli.progress_bar import bar
    from ops.evaluation import evaluate as run_evaluation
    from workers.query.loading import live_generation, open_searcher

    entries = entries_of(options.manifest, options.split)
    with open_services(settings) as services, open_database(services, "evaluate") as conn:
        generation = live_generation(conn, options.generation)
        searcher = open_searcher(services, generation, with_encoder=True)
        evaluation = run_evaluation(
            searcher,
            conn,
            entries,
            limit=options.queries,
            seed=options.seed,
            ablate=options.ablate,
            words=options.words,
            progress=bar,
        )
        searcher.close()
    emit(evaluation.to_json(), options.json, evaluation.to_text())
    return 0


def explain(options: Namespace, settings: Settings) -> int:
    """`sigma explain`"""
    from workers.query.loading import live_generation

    with open_services(settings) as services, open_database(services, "explain") as conn:
        generation = live_generation(conn, options.generation)
        require_comprehension(conn, generation)
        image_id, codes = _identify(conn, generation, options.what)
        # Imported here: PyTorch takes seconds, which nobody should wait for to be told of a typing
        # error.
        from model.decoding.decoder import Decoder
        from model.decoding.explain import explain as generate_caption
        from workers.generations.model_assigner import load_generation_model

        sigma = load_generation_model(services.checkpoints, generation)
        caption = generate_caption(Decoder(sigma), codes)
    document: JsonObject = {
        "generation": generation.id,
        "image_id": image_id,
        "identifier": codes,
        "caption": caption,
    }
    subject = f"{codes} ({image_id})" if image_id else f"{codes}"
    emit(document, options.json, f"{subject} → {caption}")
    return 0


def require_comprehension(conn: Connection, generation: Generation) -> None:
    """`UsageError` where neither the generation nor one that it began with learnt from captions."""
    if not learnt_captions(conn, generation):
        raise UsageError(
            f"generation {generation.id} was trained without captions, so its identifiers say "
            "nothing in words; train with captions to explain them"
        )


def _identify(
    conn: Connection, generation: Generation, words: Sequence[str]
) -> tuple[str | None, list[int]]:
    """Return the image id (if an image is meant) and the codes of what the user named."""
    name = " ".join(words)
    stored = images_by_id(conn, [name]).get(name)
    shape = generation.shape
    if stored is not None:
        places = postings_of(conn, generation.id, [stored.image_key]).get(stored.image_key)
        if not places:
            raise UsageError(
                f"image {stored.image_id} is {stored.state} and has no identifier in"
                f" generation {generation.id}; sigma status tells what waits"
            )
        return stored.image_id, shape.identifier(places[0].leaf, places[0].suffix or 0)
    codes = _parse_codes(name)
    limits = [*shape.codes, shape.suffixes]
    in_range = 1 <= len(codes) <= len(limits)
    # The suffix may lie beyond the shape, if an image has it.
    for code, limit in zip(codes, shape.codes, strict=False):
        in_range = in_range and 0 <= code < limit
    key = None
    if in_range and len(codes) == len(limits):
        key = image_at(conn, generation.id, shape.pack(codes[:4]), codes[4])
        in_range = key is not None or 0 <= codes[4] < shape.suffixes
    if not in_range:
        raise UsageError(
            f"an identifier must be one to five numbers below {', '.join(map(str, limits))},"
            f" got {codes}"
        )
    if key is None:
        return None, codes
    image = images_by_key(conn, [key]).get(key)
    return (image.image_id if image else None), codes


def _parse_codes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").strip("[] ").split()]
    except ValueError:
        raise UsageError(
            f"give an image id of this index or an identifier such as 3,1,4,2,0, got {text!r}"
        ) from None
