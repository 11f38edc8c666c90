"""Class names: what the 1,000 classes of ImageNet are called, texts that need no corpus.

They are those of torchvision (BSD-3-Clause), which come with it.
"""

from torchvision.models import EfficientNet_B0_Weights


def class_names() -> list[str]:
    """The names, in the order of the classes."""
    return [str(name) for name in EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]]
