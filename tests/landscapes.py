"""A corpus unlike the generated scenes: landscapes with German and English captions.

Many sizes, one or nine captions each.
"""

import json
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFilter

SKIES = {
    "dawn": (250, 190, 140),
    "noon": (120, 180, 240),
    "dusk": (150, 80, 130),
    "night": (20, 25, 60),
}
LANDS = {
    "meadow": (90, 160, 70),
    "desert": (220, 190, 120),
    "snow": (240, 245, 250),
    "sea": (30, 90, 140),
}
GERMAN = {
    "dawn": "Morgenröte",
    "noon": "Mittag",
    "dusk": "Abenddämmerung",
    "night": "Nacht",
    "meadow": "Wiese",
    "desert": "Wüste",
    "snow": "Schnee",
    "sea": "Meer",
}
SIZES = ((200, 120), (90, 160), (320, 320), (64, 48), (500, 200))


def captions(rng: Random, sky: str, land: str, trees: int, sun: str, count: int) -> list[str]:
    """`count` captions that mention different things."""
    some = [
        f"{GERMAN[land]} bei {GERMAN[sky]}, {trees} Bäume, Sonne {sun}",
        f"a {land} at {sky} with {trees} trees and the sun {sun}",
        f"{trees} trees on a {land} under a {sky} sky",
        f"{land}, {sky}, sun {sun}",
        f"Landschaft: {GERMAN[land]} mit {trees} Bäumen, {GERMAN[sky]}",
    ]
    return [some[(rng.randrange(5) + at) % 5] for at in range(count)]


def write_landscapes(folder: Path, count: int, captions_each: int, seed: int) -> Path:
    """Images as JPEG and PNG of different sizes, and their manifest."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        rng = Random(f"landscape {seed} {number}")
        sky, land, trees, sun = (
            rng.choice(list(SKIES)),
            rng.choice(list(LANDS)),
            rng.randint(0, 4),
            rng.choice(("left", "right")),
        )
        width, height = rng.choice(SIZES)
        image = Image.new("RGB", (width, height), SKIES[sky])
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, height * 6 // 10, width, height), fill=LANDS[land])
        x = width * (2 if sun == "left" else 8) // 10
        pen.ellipse(
            (
                x - height // 9,
                height // 6 - height // 9,
                x + height // 9,
                height // 6 + height // 9,
            ),
            fill=(255, 230, 90),
        )
        for tree in range(trees):
            at = width * (2 * tree + 2) // 11
            pen.polygon(
                [
                    (at, height * 3 // 10),
                    (at - width // 20, height * 7 // 10),
                    (at + width // 20, height * 7 // 10),
                ],
                fill=(10, 70, 30),
            )
        name = f"{number:04d}.{rng.choice(('jpg', 'png'))}"
        image.filter(ImageFilter.GaussianBlur(0.6)).save(folder / name)
        texts = captions(rng, sky, land, trees, sun, captions_each + 1)
        lines.append(
            json.dumps(
                {
                    "image_id": f"land/{seed}/{name}",
                    "path": name,
                    "captions": texts[1:],
                    "test_captions": texts[:1],
                },
                ensure_ascii=False,
            )
        )
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    return manifest
