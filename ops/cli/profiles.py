"""`sigma profiles`: the built-in profiles, and every number of one, as a file to start from."""

from argparse import Namespace

from model.network.profile_document import profile_document, profile_toml, read_profile
from model.network.profiles import PROFILES, Profile
from ops.cli.context import AddCommand, emit
from schemas.errors import UsageError
from schemas.settings import Settings


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add("profiles", profiles, "list profiles, or print one as a file for sigma train")
    command.add_argument("action", choices=("list", "show"))
    command.add_argument(
        "name", nargs="?", metavar="NAME|FILE.toml", help="which one to show; also a file of yours"
    )


def profiles(options: Namespace, settings: Settings) -> int:
    """`sigma profiles list`, `sigma profiles show NAME|FILE`"""
    if options.action == "list":
        if options.name:
            raise UsageError(f"list takes no name, got {options.name!r}; ask with show for one")
        documents = [profile_document(each) for each in PROFILES.values()]
        emit({"profiles": documents}, options.json, "\n".join(map(_line, PROFILES.values())))
        return 0
    if not options.name:
        raise UsageError(f"name a profile to show: {', '.join(PROFILES)}, or a file")
    chosen = read_profile(options.name)
    emit(profile_document(chosen), options.json, profile_toml(chosen).rstrip("\n"))
    return 0


def _line(each: Profile) -> str:
    """What a person compares: weights, encoder, room."""
    model = each.model
    if each.tiny is not None:
        model = f"{each.tiny.layers} layers of {each.tiny.hidden}, trained here"
    codes = "/".join(map(str, each.shape.codes))
    encoder = each.encoder or "its own"
    return f"{each.name:<8} {model}; encoder {encoder}; codes {codes}, {each.shape.leaves:,} leaves"
