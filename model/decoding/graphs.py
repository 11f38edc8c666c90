"""Search graphs: whole searches, prompt and all levels, recorded once and replayed.

A search starts thousands of small operations; a CUDA graph starts all of them at once. It needs
inputs of unchanging shapes in unchanging places, so prompts are filled up to a bucket of batch and
length, and each bucket is captured when it is first asked for. The tables of trie and prefix means
are read where they are: they are updated in place, on the stream of the thread that owns them, and
a captured search sees what has changed.

Letters in shapes: B prompts, T prompt tokens, D width of the encoder.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import structlog
import torch
from torch import Tensor

from model.decoding.beam import BeamPlan, Beams
from model.network.inputs import EmbeddedRows

# Prompts of a graph: from one query to the largest batch of a query worker.
BATCHES = (1, 2, 4, 8, 16)

# Tokens of a prompt. Longer ones, as those of pictures are, run as they are.
LENGTHS = (16, 24, 32, 48, 64, 96, 128)

# Beams of a graph: more are asked for by deep pages alone, each time another number.
BEAMS = 128

# Graphs that are kept: each holds the memory of one search. Three lengths are common.
GRAPHS = 24

# Runs before a capture: libraries choose their kernels and take their memory in the first ones.
_WARM_UP_RUNS = 2

Tensors = tuple[Tensor, ...]

# A computation on tensors of fixed shapes.
Program = Callable[[Tensors], Tensors]

# Records a program, with inputs to try it on; returns what runs it again on others.
Capture = Callable[[Program, Tensors], Program]

# Runs a search as it is.
Search = Callable[[EmbeddedRows, BeamPlan, Tensor | None], Beams]

# Why a search runs as it is: its prompts, their length or its beams are in no bucket, or it could
# not be recorded.
EagerReason = Literal["prompts", "length", "beams", "capture"]

log = structlog.get_logger()


class SearchGraphs:
    """The recorded searches of one decoder. For one thread."""

    def __init__(self, capture: Capture, limit: int = GRAPHS) -> None:
        self.captured = 0
        """Searches that were recorded."""
        self.replayed = 0
        """Searches that a recording answered."""
        self.eager: Counter[str] = Counter()
        """Searches that ran as they are, by their `EagerReason`."""
        self._capture = capture
        self._limit = limit
        self._kept: OrderedDict[Hashable, Program | None] = OrderedDict()
        """By bucket and plan, the one used last at the end; None where capturing failed."""

    @staticmethod
    def bucket(batch: int, length: int) -> tuple[int, int]:
        """The batch and the length that prompts are filled up to; their own beyond the largest."""
        return _least(BATCHES, batch), _least(LENGTHS, length)

    def search(
        self, search: Search, rows: EmbeddedRows, plan: BeamPlan, queries: Tensor | None
    ) -> Beams:
        """Search behind rows that fill a bucket by a graph, others as they are."""
        batch, length = rows.mask.shape
        misfit = _misfit(batch, length, plan.beams)
        if misfit is not None:
            self.eager[misfit] += 1
            return search(rows, plan, queries)
        inputs: Tensors = (rows.tokens, rows.mask, rows.embeddings, rows.positions)
        if queries is not None:
            inputs = (*inputs, queries)
        replay = self._replay((batch, length, plan.key), _program(search, plan), inputs)
        if replay is None:
            self.eager["capture"] += 1
            return search(rows, plan, queries)
        self.replayed += 1
        return _beams(plan, replay(inputs))

    def _replay(self, key: Hashable, program: Program, inputs: Tensors) -> Program | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while len(self._kept) >= self._limit:
            self._kept.popitem(last=False)
        replay = None
        try:
            replay = self._capture(program, inputs)
            self.captured += 1
        except RuntimeError as error:
            # Memory, most of all. Queries go on, slower.
            log.warning("search not captured", batch=len(inputs[0]), reason=str(error))
        self._kept[key] = replay
        return replay


def _misfit(batch: int, length: int, beams: int) -> EagerReason | None:
    """What is in no bucket; None where all is."""
    if batch not in BATCHES:
        return "prompts"
    if length not in LENGTHS:
        return "length"
    return "beams" if beams > BEAMS else None


def _program(search: Search, plan: BeamPlan) -> Program:
    """A search as a computation on tensors alone."""

    def run(inputs: Tensors) -> Tensors:
        rows = EmbeddedRows(*inputs[:4])
        found = search(rows, plan, inputs[4] if len(inputs) > 4 else None)
        parts = (found.leaves, found.scores, found.suffix_gains, found.promises, found.states)
        return tuple(part for part in parts if part is not None)

    return run


def _beams(plan: BeamPlan, outputs: Tensors) -> Beams:
    """The other way round: of a decoder, which has states, with suffixes or a guide's promises."""
    leaves, scores, *more, states = outputs
    extra = more[0] if more else None
    # Five tokens have no guide.
    if plan.five_tokens:
        return Beams(leaves, scores, states, suffix_gains=extra)
    return Beams(leaves, scores, states, promises=extra)


def _least(bounds: Sequence[int], value: int) -> int:
    return next((bound for bound in bounds if bound >= value), value)


def capture_cuda() -> Capture:
    """Records on a GPU. All graphs share one pool of memory: they never run at once."""
    pool = torch.cuda.graph_pool_handle()

    def capture(program: Program, inputs: Tensors) -> Program:
        own = tuple(part.clone() for part in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                program(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another one may be loading the next generation.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = program(own)

        def replay(new: Tensors) -> Tensors:
            for place, value in zip(own, new, strict=True):
                place.copy_(value)
            graph.replay()
            return outputs

        return replay

    return capture
