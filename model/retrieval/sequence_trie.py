"""The sequence trie: identifiers of any length as token rows, and the images that they name.

Ours (`model.retrieval.trie`) has five levels and is made for change; this one serves rivals.
"""

from collections.abc import Mapping, Sequence


class SequenceTrie:
    """No row may be the beginning of another: texts end in an end token."""

    def __init__(self) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._images: dict[int, list[int]] = {}
        self.depth = 0
        """Tokens of the longest row."""

    def add(self, tokens: Sequence[int], image: int) -> None:
        """Name an image; images of the same row keep their order."""
        node = 0
        for token in tokens:
            child = self._children[node].get(token)
            if child is None:
                child = len(self._children)
                self._children[node][token] = child
                self._children.append({})
            node = child
        self._images.setdefault(node, []).append(image)
        self.depth = max(self.depth, len(tokens))

    def children(self, node: int) -> Mapping[int, int]:
        """Token → node behind a node; 0 is the root."""
        return self._children[node]

    def images(self, node: int) -> Sequence[int]:
        """The images that a whole row names."""
        return self._images.get(node, ())

    def names_an_image(self, tokens: Sequence[int]) -> bool:
        """Whether a generated row begins with an identifier that exists."""
        node = 0
        for token in tokens:
            following = self._children[node].get(token)
            if following is None:
                return False
            node = following
            if node in self._images:
                return True
        return False
