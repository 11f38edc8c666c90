"""The profile `small`: without any option it has an encoder that has seen the world."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.network.base import SHIPPED
from model.network.profiles import profile
from model.progress import quiet
from tests.integration.small_training import fill, request, tiny_services
from tests.unit.model.conftest import TEXTS
from workers.generations.catch_up import CatchUp
from workers.generations.image_assigner import assigner_loader
from workers.query.loading import live_generation, open_searcher
from workers.repository.connection import Connection
from workers.trainer.trainer import train

SEEN, LATER = 8, 2

NAMES = ("church", "temple", "horse")


# Encoder, three stages and a stream, on machines that do more than that.
@pytest.mark.timeout(900)
def test_it_trains_and_answers_with_weights_of_the_registry(
    tmp_path: Path, database: str, conn: Connection
) -> None:
    services = tiny_services(tmp_path / "home", database)
    fill(services, conn, SEEN)
    whole = profile("small")
    short = [replace(stage, epochs=1, vector_views=1) for stage in whole.stages]
    small = whole.with_stages(tuple(short))
    trained = train(services, None, request(services, profile=small, base=SHIPPED), quiet)
    assert trained.state == "live"
    assert trained.record.encoder_source == "efficientnet-minilm"

    fill(services, conn, LATER, first=SEEN)
    generation = live_generation(conn)
    # What a training in full asks for again.
    assert generation.config.training.encoder_source == "efficientnet-minilm"
    load = assigner_loader(services.checkpoints, services.settings.retrieval)
    assert CatchUp(conn, generation, services.store, load).run() == LATER
    searcher = open_searcher(services, generation)
    sigma = searcher.engine.checkpoint.sigma
    assert sigma.projector is not None
    assert sigma.profile.tiny == whole.tiny
    assert sigma.backbone.config.text_config.hidden_size == 256
    # Its tokens are those of the captions, however they are written, and words that no caption has.
    assert sigma.prompts.text(TEXTS[0].upper()) == sigma.prompts.text(TEXTS[0])
    assert len(sigma.prompts.text("cathedral")) == 1
    # Words begin with those of the encoder, and training leaves them there.
    assert sigma.profile.encoder_words
    table = sigma.backbone.lm_head.weight[:, :-1]
    church, temple, horse = (table[sigma.prompts.text(word)[0]] for word in NAMES)
    assert torch.cosine_similarity(church, temple, dim=0) > 0.1
    assert torch.cosine_similarity(church, temple, dim=0) > torch.cosine_similarity(
        church, horse, dim=0
    )
    (answer,) = searcher.search([TEXTS[0]], 5)
    searcher.close()
    assert len(answer.hits) == 5
