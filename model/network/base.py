"""The base: what stage 0 leaves behind, the `tiny` profile's stand-in for pretrained weights. Saved, shipped and loaded."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from model.network.backbone import tiny_config
from model.network.encoder import SmallEncoder, TwoTower
from model.network.profiles import TinySize
from model.network.teacher import CrossHead, SmallTeacher
from model.network.tokenizer import load_tokenizer
from model.network.weights_io import deduplicated_state, load_exactly, read_tensors
from schemas.errors import RefuseToStartError

SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "tiny"
"""The base that comes with the project; `base.json` beside it says what made it."""

WEIGHTS, ABOUT = "base.safetensors", "base.json"


@dataclass(frozen=True, slots=True)
class Base:
    """Tokenizer, contrastive towers, teacher head and backbone, and `about`: which data and numbers made them."""

    size: TinySize
    tokenizer: PreTrainedTokenizerBase
    towers: TwoTower
    cross: CrossHead
    backbone: Qwen2_5_VLForConditionalGeneration
    limit: int
    about: dict[str, Any]

    @property
    def encoder(self) -> SmallEncoder:
        """The encoder that feeds the codebook and ranks."""
        return SmallEncoder(self.towers, self.tokenizer, self.size.image_px, self.limit)

    @property
    def teacher(self) -> SmallTeacher:
        """The teacher of the soft labels."""
        return SmallTeacher(self.cross, self.encoder)

    def save(self, folder: Path) -> None:
        """Write tokenizer, weights (matrices in half precision) and `about`, which comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        tensors = {
            f"{part}.{name}": value
            for part, module in self._parts()
            for name, value in deduplicated_state(module).items()
        }
        save_file(
            {
                name: value.half() if value.is_floating_point() and value.ndim > 1 else value
                for name, value in tensors.items()
            },
            folder / WEIGHTS,
        )
        about = {
            "size": asdict(self.size),
            "limit": self.limit,
            "width": self.encoder.width,
            **self.about,
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Base":
        """A saved base, in single precision. `RefuseToStartError` when files are missing or do not fit each other."""
        if not (folder / ABOUT).is_file():
            raise RefuseToStartError(
                f"{folder} holds no base ({ABOUT} is missing); make one with: sigma base --out {folder}"
            )
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        size = TinySize(**{f.name: about["size"][f.name] for f in fields(TinySize)})
        tokenizer = load_tokenizer(folder)
        base = cls(
            size=size,
            tokenizer=tokenizer,
            towers=TwoTower(len(tokenizer), int(about["width"])),
            cross=CrossHead(width=int(about["width"])),
            backbone=Qwen2_5_VLForConditionalGeneration(tiny_config(size, tokenizer)),
            limit=int(about["limit"]),
            about={
                name: value
                for name, value in about.items()
                if name not in ("size", "limit", "width")
            },
        )
        tensors = read_tensors(folder / WEIGHTS)
        for part, module in base._parts():
            load_exactly(
                module,
                {
                    name.removeprefix(f"{part}."): value
                    for name, value in tensors.items()
                    if name.startswith(f"{part}.")
                },
                folder,
            )
        return base

    def _parts(self) -> tuple[tuple[str, nn.Module], ...]:
        return ("towers", self.towers), ("cross", self.cross), ("backbone", self.backbone)
