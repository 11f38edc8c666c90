"""Loading in the background: the live generation first, failures told and tried again, nothing kept that nobody wants."""

import threading
from datetime import UTC, datetime

import pytest

from schemas.errors import RefuseToStartError
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.generations import Generation
from workers.runtime.model_loader import ModelLoader


def generation(number: int, state: str = "shadow") -> Generation:
    return Generation(
        number,
        state,
        None,
        None,
        IdentifierShape((2, 2, 2, 2), 4),
        GenerationConfig(),
        datetime.now(UTC),
        None,
        None,
    )


def test_the_live_generation_is_loaded_first_and_the_newest_next() -> None:
    begun, gate = [], threading.Event()

    def load(one: Generation) -> int:
        gate.wait(30)
        begun.append(one.id)
        return one.id

    loading = ModelLoader(load)
    loading.want([generation(1, "retired"), generation(2, "live"), generation(3)])
    assert loading.loaded() == {}
    gate.set()
    assert loading.wait(generation(1, "retired")) == 1
    assert begun == [2, 3, 1]
    assert loading.loaded() == {1: 1, 2: 2, 3: 3}
    loading.close()


def test_a_failure_is_counted_raised_to_who_waits_and_tried_again() -> None:
    failures: list[int] = []
    broken = [True]

    def load(one: Generation) -> str:
        if broken[0]:
            raise RefuseToStartError("the folder is empty")
        return "loaded"

    loading = ModelLoader(load, lambda: failures.append(1))
    with pytest.raises(RefuseToStartError):
        loading.wait(generation(1))
    # Nobody waits: it is left alone for a while.
    loading.want([generation(1)])
    assert loading.loaded() == {}
    assert len(failures) == 1
    broken[0] = False
    assert loading.wait(generation(1)) == "loaded"
    loading.close()


def test_what_is_wanted_no_more_is_forgotten() -> None:
    loading = ModelLoader(lambda one: one.id)
    loading.want([generation(1), generation(2)])
    assert loading.wait(generation(2)) == 2
    loading.want([generation(2)])
    assert loading.loaded() == {2: 2}
    loading.close()
