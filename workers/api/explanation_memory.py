"""The explanation memory: what the model has said of identifiers, which it says again each time."""

from collections import OrderedDict

# Captions that are remembered: those of all prefixes of two codes, and more.
_REMEMBERED = 10_000

# Generation and codes.
_Key = tuple[int, tuple[int, ...]]


class ExplanationMemory:
    """The captions said last. For one event loop."""

    def __init__(self, capacity: int = _REMEMBERED) -> None:
        self._capacity = capacity
        self._captions: OrderedDict[_Key, str | None] = OrderedDict()

    def find(self, key: _Key) -> tuple[bool, str | None]:
        """Whether a caption is known, and the caption."""
        return key in self._captions, self._captions.get(key)

    def remember(self, key: _Key, caption: str | None) -> None:
        """Keep a caption; the oldest is forgotten."""
        self._captions[key] = caption
        while len(self._captions) > self._capacity:
            self._captions.popitem(last=False)
