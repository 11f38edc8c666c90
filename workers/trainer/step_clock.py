"""The step clock: how long the steps of a training take."""

import time
from dataclasses import dataclass

from schemas.training_record import TrainingRecord


@dataclass(frozen=True, slots=True)
class StepClock:
    """When a step began, in seconds of wall time and of this process's CPU time."""

    wall: float
    cpu: float

    @classmethod
    def start(cls) -> "StepClock":
        """A clock that starts now."""
        return cls(time.monotonic(), time.process_time())

    def cpu_seconds(self) -> float:
        """CPU time of this process since the start."""
        return time.process_time() - self.cpu

    def add_to(self, record: TrainingRecord, step: str) -> TrainingRecord:
        """The record with the time since the start added to that of a step."""
        return record.with_time(step, time.monotonic() - self.wall, self.cpu_seconds())
