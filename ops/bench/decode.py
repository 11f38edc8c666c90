"""`sigma bench decode`: both decoding engines beside vLLM's own beam search.

`python -m ops.bench.decode torch|vllm|peer SEED` measures one of them and prints it as JSON. Each
is measured in a process of its own, because vLLM keeps state that two engines cannot share.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.decoding.beam import TextDecodingEngine, search_leaves
from model.decoding.decoder import Decoder
from model.decoding.export import export_text_decoder
from model.decoding.vllm import KV_BLOCK_TOKENS, KV_CACHE_BYTES, VLLM_ENVIRONMENT, VllmDecoder
from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.network.sigma import SigmaModel
from model.retrieval.trie import Trie
from ops.bench.comparison import Comparison
from ops.bench.query_texts import query_texts
from ops.embedded.isolation import ISOLATED_ENVIRONMENT, python_module
from schemas.errors import WorkFailedError
from schemas.identifiers import LEVELS, IdentifierShape

# Ours, by what `main` calls them, and their names for people.
ENGINES = {"torch": "torch engine", "vllm": "vLLM engine"}

# vLLM's own beam search.
PEER = "peer"

# As the settings have it by default.
_BEAMS = 20

# Images of the trie: enough that a beam has several children at every level.
_IMAGES = 3000

# Queries at once → calls that are timed: a single query, and the largest batch.
_ROUNDS = {1: 200, 16: 20}

# Calls before the timed ones: the first ones compile and allocate.
_WARM_UP_CALLS = 2

# Beam search asks vLLM for 2 × beams log-probabilities of each token; vLLM's default is 20.
_PEER_MAX_LOGPROBS = 64

# Positions of a prompt and its identifier; texts of the `tiny` profile have at most 96 tokens.
_PEER_MAX_TOKENS = 128

# Decodes a batch of queries.
AnswerBatch = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """How fast one engine decodes batches of one size."""

    rate: float
    """Queries a second."""
    p50_ms: float
    """Of milliseconds a call, the median, 99 of 100, and the worst."""
    p99_ms: float
    worst_ms: float


def decode(seed: int) -> list[Comparison]:
    """Compare queries a second and milliseconds a call, for one query and for sixteen at once."""
    speeds = {}
    for engine in (*ENGINES, PEER):
        speeds[engine] = _measure_in_process(engine, seed)
    comparisons = []
    for batch, rounds in _ROUNDS.items():
        for engine, engine_name in ENGINES.items():
            name = f"{engine_name}, {_BEAMS} beams, {batch} at once"
            ours = speeds[engine][batch]
            peer = speeds[PEER][batch]
            comparisons += _compare(name, ours, peer, n=rounds * batch)
    return comparisons


def _compare(name: str, ours: DecodeSpeed, peer: DecodeSpeed, n: int) -> list[Comparison]:
    peer_name = "vLLM's beam_search"
    return [
        Comparison(name, ours.rate, peer.rate, peer_name, "queries/s", n),
        Comparison(f"{name}, p50", ours.p50_ms, peer.p50_ms, peer_name, "ms", n),
        Comparison(f"{name}, p99", ours.p99_ms, peer.p99_ms, peer_name, "ms", n),
        Comparison(f"{name}, worst", ours.worst_ms, peer.worst_ms, peer_name, "ms", n),
    ]


def _measure_in_process(engine: str, seed: int) -> dict[int, DecodeSpeed]:
    """Speeds of one engine by batch size."""
    # One thread for each of them: they are compared on one core.
    completed = subprocess.run(
        python_module("ops.bench.decode", engine, str(seed)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ISOLATED_ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
    )
    if completed.returncode != 0:
        last_line = completed.stderr.strip().splitlines()[-1:]
        raise WorkFailedError(
            f"the {engine} engine could not be measured: {last_line}; install vLLM with: make vllm"
        )
    # vLLM may print before it.
    document = json.loads(completed.stdout.strip().splitlines()[-1])
    return {int(batch): DecodeSpeed(**speed) for batch, speed in document.items()}


def main(engine: str, seed: int) -> None:
    """Measure one engine and print its speeds by batch size as JSON."""
    document: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        answer = _open_engine(engine, seed, Path(folder))
        for batch, rounds in _ROUNDS.items():
            document[str(batch)] = asdict(_measure(answer, batch, rounds, seed))
        print(json.dumps(document), flush=True)


def _measure(answer: AnswerBatch, batch: int, rounds: int, seed: int) -> DecodeSpeed:
    texts = query_texts((rounds + _WARM_UP_CALLS) * batch, seed + batch)
    seconds = []
    for start in range(0, len(texts), batch):
        began = time.perf_counter()
        answer(texts[start : start + batch])
        seconds.append(time.perf_counter() - began)
    timed = seconds[_WARM_UP_CALLS:]
    p50_ms, p99_ms, worst_ms = (1e3 * np.quantile(timed, (0.5, 0.99, 1.0))).tolist()
    return DecodeSpeed(batch * rounds / sum(timed), p50_ms, p99_ms, worst_ms)


def _open_engine(engine: str, seed: int, folder: Path) -> AnswerBatch:
    """The shipped base's model with untrained identifier tokens, on one engine."""
    sigma = parts_from_base(Base.load(SHIPPED), profile("tiny")).sigma
    if engine == PEER:
        return _open_peer(sigma, folder)
    decoder = Decoder(sigma)
    decoding: TextDecodingEngine[Any] = decoder
    if engine == "vllm":
        export_text_decoder(sigma, folder)
        decoding = VllmDecoder.start(decoder, folder)
    shape = sigma.profile.shape
    branches = _random_trie(shape, seed).branches

    def answer(batch: Sequence[str]) -> object:
        return search_leaves(decoding, decoding.read_texts(batch), shape, _BEAMS, branches)

    return answer


def _random_trie(shape: IdentifierShape, seed: int) -> Trie:
    """A trie of images in random leaves."""
    leaves = np.random.default_rng(seed).integers(0, shape.leaves, _IMAGES)
    slots = np.arange(_IMAGES)
    trie = Trie(shape)
    trie.insert(leaves, slots, np.zeros(_IMAGES, np.float32), slots % shape.suffixes)
    return trie


def _open_peer(sigma: SigmaModel, folder: Path) -> AnswerBatch:
    """vLLM's own beam search over four tokens, which no trie constrains."""
    os.environ.update(VLLM_ENVIRONMENT)
    export_text_decoder(sigma, folder)
    # Its beam search asks the tokenizer for the end token.
    sigma.tokenizer.save_pretrained(str(folder))
    # Imported here: vLLM reads the environment when it is imported.
    from vllm import LLM
    from vllm.inputs import TextPrompt, TokensPrompt
    from vllm.sampling_params import BeamSearchParams

    # Otherwise as our own engine starts it, so that only the search differs.
    llm = LLM(
        model=str(folder),
        dtype="float32",
        enforce_eager=True,
        block_size=KV_BLOCK_TOKENS,
        max_logprobs=_PEER_MAX_LOGPROBS,
        max_model_len=_PEER_MAX_TOKENS,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        use_tqdm_on_load=False,
    )
    # Without an early end every beam has four codes, as ours have.
    parameters = BeamSearchParams(beam_width=_BEAMS, max_tokens=LEVELS, ignore_eos=True)

    def answer(batch: Sequence[str]) -> object:
        prompts: list[TokensPrompt | TextPrompt] = []
        for text in batch:
            prompts.append(TokensPrompt(prompt_token_ids=sigma.prompts.query_prompt(text)))
        return llm.beam_search(prompts, parameters, use_tqdm=False)

    return answer


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
