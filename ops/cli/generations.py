"""The command `sigma generations`: list, promote, roll back, drop."""

from argparse import Namespace

from ops.cli.context import AddCommand, emit, limit_threads, open_database
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.settings import Settings
from workers.repository import generations as repository
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.runtime.services import Services


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add("generations", generations, "list generations, promote or drop one, or roll back")
    command.add_argument(
        "action", choices=("list", "promote", "rollback", "drop"), nargs="?", default="list"
    )
    command.add_argument("generation", type=int, nargs="?", metavar="G")
    command.add_argument(
        "--force",
        action="store_true",
        help="promote without asking the gate; drop even the fallback generation",
    )


def generations(options: Namespace, settings: Settings) -> int:
    """`sigma generations`"""
    if (options.action in ("promote", "drop")) != (options.generation is not None):
        raise UsageError(
            "name the generation to promote or drop, and only then: sigma generations promote G"
        )
    with open_services(settings) as services, open_database(services, "generations") as conn:
        _act(services, conn, options)
        listed = repository.generations(conn)
    document = {"generations": [_document(generation) for generation in listed]}
    emit(document, options.json, "\n".join(map(_line, listed)) or "none yet")
    return 0


def _act(services: Services, conn: Connection, options: Namespace) -> None:
    # Imported here: listing needs no PyTorch.
    if options.action == "promote":
        from ops.jobs.candidate_promotion import CandidatePromoter

        limit_threads(services.settings)
        promoter = CandidatePromoter.on_services(services, conn)
        promoter.promote(options.generation, force=options.force)
    elif options.action == "rollback":
        from workers.generations.image_assigner import assigner_loader
        from workers.generations.switching import rollback

        settings = services.settings.retrieval
        rollback(conn, services.store, assigner_loader(services.checkpoints, settings))
    elif options.action == "drop":
        from workers.generations.retiring import drop

        drop(conn, services.checkpoints, options.generation, force=options.force)


def _document(generation: Generation) -> dict[str, object]:
    gate = generation.config.gate
    relevance = generation.config.training.relevance
    return {
        "id": generation.id,
        "state": generation.state,
        "dropped": generation.dropped,
        "codebook": generation.codebook_version,
        "created_at": generation.created_at.isoformat(),
        "gate": None if gate is None else gate.to_json(),
        "relevance": None if relevance is None else relevance.to_json(),
    }


def _line(generation: Generation) -> str:
    gate = generation.config.gate
    if gate is None:
        verdict = ""
    elif gate.passed:
        verdict = "  passed its gate"
    else:
        verdict = f"  refused: {'; '.join(gate.reasons)}"
    return (
        f"{generation.id:>4}  {generation.display_state:<9} {generation.created_at:%Y-%m-%d %H:%M}"
        f"  codebook {generation.codebook_version}{verdict}"
    )
