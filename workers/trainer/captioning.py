"""Captioning: captions that a captioner gives to training images without any.

They are learnt from and stored nowhere else: answers show what people wrote.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog

from model.network.captioner import VisionLanguageCaptioner
from model.network.hub import open_snapshot
from model.progress import Progress
from workers.trainer.training_images import TrainingImages

log = structlog.get_logger()

# Generated captions in the folder of a run, a line for each image, so that a resumed one goes on.
GENERATED = "captions.jsonl"

# Pictures at once; what a batch has given is written before the next one begins.
_BATCH = 8


def pinned_captioner(source: str | None) -> str | None:
    """A captioner that was asked for, a hub name with its revision; a wrong name is told at once.

    Errors are those of `open_snapshot`.
    """
    return None if source is None else open_snapshot(source, "captioner").source


def with_captions(
    images: TrainingImages, captioner: str | None, folder: Path, progress: Progress
) -> TrainingImages:
    """The images, each of those without a caption with one of the captioner's.

    `captioner` is a folder or a hub name; None leaves them as they are. An image of which it says
    nothing stays without. Errors are those of `VisionLanguageCaptioner.load`.
    """
    if captioner is None or images.captioned.all():
        return images
    file = folder / GENERATED
    known = read_generated(file)
    rows = np.flatnonzero(~images.captioned).tolist()
    missing = [row for row in rows if int(images.image_keys[row]) not in known]
    if missing:
        known |= _generate(images, missing, captioner, file, progress)
    captions = list(images.captions)
    queries = list(images.queries)
    for row in rows:
        said = known[int(images.image_keys[row])]
        captions[row] = (said,) if said else ()
        # As for any image, the caption is what to measure with where nothing was held out.
        queries[row] = queries[row] or said
    return replace(images, captions=tuple(captions), queries=tuple(queries))


def forget_captions(folder: Path) -> None:
    """Remove what a run has generated, once it is learnt: nothing of deleted pictures may stay."""
    (folder / GENERATED).unlink(missing_ok=True)


def read_generated(file: Path) -> dict[int, str]:
    """Captions by image key, without a line that was cut short."""
    known: dict[int, str] = {}
    if not file.is_file():
        return known
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        known[int(document["image"])] = str(document["caption"])
    return known


def _generate(
    images: TrainingImages, rows: list[int], captioner: str, file: Path, progress: Progress
) -> dict[int, str]:
    model = VisionLanguageCaptioner.load(captioner)
    generated: dict[int, str] = {}
    with progress("captions", len(rows)) as bar, file.open("a", encoding="utf-8") as lines:
        # A run that was killed may have left half a line.
        lines.write("\n")
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            said = model.caption([images.originals[row] for row in batch])
            for row, caption in zip(batch, said, strict=True):
                key = int(images.image_keys[row])
                generated[key] = caption
                lines.write(json.dumps({"image": key, "caption": caption}) + "\n")
            lines.flush()
            bar.update(len(batch))
    silent = sum(not caption for caption in generated.values())
    log.info("captions generated", images=len(rows), silent=silent, captioner=model.source)
    return generated
