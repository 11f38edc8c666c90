"""The second decoding engine: vLLM behind the interface that beam search uses, through vLLM's public interface only.

Every beam is a one-token request, `prompt + codes so far`, that may yield the tokens of one identifier level; the answer's
log-probabilities, normalised over those tokens, are what the search masks with the trie. vLLM batches the requests and keeps
the prompts' keys and values between them (prefix caching).
"""

import gc
import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.decoding.decoder import Decoder
from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS
from schemas.records import FloatArray, IntArray

Rows = list[list[int]]
"""Prompts as token rows."""

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no process of its own: nothing to supervise, nothing left behind
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the process belongs to other work too
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for answers
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What vLLM reads from the environment, where it is not set already."""


class VllmDecoder:
    """Scores identifiers behind text prompts (`model.decoding.beam.TextDecodingEngine`) with vLLM, from an export of the decoder's model.

    A process has one vLLM engine, because vLLM keeps parts of it in module variables: the scorer made last has it. An
    older one, which still serves while the next generation loads, goes on with its torch decoder.
    """

    _starting = threading.Lock()
    _newest: "VllmDecoder | None" = None

    def __init__(
        self,
        decoder: Decoder,
        folder: Path,
        *,
        dtype: str = "float32",
        kv_bytes: int = 256 << 20,
        block_tokens: int = 32,
    ) -> None:
        """`folder` is what `model.export` wrote for the decoder's model. `kv_bytes` bounds the memory of keys and values."""
        self.decoder = decoder
        self.levels = decoder.sigma.levels
        self._prompts = decoder.sigma.prompts
        self._codes = [_code_table(level) for level in self.levels]
        self._turn = threading.Lock()
        vllm = _vllm()
        self._sampling = [
            vllm.SamplingParams(
                max_tokens=1,
                temperature=0,
                allowed_token_ids=level,
                logprobs=len(level),
                flat_logprobs=True,
                detokenize=False,
            )
            for level in self.levels
        ]
        with VllmDecoder._starting:
            if VllmDecoder._newest is not None:
                VllmDecoder._newest._release()
            with _left_as_found(), torch.compiler.set_stance("force_eager"):
                self._llm: Any = vllm.LLM(
                    model=str(folder),
                    skip_tokenizer_init=True,
                    dtype=dtype,
                    enforce_eager=True,
                    enable_prefix_caching=True,
                    block_size=block_tokens,
                    logprobs_mode="processed_logprobs",
                    max_logprobs=max(len(level) for level in self.levels),
                    max_model_len=self._prompts.limit + LEVELS + 2,
                    kv_cache_memory_bytes=kv_bytes,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                )
            VllmDecoder._newest = self

    @property
    def running(self) -> bool:
        """Whether vLLM answers; False when the torch decoder does."""
        return self._llm is not None

    def read_texts(self, texts: Sequence[str]) -> Rows:
        """Prompts of B queries."""
        return [self._prompts.query_prompt(text) for text in texts]

    def begin(self, prompt: Rows) -> "VllmDecodingState":
        """Begin a beam search at prompts that were read."""
        return VllmDecodingState(self, prompt)

    def score_rows(self, level: int, rows: Rows) -> FloatArray | None:
        """(N, K) float32 log-probabilities of the tokens of id`level + 1` behind N token rows; None when vLLM is closed."""
        # vLLM would compile the ranks of the log-probabilities for fifteen seconds; nobody reads them.
        with self._turn, torch.compiler.set_stance("force_eager"):
            if self._llm is None:
                return None
            answers = self._llm.generate(
                [{"prompt_token_ids": row} for row in rows], self._sampling[level], use_tqdm=False
            )
        scores = np.full((len(rows), len(self.levels[level])), float("-inf"), dtype=np.float32)
        for at, answer in enumerate(answers):
            found = answer.outputs[0].logprobs
            scores[at, self._codes[level][found.token_ids]] = found.logprobs
        return scores

    def close(self) -> None:
        """Give vLLM's memory back; searches go on with the torch decoder."""
        with VllmDecoder._starting:
            self._release()
            if VllmDecoder._newest is self:
                VllmDecoder._newest = None

    def _release(self) -> None:
        with self._turn:
            if self._llm is not None:
                # Now and not when it is collected: it takes down what the next engine of this process will set up.
                self._llm.llm_engine.engine_core.shutdown()
                self._llm = None
                gc.collect()


class VllmDecodingState:
    """A beam search's way through one batch of prompts (`model.decoding.beam.DecodingState`). Keeps nothing: prefixes tell everything."""

    def __init__(self, scorer: VllmDecoder, prompt: Rows) -> None:
        self.batch = len(prompt)
        self.device: torch.device = scorer.decoder.device
        self._scorer = scorer
        self._prompt = prompt
        known = {row: at for at, row in enumerate(dict.fromkeys(map(tuple, prompt)))}
        self._rows = list(known)
        self._row_of = np.array([known[tuple(row)] for row in prompt], dtype=np.int64)

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities of id`level + 1`; see `model.decoding.beam.DecodingState`. Each prefix of a prompt is sent once."""
        places = alive.cpu().numpy()
        scores = np.full(
            (*places.shape, len(self._scorer.levels[level])), float("-inf"), dtype=np.float32
        )
        if not places.any():
            return torch.from_numpy(scores).to(self.device)
        rows = np.broadcast_to(self._row_of[:, None], places.shape)
        unique, back = np.unique(
            np.stack([rows[places], prefixes.cpu().numpy()[places]], 1), axis=0, return_inverse=True
        )
        found = self._scorer.score_rows(
            level,
            [[*self._rows[row], *self._tokens(level, prefix)] for row, prefix in unique.tolist()],
        )
        if found is None:
            decoder = self._scorer.decoder
            return decoder.begin(decoder.read_rows(self._prompt)).score(
                level, prefixes, None, alive
            )
        scores[places] = found[back.reshape(-1)]
        return torch.from_numpy(scores).to(self.device)

    def _tokens(self, level: int, prefix: int) -> list[int]:
        """Tokens of the first `level` codes, which `prefix` packs."""
        shape, levels = self._scorer.decoder.sigma.profile.shape, self._scorer.levels
        below = [shape.prefixes(level) // shape.prefixes(depth + 1) for depth in range(level)]
        return [
            levels[depth][prefix // size % shape.codes[depth]] for depth, size in enumerate(below)
        ]


def _code_table(level: Sequence[int]) -> IntArray:
    """Code of each token id of a level. Ids outside the level never come back."""
    table = np.zeros(max(level) + 1, dtype=np.int64)
    table[list(level)] = np.arange(len(level))
    return table


def _vllm() -> Any:
    """vLLM, imported when it is asked for."""
    for name, value in VLLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        module = importlib.import_module("vllm")
        # They are imported at first use, and most of what may be missing with them.
        importlib.import_module("vllm.entrypoints.llm")
    except ImportError as error:
        raise RefuseToStartError(
            f"engine vllm cannot be imported ({error}); run `pip install --no-deps -r constraints-vllm.txt`, or set SIGMA_ENGINE=torch"
        ) from error
    return module


@contextmanager
def _left_as_found() -> Iterator[None]:
    """Starting, vLLM changes the environment of later processes and replaces torch's way to set threads. This undoes both."""
    before, set_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(
            {name: value for name, value in before.items() if os.environ.get(name) != value}
        )
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
