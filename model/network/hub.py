"""The hub: weights and tokenizers of others, by the name of a repository or as a folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import RefuseToStartError, RetryLaterError, brief


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
    # The libraries raise OSError for what they cannot find or reach, and ValueError for files that
    # are not what they expect.
    except (OSError, ValueError) as error:
        said = brief(error).split("\n", 1)[0].split(". ", 1)[0].rstrip(".")
        if Path(source).is_dir():
            raise RefuseToStartError(
                f"{source} must hold a model that transformers can load, got: {said}; give the"
                " complete folder"
            ) from error
        raise RetryLaterError(
            f"{source} cannot be loaded from the hub ({said}); see that the hub is within reach, or"
            " load it where it is and name the cache with HF_HOME"
        ) from error
