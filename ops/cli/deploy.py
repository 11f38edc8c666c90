"""`sigma deploy`: what containers and Kubernetes need."""

from argparse import Namespace
from pathlib import Path

from ops.cli.context import AddCommand, emit
from schemas.settings import Settings


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add("deploy", deploy, "write what containers and Kubernetes need into a folder")
    command.add_argument("action", choices=("export",))
    command.add_argument("folder", type=Path, metavar="DIR", help="empty, or not there yet")
    command.add_argument(
        "--force", action="store_true", help="replace the files of an earlier export but .env"
    )
    command.add_argument(
        "--generate-secrets",
        action="store_true",
        help="write .env with passwords and a key that are drawn for it; the key is shown once",
    )
    command.add_argument(
        "--wheels",
        type=Path,
        metavar="FOLDER",
        help="wheels of both distributions (make wheels); default: what is installed",
    )


def deploy(options: Namespace, settings: Settings) -> int:
    """`sigma deploy export`"""
    from ops.deploy.export import ExportRequest, export

    done = export(
        ExportRequest(options.folder, options.wheels, options.force, options.generate_secrets)
    )
    lines = [f"wrote {len(done.files)} files to {done.folder}; its README.md says how to go on"]
    if done.key is not None:
        lines.append(f"key    {done.key}")
        lines.append("       of scope admin, sent as: Authorization: Bearer KEY. Not shown again.")
    emit(done.to_json(), options.json, "\n".join(lines))
    return 0
