"""`sigma bench gpu`: queries, assignment and training of large backbones with random weights.

On a GPU `qwen-3b` and `qwen-7b` at their published sizes; on a CPU the same script on a miniature,
whose figures say that the script runs and nothing about a GPU.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog
import torch

from model.network.precision import default_device
from ops.bench.gpu.assignment import assignment_figures
from ops.bench.gpu.ceilings import Ceilings, ceilings, least_query_ms
from ops.bench.gpu.peer import peer_p50_ms
from ops.bench.gpu.queries import QueryBench
from ops.bench.gpu.random_model import random_model
from ops.bench.gpu.training import training_figures
from schemas.records import JsonObject

PROFILES = ("qwen-3b", "qwen-7b")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    images: int
    searches: int
    batches: Sequence[int]
    training_steps: int
    micro_batches: Sequence[int]
    """Sequences of a step; the first is what the profile says."""
    assigned: Sequence[int]
    """Pictures of a batch."""
    repeats: int


ON_GPU = Size(
    images=100_000,
    searches=200,
    batches=(4, 16),
    training_steps=6,
    micro_batches=(8, 32),
    assigned=(1, 16, 64),
    repeats=200,
)
IN_MINIATURE = Size(
    images=5000,
    searches=20,
    batches=(4,),
    training_steps=2,
    micro_batches=(8,),
    assigned=(4,),
    repeats=10,
)

_BEAMS = (10, 20)

# As the settings have it by default, for what is measured once.
_DEFAULT_BEAMS = 20


def gpu_bench(
    seed: int,
    profiles: Sequence[str] = PROFILES,
    size: Size | None = None,
    device: torch.device | None = None,
) -> JsonObject:
    """All figures; `device` is a GPU where there is one. Each is logged as soon as it is there."""
    chosen = device or default_device()
    on_gpu = chosen.type == "cuda"
    how_much = size or (ON_GPU if on_gpu else IN_MINIATURE)
    document: JsonObject = {
        "device": torch.cuda.get_device_name(chosen) if on_gpu else "cpu",
        "is_gpu": on_gpu,
        "torch": torch.__version__,
        "note": "" if on_gpu else "in miniature on a CPU: no figure of a GPU exists",
        "models": {},
    }
    found = None
    if on_gpu:
        found = ceilings(chosen)
        document["ceilings"] = asdict(found)
        log.info("ceilings", **document["ceilings"])
    for name in profiles:
        bench = _ModelBench(name, chosen, how_much, seed, found)
        document["models"][name] = bench.answering()
        # Of the first model alone: training larger ones takes several cards.
        if name == profiles[0]:
            document["models"][name] |= bench.training()
    return document


class _ModelBench:
    """One profile's model."""

    def __init__(
        self, name: str, device: torch.device, size: Size, seed: int, found: Ceilings | None
    ) -> None:
        self._name = name
        self._device = device
        self._size = size
        self._seed = seed
        self._ceilings = found

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def answering(self) -> JsonObject:
        """Figures of a model that only answers, in bfloat16."""
        size, seed = self._size, self._seed
        sigma = random_model(self._name, self._device, seed, at_size=self._on_gpu, trained=False)
        figures: JsonObject = {"parameters": sum(each.numel() for each in sigma.parameters())}
        if self._ceilings is not None:
            figures["least_query_ms"] = least_query_ms(sigma, self._ceilings)
        bench = QueryBench(sigma, size.images, seed)
        figures["queries"] = self._queries(bench)
        figures["mask_ms"] = bench.mask_ms(_DEFAULT_BEAMS, size.repeats)
        if self._on_gpu:
            figures["agreement"] = asdict(bench.agreement(_DEFAULT_BEAMS, size.searches // 4))
        figures["peer_p50_ms"] = peer_p50_ms(sigma, _DEFAULT_BEAMS, size.repeats // 20 + 1, seed)
        figures["assignment"] = []
        for batch in size.assigned:
            batches = max(2, size.repeats // 4 // batch)
            figures["assignment"].append(asdict(assignment_figures(sigma, batch, batches, seed)))
        log.info("answering", model=self._name, **{**figures, "queries": "above"})
        return figures

    def _queries(self, bench: QueryBench) -> list[JsonObject]:
        """One at a time, with graphs and without where there are any; then several at once."""
        searches = self._size.searches
        asked = []
        for graphs in (True, False) if self._on_gpu else (False,):
            some = searches if graphs or not self._on_gpu else searches // 5
            for guided in (False, True):
                asked += [(beams, 1, some, graphs, guided) for beams in _BEAMS]
        for batch in self._size.batches:
            asked.append((_DEFAULT_BEAMS, batch, max(3, searches // batch), self._on_gpu, False))
        rows = []
        for beams, batch, count, graphs, guided in asked:
            found = asdict(bench.measure(beams, batch, count, graphs=graphs, guided=guided))
            log.info("queries", model=self._name, **found)
            rows.append(found)
        return rows

    def training(self) -> JsonObject:
        """Figures of training on one card."""
        _forget(self._device)
        seed, steps = self._seed, self._size.training_steps
        sigma = random_model(self._name, self._device, seed, at_size=self._on_gpu, trained=True)
        figures = []
        for rows in self._size.micro_batches:
            for found in training_figures(sigma, rows, steps, seed):
                log.info("training", model=self._name, **asdict(found))
                figures.append(asdict(found))
        return {"training": figures}


def _forget(device: torch.device) -> None:
    """Give back the memory of a model that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def as_text(document: JsonObject) -> str:
    """The figures for people."""
    lines = [str(document["device"])]
    if document["note"]:
        lines.append(str(document["note"]))
    return "\n".join([*lines, json.dumps(document, indent=2)])
