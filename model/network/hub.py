"""The hub: weights and tokenizers of others, by the name of a repository or as a folder."""

import json
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from schemas.errors import RefuseToStartError, RetryLaterError, UsageError, brief
from schemas.records import JsonObject

# Files that describe a model, its tokenizer or its processor, and how a chat with it is written.
DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja")

# Modelling code, which is fetched for a profile with `trust_remote_code` alone.
CODE = "*.py"

# Weights in the order of preference: a pickle is read only where nothing else is, and only its
# tensors.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")

_CONFIG = "config.json"

# A hub name, with or without the revision that pins it.
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")

# Names that an error message lists; the first ones are enough to recognise the mistake.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model of others, on this machine.

    `source` is what asks for the same files again: the folder, or the hub name with the commit
    that it stood for.
    """

    folder: Path
    source: str


def open_snapshot(source: str, what: str, *, has_code: bool = False) -> Snapshot:
    """The files of a folder or a hub name, best with a revision (`owner/name@revision`).

    `what` says in errors what the source is of, such as "encoder". With `has_code` modelling code
    is fetched too, of the same revision. `UsageError` for what is neither a folder nor a name,
    `RetryLaterError` when the hub is out of reach.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Snapshot(folder.absolute(), str(folder.absolute()))
    name = _HUB_NAME.fullmatch(source)
    if name is None:
        raise UsageError(
            f"the {what} must be a folder, or a model of the hub such as owner/name@REVISION, got "
            f"{source!r}; see docs/models.md"
        )
    downloaded = _download(name[1], name[2], [*DESCRIPTIONS, CODE] if has_code else DESCRIPTIONS)
    # The hub names a snapshot's folder by its commit: the revision is pinned from here on.
    return Snapshot(downloaded, f"{name[1]}@{downloaded.name}")


def read_config(folder: Path) -> JsonObject:
    """A model folder's `config.json`; empty where there is none that can be read."""
    try:
        document = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def load_weights(
    model_class: Any, folder: Path, *, unused: Collection[str] = (), **options: Any
) -> Any:
    """A `transformers` model with all of its weights from a folder, and no code from there.

    `unused` weights may be missing. `options` go to `from_pretrained`. `RefuseToStartError` for a
    folder of another kind of model, and when weights are missing, of another shape or damaged: the
    library would draw random ones instead.
    """
    require_kind(folder, model_class)
    with loading(folder), quietly():
        # Misfits are told below, by name; the library's own sentence is of its settings.
        model, report = model_class.from_pretrained(
            str(folder),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    misfits = sorted(name for name, *_ in report["mismatched_keys"])
    if misfits:
        raise RefuseToStartError(
            f"{folder} must hold weights of the shapes that its config.json says, got others for "
            f"{', '.join(misfits[:_NAMED])}; give the complete folder"
        )
    missing = sorted(set(report["missing_keys"]) - set(unused))
    if missing:
        raise RefuseToStartError(
            f"{folder} must hold all weights of a {model_class.__name__}, got none for "
            f"{', '.join(missing[:_NAMED])}; give the complete folder"
        )
    return model


def require_kind(folder: Path, model_class: Any) -> None:
    """`RefuseToStartError` for a folder without a model, or with one of another kind."""
    wanted = model_class.config_class.model_type
    if not (folder / _CONFIG).is_file():
        raise RefuseToStartError(
            f"{folder} must hold a model of type {wanted}, got no {_CONFIG}; give the complete "
            "folder"
        )
    found = read_config(folder).get("model_type")
    if found != wanted:
        raise RefuseToStartError(
            f"{folder} must hold a model of type {wanted}, got one of type {found}; name another "
            "model, docs/models.md says which ones work"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's tables of weights that have no place: what matters is checked here."""
    from transformers.utils import logging as transformers_logging

    # It would print to the terminal, between ours.
    transformers_logging.disable_progress_bar()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def loading(source: str | Path) -> Iterator[None]:
    """Load something of others in the block, and say in one sentence when it is not to be had.

    `RetryLaterError` when it should come from the hub, `RefuseToStartError` when the folder is not
    what it should be.
    """
    # It logs each attempt to reach the hub; the sentence below tells of all of them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    # The libraries raise OSError for what they cannot find or reach, ValueError for files that are
    # not what they expect, RuntimeError for shapes that differ from the configuration's.
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "CUDA" in str(error):
            raise
        said = brief(error).split("\n", 1)[0].split(". ", 1)[0].rstrip(".")
        if isinstance(error, SafetensorError):
            said = f"weights that are damaged or cut short ({said})"
        if Path(source).is_dir():
            raise RefuseToStartError(
                f"{source} must hold a model that transformers can load, got: {said}; give the"
                " complete folder"
            ) from error
        raise RetryLaterError(
            f"{source} cannot be loaded from the hub ({said}); see that the hub is within reach, or"
            " load it where it is and name the cache with HF_HOME"
        ) from error


def _download(name: str, revision: str | None, descriptions: Sequence[str]) -> Path:
    """A snapshot of a model of the hub, from the cache where it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # It would print to the terminal, between ours.
    disable_progress_bars()
    wanted = [*descriptions, WEIGHTS[0]]
    with loading(f"{name}@{revision}" if revision else name):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if not any(folder.glob(WEIGHTS[0])):
            rest = list(WEIGHTS[1:])
            folder = Path(snapshot_download(name, revision=folder.name, allow_patterns=rest))
    return folder
