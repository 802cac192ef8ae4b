"""Clocks for tests: the machine's own tell nothing."""

from __future__ import annotations

from dcase.training.budget import Seconds


class Clock:
    """Clocks that go forward by so much whenever they are read, and when they are told to."""

    def __init__(self, wall: float = 0.01, cpu: float = 0.0):
        self.now, self.tick = Seconds(100.0, 7.0), Seconds(wall, cpu)

    def __call__(self) -> Seconds:
        self.now += self.tick
        return self.now

    def pass_by(self, wall: float, cpu: float = 0.0) -> None:
        self.now += Seconds(wall, cpu)
