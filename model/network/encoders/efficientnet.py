"""EfficientNet-Lite0: the image tower whose ImageNet weights come in a package of the registry.

The network of github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, as the
package's state dict names its layers. Letters in shapes: N images, C channels, F pooled features.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.network.resize import Pixels
from schemas.records import ByteArray

# Pixels of a side of the input.
SIDE_PX = 224

# F.
FEATURES = 1280

# From bytes to the input: (x - 127) / 128.
_MEAN = 127.0
_DEVIATION = 128.0

_STEM_CHANNELS = 32
_LAST_CHANNELS = 320
_CLASSES = 1000

# Pictures that pass the network at once on a CPU: the widest states of 4 are 19 MB. Those of 32
# left every cache, and one core saw 40 pictures a second in place of 59.
_AT_ONCE = 4

# Of batch normalisation, as in TensorFlow.
_EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Some blocks of one kind: the first of them has the stride, the others 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_GROUPS = (
    BlockGroup(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    BlockGroup(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    BlockGroup(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    BlockGroup(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    BlockGroup(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    BlockGroup(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    BlockGroup(repeats=1, kernel=3, stride=1, expansion=6, channels=_LAST_CHANNELS),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: an odd pixel is added right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', ceil(H / stride), ceil(W / stride))."""
        height, width = input.shape[-2:]
        rows = _padding(height, self.kernel_size[0], self.stride[0])
        columns = _padding(width, self.kernel_size[1], self.stride[1])
        around = (rows // 2, columns // 2)
        if rows % 2 or columns % 2:
            padding = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            input = F.pad(input, padding)
            around = (0, 0)
        # An even padding is left to the convolution, which needs no copy for it.
        return F.conv2d(
            input, self.weight, self.bias, self.stride, around, self.dilation, self.groups
        )


class InvertedResidual(nn.Module):
    """Widen, look around in each channel, narrow; without the squeeze of the larger networks."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv: Any = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0: Any = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._depthwise_conv: Any = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1: Any = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._project_conv: Any = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2: Any = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, states: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H / stride, W / stride)."""
        inner = states
        if self.expands:
            inner = F.relu6(self._bn0(self._expand_conv(inner)), inplace=True)
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)), inplace=True)
        inner = self._bn2(self._project_conv(inner))
        return inner.add_(states) if self.adds_input else inner

    def fold(self) -> None:
        """Let the convolutions do what the normalisations do, in place."""
        if self.expands:
            self._expand_conv = fuse_conv_bn_eval(self._expand_conv, self._bn0)
            self._bn0 = nn.Identity()
        self._depthwise_conv = fuse_conv_bn_eval(self._depthwise_conv, self._bn1)
        self._bn1 = nn.Identity()
        self._project_conv = fuse_conv_bn_eval(self._project_conv, self._bn2)
        self._bn2 = nn.Identity()


class EfficientNetLite0(nn.Module):
    """Pictures to pooled features and to the logits of the 1,000 classes of ImageNet.

    For inference only: activations replace what they were computed from.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem: Any = SameConv2d(3, _STEM_CHANNELS, 3, 2, bias=False)
        self._bn0: Any = nn.BatchNorm2d(_STEM_CHANNELS, eps=_EPSILON)
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        for group in _GROUPS:
            for number in range(group.repeats):
                block = InvertedResidual(
                    channels,
                    group.channels,
                    kernel=group.kernel,
                    stride=group.stride if number == 0 else 1,
                    expansion=group.expansion,
                )
                blocks.append(block)
                channels = group.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head: Any = nn.Conv2d(_LAST_CHANNELS, FEATURES, 1, bias=False)
        self._bn1: Any = nn.BatchNorm2d(FEATURES, eps=_EPSILON)
        self._fc = nn.Linear(FEATURES, _CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 224, 224) → features (N, F) and logits (N, 1000)."""
        at_once = len(pixels) if pixels.is_cuda else _AT_ONCE
        parts = [self._features(part) for part in pixels.split(max(1, at_once))]
        features = torch.cat(parts)
        return features, self._fc(features)

    @torch.no_grad()
    def fold(self) -> "EfficientNetLite0":
        """Let the convolutions do what the normalisations do, in place; once, after loading."""
        self.eval()
        self._conv_stem = fuse_conv_bn_eval(self._conv_stem, self._bn0)
        self._bn0 = nn.Identity()
        for block in self._blocks:
            if isinstance(block, InvertedResidual):
                block.fold()
        self._conv_head = fuse_conv_bn_eval(self._conv_head, self._bn1)
        self._bn1 = nn.Identity()
        return self

    def _features(self, pixels: Tensor) -> Tensor:
        states = F.relu6(self._bn0(self._conv_stem(pixels)), inplace=True)
        for block in self._blocks:
            states = block(states)
        states = F.relu6(self._bn1(self._conv_head(states)), inplace=True)
        return states.mean((2, 3))


def input_pixels(images: Pixels) -> Tensor:
    """(N, 3, 224, 224) of N images: the whole of each, scaled and shifted as in training.

    The network's own evaluation looks at the middle alone, where the one thing is that it is to
    name. A search is for whatever is in a picture (docs/encoders.md has figures).
    """
    squares = np.stack([_whole(image) for image in images])
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).float()
    return pixels.sub_(_MEAN).div_(_DEVIATION)


def _whole(image: ByteArray) -> ByteArray:
    # Squeezed: with bands beside it a photo was named worse than with its proportions changed.
    square = Image.fromarray(image).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.uint8)


def _padding(size: int, kernel: int, stride: int) -> int:
    """Pixels added along one axis, so that ceil(size / stride) remain."""
    remaining = -(-size // stride)
    return max((remaining - 1) * stride + kernel - size, 0)
