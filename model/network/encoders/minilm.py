"""all-MiniLM-L6-v2: the text tower whose weights come in a package of the registry.

A BERT of six layers; a text's vector is the mean over its tokens (Reimers and Gurevych 2019).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

from model.network.encoders.pretrained import BATCH, encoder_device, ready

# Tokens of a text, as the model was trained with.
_LIMIT = 256


# What a token begins with that goes on with a word, and the token of what nothing is known of.
_CONTINUES = "##"
_UNKNOWN = "[UNK]"

# Shorter words are parts of others more often than words.
_LEAST_LETTERS = 3


class SentenceTower:
    """The BERT with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)

    @classmethod
    def build(
        cls, config: dict[str, Any], weights: dict[str, Tensor], tokenizer: bytes
    ) -> "SentenceTower":
        """From the contents of `config.json`, `model.safetensors` and `tokenizer.json`."""
        model = BertModel(BertConfig(**config), add_pooling_layer=False)
        own: dict[str, Tensor] = {}
        for name, value in weights.items():
            # The sentence's vector is a mean: nothing asks the pooling layer.
            if not name.startswith("pooler.") and not name.endswith("position_ids"):
                own[name] = value
        model.load_state_dict(own)
        fast = Tokenizer.from_str(tokenizer.decode("utf-8"))
        fast.enable_truncation(_LIMIT)
        fast.enable_padding()
        # A text that spells a control token stays text.
        fast.encode_special_tokens = True
        return cls(ready(model), fast)

    def known_words(self) -> list[str]:
        """Words of letters alone that are one token, the most frequent ones first."""
        # The vocabulary was made in that order.
        pieces = sorted(self.tokenizer.get_vocab().items(), key=lambda piece: piece[1])
        return [word for word, _ in pieces if len(word) >= _LEAST_LETTERS and word.isalpha()]

    @torch.inference_mode()
    def word_vectors(self, texts: Sequence[str]) -> Tensor:
        """(B, D) mean rows of the word table of B texts, without any context."""
        table = self.model.get_input_embeddings().weight
        known = self.tokenizer.get_vocab()
        rows = torch.zeros((len(texts), self.width), device=table.device)
        for row, text in enumerate(texts):
            part = known.get(_CONTINUES + text)
            if part is not None:
                rows[row] = table[part]
                continue
            encoded = self.tokenizer.encode(text.strip(), add_special_tokens=False)
            kept = zip(encoded.ids, encoded.attention_mask, encoded.tokens, strict=True)
            tokens = [token for token, is_text, name in kept if is_text and name != _UNKNOWN]
            if tokens:
                rows[row] = table[tokens].float().mean(0)
        return rows

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(B, D) unit vectors of B texts."""
        rows = [torch.zeros((0, self.width), device=encoder_device())]
        for start in range(0, len(texts), BATCH):
            rows.append(self._embed_batch(texts[start : start + BATCH]))
        return torch.cat(rows)

    def _embed_batch(self, texts: Sequence[str]) -> Tensor:
        encoded = self.tokenizer.encode_batch(list(texts))
        tokens = torch.tensor([one.ids for one in encoded], device=encoder_device())
        mask = torch.tensor([one.attention_mask for one in encoded], device=encoder_device())
        states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1)
        mean = (states * kept).sum(1) / kept.sum(1)
        return F.normalize(mean.float(), dim=-1)
