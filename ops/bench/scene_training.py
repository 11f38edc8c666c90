"""Scene training: a first generation for benchmarks, from a few rendered scenes."""

from pathlib import Path

from model.network.profiles import Profile, profile
from ops.cli.progress_bar import bar
from ops.scenes.corpus import CorpusConfig, generate
from stream.manifest import read_manifest
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import TrainResult, train

# Scenes to train on: what is measured is time, so a bad model serves.
TRAINING_IMAGES = 240

# Any seed does; the scenes of a benchmark are disjoint ranges of one corpus, these the first.
CORPUS_SEED = 3


def train_on_scenes(services: Services, folder: Path, size: Profile | None = None) -> TrainResult:
    """Train the tiny profile, or the one given, and let it go live. The scenes lie in `folder`."""
    corpus = CorpusConfig(TRAINING_IMAGES, seed=CORPUS_SEED)
    manifest = generate(corpus, folder / "seen", "train", lambda _: None)
    request = TrainRequest(size or profile("tiny"), adapt="never")
    return train(services, read_manifest(manifest), request, bar)
