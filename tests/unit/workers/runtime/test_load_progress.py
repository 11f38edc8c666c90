"""Load progress: a process that works says so, one that is stuck falls silent."""

import threading
from collections.abc import Iterator

import pytest

from workers.runtime.load_progress import LEAST_BYTES, Work, loading_progress

MIB = 1 << 20


class Told:
    """What was said, and a way to wait for the next word."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._heard = threading.Semaphore(0)

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self._heard.release()

    def wait(self, times: int) -> None:
        for _ in range(times):
            assert self._heard.acquire(timeout=30)


class Looks:
    """The work of a process at each look; the last one holds from there on."""

    def __init__(self, *works: Work) -> None:
        self._works: Iterator[Work] = iter(works)
        self._last = works[-1]
        self.seen = threading.Semaphore(0)

    def __call__(self) -> Work:
        self._last = next(self._works, self._last)
        self.seen.release()
        return self._last


def test_each_look_that_finds_work_is_told_with_how_much_it_was() -> None:
    told = Told()
    looks = Looks(
        Work(1.0, 5 * MIB), Work(3.5, 5 * MIB), Work(3.5, 2005 * MIB), Work(3.5, 2005 * MIB)
    )
    with loading_progress("generation 3", told, interval_s=0.001, work=looks):
        told.wait(3)
        # Two more looks, which find nothing new.
        for _ in range(6):
            assert looks.seen.acquire(timeout=30)
    assert told.texts == [
        "loading generation 3",
        "loading generation 3: 0 MiB read, 2.5 s of processor time",
        "loading generation 3: 2,000 MiB read, 2.5 s of processor time",
    ]


@pytest.mark.parametrize(
    ("cpu_s", "read", "counts"),
    [(0.1, 0, False), (0.3, 0, True), (0.0, LEAST_BYTES, False), (0.0, LEAST_BYTES + 1, True)],
)
def test_a_little_work_beside_waiting_is_none(cpu_s: float, read: int, counts: bool) -> None:
    assert Work(5 + cpu_s, 100 + read).is_beyond(Work(5, 100), 2.0) is counts


def test_what_a_process_reads_and_computes_is_work(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("weights") / "weights"
    file.write_bytes(bytes(4 * MIB))
    before = Work.of_this_process()
    file.read_bytes()
    sum(range(3_000_000))
    after = Work.of_this_process()
    assert after.cpu_s > before.cpu_s
    assert after.read_bytes - before.read_bytes >= 4 * MIB


def test_an_error_of_the_load_goes_on_and_nothing_is_said_afterwards() -> None:
    told = Told()
    looks = Looks(*[Work(float(second), 0) for second in range(10_000)])

    def load() -> None:
        with loading_progress("generation 4", told, interval_s=0.001, work=looks):
            told.wait(2)
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        load()
    assert all(thread.name != "load progress" for thread in threading.enumerate())
