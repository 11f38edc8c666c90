"""What `sigma keys` says and does: a new key for the query API, shown once."""

from argparse import Namespace

from ops.cli.context import AddCommand, emit
from schemas.api_keys import ApiScope, digest_of, new_secret, parse_key
from schemas.records import JsonObject
from schemas.settings import Settings


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add("keys", keys, "make a key of the query API; it is shown once and kept nowhere")
    command.add_argument("action", choices=("new",))
    command.add_argument("name", metavar="NAME", help="whose key it is; shown in metrics")
    command.add_argument(
        "--scope",
        choices=[str(scope) for scope in ApiScope],
        default=str(ApiScope.READ),
        help="read: queries; write: changes too; metrics: only those; admin: all (default read)",
    )
    command.add_argument(
        "--rate",
        metavar="R",
        help="requests a second, instead of SIGMA_KEY_RATE",
    )


def keys(options: Namespace, settings: Settings) -> int:
    """`sigma keys new`"""
    secret = new_secret()
    parts = [options.name, options.scope, digest_of(secret.encode())]
    if options.rate is not None:
        parts.append(options.rate)
    # Read as the query worker will, which checks the name and the rate.
    key = parse_key(":".join(parts), "the entry")
    document: JsonObject = {
        "name": key.name,
        "scope": str(key.scope),
        "key": secret,
        "entry": key.entry(),
    }
    text = (
        f"key    {secret}\n"
        "       for its owner, who sends it as: Authorization: Bearer KEY. It is not shown again.\n"
        f"entry  {key.entry()}\n"
        "       for SIGMA_API_KEYS of the query worker, or a line of SIGMA_API_KEYS_FILE"
    )
    emit(document, options.json, text)
    return 0
