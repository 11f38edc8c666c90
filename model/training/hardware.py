"""GPUs: what their makers publish. Dense bfloat16 rates, without sparsity."""

from dataclasses import dataclass

from schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One model of GPU."""

    name: str
    memory_gib: float
    """As drivers report it."""
    teraflops: float
    """Dense bfloat16 products with float32 sums, 10^12 operations a second."""
    bandwidth_tb_s: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 140.4, 989, 4.8),
        Gpu("h100", 79.6, 989, 3.35),
        Gpu("a100", 79.3, 312, 2.04),
        Gpu("l40s", 45.0, 362, 0.864),
        Gpu("a6000", 48.0, 155, 0.768),
        Gpu("rtx4090", 24.0, 165, 1.008),
        Gpu("l4", 22.5, 121, 0.3),
    )
}

# Share of a card's memory that tensors can have: the rest is the driver's context and what the
# allocator cannot use. An assumption.
USABLE = 0.92

# Share of the published rate that products of a training reach: .35 on an H200
# (docs/experiments/gpu.md).
UTILISATION = 0.35

# Seconds in which a host starts the operations of one layer of the decoder for a micro-batch:
# forwards, once more where layers are computed again, and backwards. Measured there too; what a GPU
# does with a small micro-batch takes less.
LAUNCH_S = 0.0072


def gpu(name: str) -> Gpu:
    """The GPU of that name; `UsageError` when there is none."""
    if name not in GPUS:
        raise UsageError(f"gpu must be one of {', '.join(GPUS)}, got {name!r}")
    return GPUS[name]
