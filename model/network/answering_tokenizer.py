"""The answering tokenizer: a saved tokenizer for a process that only answers.

It is read without `transformers`, whose import takes longer than the rest of a query worker's
start, and has of its interface what prompts and encoders use.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# Written by `save_pretrained`.
_TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


class AnsweringTokenizer:
    """A `tokenizers.Tokenizer` with names for the tokens that end and pad a text."""

    def __init__(self, tokenizer: Tokenizer, end: str, pad: str) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.unk_token_id: int | None = None
        self.eos_token_id = self.convert_tokens_to_ids(end)
        self.pad_token_id = self.convert_tokens_to_ids(pad)

    @classmethod
    def read(cls, folder: Path) -> "AnsweringTokenizer | None":
        """Read a tokenizer; None for one that `transformers` must read: it has rules of its own."""
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        end, pad = config.get("eos_token"), config.get("pad_token")
        own_rules = config.get("unk_token") or config.get("clean_up_tokenization_spaces")
        if own_rules or not isinstance(end, str) or not isinstance(pad, str):
            return None
        # A file that `save_pretrained` wrote of this class is the very tokenizer.
        if config.get("tokenizer_class") != "TokenizersBackend":
            return None
        try:
            return cls(Tokenizer.from_file(str(folder / _TOKENIZER)), end, pad)
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(f"{folder / _TOKENIZER} is damaged ({error})") from error

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool
    ) -> dict[str, Any]:
        """`input_ids` of a text, or of each of several."""
        self._tokenizer.encode_special_tokens = split_special_tokens
        if isinstance(text, str):
            encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return {"input_ids": encoded.ids}
        batch = self._tokenizer.encode_batch(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [each.ids for each in batch]}

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Token → id, with added tokens."""
        known: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return known

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token; None for an unknown one."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))
