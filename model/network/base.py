"""The base: what stage 0 leaves behind, in place of pretrained weights for the `tiny` profile."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from model.network.backbone import tiny_config
from model.network.encoder import SmallEncoder, TwoTower
from model.network.file_digests import DIGESTS, check_digests, write_digests
from model.network.profiles import TinySize
from model.network.teacher import CrossHead, SmallTeacher
from model.network.tokenizer import load_tokenizer
from model.network.weights_io import deduplicated_state, load_exactly, read_tensors
from schemas.errors import RefuseToStartError

# The base that comes with the project; `base.json` in it says what made it.
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "tiny"

# Weights of all parts, in a base's folder.
WEIGHTS = "base.safetensors"

# Sizes, and what made the base; written last, so that a folder with it is whole.
ABOUT = "base.json"

# Keys of `base.json` that rebuild the base; the others are `Base.about`.
_OWN_KEYS = ("size", "limit", "width")


@dataclass(frozen=True, slots=True)
class Base:
    """Tokenizer, contrastive towers, teacher head and backbone, as stage 0 trained them.

    `limit` is the encoder's limit of a text, in tokens. `about` says which data and numbers made
    the base: JSON that only people read.
    """

    size: TinySize
    tokenizer: PreTrainedTokenizerBase
    towers: TwoTower
    cross: CrossHead
    backbone: Qwen2_5_VLForConditionalGeneration
    limit: int
    about: Mapping[str, Any]

    @property
    def encoder(self) -> SmallEncoder:
        """The encoder that feeds the codebook and ranks candidates."""
        return SmallEncoder(self.towers, self.tokenizer, self.size.image_px, self.limit)

    @property
    def teacher(self) -> SmallTeacher:
        """The teacher of the soft labels."""
        return SmallTeacher(self.cross, self.encoder)

    def save(self, folder: Path) -> None:
        """Write tokenizer, weights (matrices in half precision) and `base.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        # Those of another base must not stay, should this be cut short.
        (folder / DIGESTS).unlink(missing_ok=True)
        tokenizer_files = self.tokenizer.save_pretrained(str(folder))
        tensors: dict[str, Tensor] = {}
        for part, module in self._modules():
            for name, value in deduplicated_state(module).items():
                # Vectors (norms, biases, running statistics) are few, so they keep full precision.
                halved = value.is_floating_point() and value.ndim > 1
                tensors[f"{part}.{name}"] = value.half() if halved else value
        save_file(tensors, folder / WEIGHTS)
        about = {
            "size": asdict(self.size),
            "limit": self.limit,
            "width": self.encoder.width,
            **self.about,
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        written = {Path(name).name for name in tokenizer_files if Path(name).is_file()}
        write_digests(folder, written | {WEIGHTS, ABOUT})

    @classmethod
    def load(cls, folder: Path) -> "Base":
        """Read a saved base, in single precision.

        `RefuseToStartError` when files are missing or do not fit each other.
        """
        if not (folder / ABOUT).is_file():
            raise RefuseToStartError(
                f"{folder} holds no base ({ABOUT} is missing); "
                f"make one with: sigma base --out {folder}"
            )
        check_digests(folder)
        document = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        size = TinySize(**{field.name: document["size"][field.name] for field in fields(TinySize)})
        width = int(document["width"])
        tokenizer = load_tokenizer(folder)
        # The parts draw random weights, which the file's replace below.
        base = cls(
            size=size,
            tokenizer=tokenizer,
            towers=TwoTower(len(tokenizer), width),
            cross=CrossHead(width=width),
            backbone=Qwen2_5_VLForConditionalGeneration(tiny_config(size, tokenizer)),
            limit=int(document["limit"]),
            about={name: value for name, value in document.items() if name not in _OWN_KEYS},
        )
        tensors = read_tensors(folder / WEIGHTS)
        for part, module in base._modules():
            prefix = f"{part}."
            own: dict[str, Tensor] = {}
            for name, value in tensors.items():
                if name.startswith(prefix):
                    own[name.removeprefix(prefix)] = value
            load_exactly(module, own, folder)
        return base

    def _modules(self) -> list[tuple[str, nn.Module]]:
        """The parts with weights, under the names that prefix them in the file."""
        return [("towers", self.towers), ("cross", self.cross), ("backbone", self.backbone)]
