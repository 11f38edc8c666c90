"""Qwen2.5-VL-3B's true widths, with one layer in each half, from a folder, as on a GPU.

The whole way of a generation at true width once; killing and resuming every stage on a narrow model
of the same classes and with the same `compute`.
"""

import json
import multiprocessing
import shutil
import signal
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.beam import search_leaves
from model.decoding.decoder import Decoder
from model.decoding.export import export_text_decoder
from model.network.backbone import backbone_info
from model.network.checkpoint import load_checkpoint
from model.network.inputs import ImagePreprocessor
from model.network.profiles import profile
from model.network.published import backbone_config
from model.network.sigma import SigmaModel
from model.network.vocabulary import extend_vocabulary
from model.progress import quiet
from tests import vl_checkpoints
from tests.integration.small_training import LENIENT, fill, states, tiny_services
from tests.integration.test_named_models import LATER, SEEN, catch_up, evaluated, offline
from tests.integration.true_shape_training import (
    NAME,
    asked,
    small_tokenizer,
    sources,
    train_and_die,
    train_whole,
    true_backbone,
    true_shape,
)
from tests.unit.model.conftest import TEXTS
from workers.repository import generations
from workers.repository.connection import Connection
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import train


# Gigabytes of checkpoints are written, which takes long on a busy disk.
@pytest.mark.timeout(900)
def test_true_widths_go_the_whole_way_in_bfloat16_and_offline(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    given = sources(tmp_path, true_shape(tmp_path / "model"), epochs=1, batch=12)
    fill(services, conn, SEEN)
    first = train(services, None, asked(given, "--from-store"), quiet)
    assert (first.state, list(first.record.stages)[-1]) == ("live", "align")
    folder = services.checkpoints / f"g{first.generation}"
    _assert_true_shape(folder)
    shutil.rmtree(given["model"])
    shutil.rmtree(given["encoder"])
    fill(services, conn, LATER, first=SEEN)
    catch_up(services, conn)
    answer = json.loads(offline(services, database, "query", TEXTS[0], "--json"))
    assert len(answer["results"]) == 10
    assert json.loads(offline(services, database, "explain", "image 000", "--json"))["caption"]
    evaluated(services, conn)
    _assert_exported(folder, tmp_path / "export")
    refreshed = train(services, None, TrainRequest(mode="refresh", gates=LENIENT), quiet)
    assert refreshed.state == "shadow"
    trained = load_checkpoint(services.checkpoints / f"g{refreshed.generation}").sigma
    # Of weights that had been read in half precision most would be whole bfloat16 numbers.
    weight = trained.backbone.model.language_model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    assert (weight != weight.bfloat16().float()).float().mean() > 0.9


def _assert_true_shape(folder: Path) -> None:
    """The published widths in the checkpoint, float32 to be trained and bfloat16 to answer."""
    sigma = load_checkpoint(folder, answering=True).sigma
    config, published = sigma.backbone.config, backbone_config(NAME)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        assert getattr(config.text_config, name) == getattr(published.text_config, name)
    assert config.vision_config.hidden_size == published.vision_config.hidden_size
    assert backbone_info(sigma.backbone).hidden == 2048
    assert {weight.dtype for weight in sigma.backbone.parameters()} == {torch.bfloat16}
    decoder = Decoder(sigma)
    logits = decoder.logits(0, decoder.read(decoder.read_texts([TEXTS[0]])).state)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())


def _assert_exported(folder: Path, export: Path) -> None:
    """The exported decoder is a Qwen2 of the same width with the answering weights."""
    export_text_decoder(load_checkpoint(folder, answering=True).sigma, export)
    config = json.loads((export / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["dtype"]) == (
        "qwen2",
        2048,
        "bfloat16",
    )


@pytest.mark.parametrize("lora_rank", [0, 4], ids=["all weights", "adapters"])
def test_a_training_killed_in_every_stage_has_the_losses_of_an_undisturbed_one(
    tmp_path: Path, database: str, conn: Connection, lora_rank: int
) -> None:
    services = tiny_services(tmp_path / "home", database)
    model = vl_checkpoints.qwen(tmp_path / "model")
    given = sources(tmp_path, model, epochs=2, batch=4, lora_rank=lora_rank)
    fill(services, conn, SEEN)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.true_shape_training"])
    more: tuple[str, ...] = ("--from-store",)
    asked_for = given
    for killed in (("1 memorisation", 5), ("2 comprehension", 9), ("3 alignment", 9)):
        process = context.Process(
            target=train_and_die, args=(services.home, database, asked_for, more, killed)
        )
        process.start()
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, killed
        more, asked_for = ("--resume",), {}
    resumed = train_whole(services.home, database, {}, "--resume")
    undisturbed = train_whole(services.home, database, given, "--from-store")
    assert resumed == undisturbed
    assert resumed.keys() == {"memorize", "comprehend", "align"}
    first, second = (generation.id for generation in generations.generations(conn))
    one, other = (states(services.checkpoints / f"g{number}") for number in (first, second))
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_the_published_vocabulary_passes_a_step_and_a_query_in_bfloat16() -> None:
    tokenizer = small_tokenizer()
    backbone = true_backbone(tokenizer, 151_936)
    paper = profile("qwen-3b")
    as_on_a_gpu = replace(paper, compute=replace(paper.compute, dtype="bfloat16"))
    extend_vocabulary(backbone, tokenizer, as_on_a_gpu)
    nothing = ImagePreprocessor(None, 0, 0)
    sigma = SigmaModel(backbone, tokenizer, nothing, as_on_a_gpu).train()
    described = sigma.prompts.comprehend((3, 2, 1, 0, 5), TEXTS[0])
    aligned = sigma.prompts.align(TEXTS[1], (1, 2, 3, 4, 5), 0.5)
    generation = sigma([described, aligned], None)[0]
    # Random weights know nothing of 151,936 words.
    assert abs(generation.item() - log(151_936)) < 1
    generation.backward()
    rows = backbone.get_input_embeddings().weight.grad[sigma.levels[0]]
    assert rows.dtype == torch.float32
    assert bool((rows.abs().sum(1) > 0).all())
    sigma.backbone.to(dtype=torch.bfloat16)
    decoder = Decoder(sigma)
    beams = search_leaves(decoder, decoder.read_texts([TEXTS[2]]), paper.shape, 10, None)
    assert bool(torch.isfinite(beams.scores).all())
