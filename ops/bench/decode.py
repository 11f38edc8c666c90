"""`sigma bench decode`: both decoding engines beside vLLM's own beam search, each in a process of its own.

`python -m ops.bench.decode torch|vllm|own SEED` measures one of them and prints it as JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.decoding.beam import search_leaves
from model.decoding.decoder import Decoder
from model.decoding.export import export_text_decoder
from model.decoding.vllm import VLLM_ENVIRONMENT, VllmDecoder
from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.profiles import profile
from model.retrieval.trie import Trie
from ops.bench.query import texts
from ops.bench.rows import Row
from schemas.errors import WorkFailedError

_BEAMS, _IMAGES, _WARM = 20, 3000, 2
_ROUNDS = {1: 40, 16: 8}
_NAMES = {"torch": "torch engine", "vllm": "vLLM engine"}

Ask = Callable[[Sequence[str]], Any]


def decode(seed: int) -> list[Row]:
    """Queries a second and the median of seconds a call, for one query and sixteen at once."""
    found = {kind: _alone(kind, seed) for kind in ("torch", "vllm", "own")}
    rows = []
    for batch, rounds in _ROUNDS.items():
        for kind, name in _NAMES.items():
            ours, own = found[kind][str(batch)], found["own"][str(batch)]
            label, n = f"{name}, {_BEAMS} beams, {batch} at once", rounds * batch
            rows.append(Row(label, ours["rate"], own["rate"], "vLLM's beam_search", "queries/s", n))
            rows.append(
                Row(f"{label}, p50", ours["p50_ms"], own["p50_ms"], "vLLM's beam_search", "ms", n)
            )
    return rows


def _alone(kind: str, seed: int) -> dict[str, dict[str, float]]:
    """One engine, measured in a process of its own: vLLM keeps state that two engines cannot share."""
    command = [sys.executable, "-m", "ops.bench.decode", kind, str(seed)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        raise WorkFailedError(
            f"the {kind} engine cannot be measured: {done.stderr.strip().splitlines()[-1:]}"
        )
    measured: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main(kind: str, seed: int) -> None:
    """Measure one engine."""
    with tempfile.TemporaryDirectory() as folder:
        ask = _asker(kind, seed, Path(folder))
        print(
            json.dumps(
                {
                    str(batch): _measured(ask, batch, rounds, seed)
                    for batch, rounds in _ROUNDS.items()
                }
            ),
            flush=True,
        )


def _measured(ask: Ask, batch: int, rounds: int, seed: int) -> dict[str, float]:
    asked = texts((rounds + _WARM) * batch, seed + batch)
    seconds = []
    for begin in range(0, len(asked), batch):
        began = time.perf_counter()
        ask(asked[begin : begin + batch])
        seconds.append(time.perf_counter() - began)
    kept = seconds[_WARM:]
    return {"rate": batch * rounds / sum(kept), "p50_ms": statistics.median(kept) * 1e3}


def _asker(kind: str, seed: int, folder: Path) -> Ask:
    """The shipped base's model with untrained identifier tokens, and a trie of images at random places."""
    sigma = parts_from_base(Base.load(SHIPPED), profile("tiny")).sigma
    decoder, shape = Decoder(sigma), sigma.profile.shape
    if kind == "own":
        return _own(sigma, folder)
    trie = Trie(shape)
    leaves = np.random.default_rng(seed).integers(0, shape.leaves, _IMAGES)
    trie.insert(
        leaves,
        np.arange(_IMAGES),
        np.zeros(_IMAGES, np.float32),
        np.arange(_IMAGES) % shape.suffixes,
    )
    if kind == "torch":
        return lambda part: search_leaves(
            decoder, decoder.read_texts(part), shape, _BEAMS, trie.branches
        )
    export_text_decoder(sigma, folder)
    scorer = VllmDecoder.start(decoder, folder)
    return lambda part: search_leaves(scorer, scorer.read_texts(part), shape, _BEAMS, trie.branches)


def _own(sigma: Any, folder: Path) -> Ask:
    """vLLM's own beam search over four tokens, which no trie constrains."""
    os.environ.update(VLLM_ENVIRONMENT)
    export_text_decoder(sigma, folder)
    sigma.tokenizer.save_pretrained(str(folder))
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    llm = LLM(
        model=str(folder),
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_logprobs=64,
        max_model_len=128,
        kv_cache_memory_bytes=256 << 20,
        use_tqdm_on_load=False,
    )
    how = BeamSearchParams(beam_width=_BEAMS, max_tokens=4, ignore_eos=True)
    return lambda part: llm.beam_search(
        [{"prompt_token_ids": sigma.prompts.query_prompt(text)} for text in part],
        how,
        use_tqdm=False,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
