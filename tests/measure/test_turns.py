"""Programs in turns: who is called when, and what is counted."""
import time

import pytest

from vit_efficient.measure.turns import busy_clock, in_turns


def test_programs_take_turns_and_the_first_round_does_not_count():
    now, called = [0.0], []

    def program(name, costs):
        """Its calls take `costs` seconds in turn, then 1."""
        costs = iter(costs)

        def call():
            called.append(name)
            now[0] += next(costs, 1.0)
        return call
    programs = {"a": program("a", [100, 2, 4]), "b": program("b", [200, 8, 8])}
    found = in_turns(programs, rounds=2, steps=2, clock=lambda: now[0])
    assert called == ["a", "b"] + ["a", "a", "b", "b"] * 2
    assert found == {"a": [3.0, 1.0], "b": [8.0, 1.0]}


def test_what_a_program_returns_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr("jax.block_until_ready", waited.append)
    in_turns({"a": lambda: "x"}, rounds=1, steps=3)
    assert waited == ["x"] * 4


@pytest.mark.parametrize("backend, clock", [
    ("cpu", time.process_time), ("gpu", time.perf_counter), ("tpu", time.perf_counter)])
def test_a_cpu_is_timed_by_the_processs_own_time(monkeypatch, backend, clock):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert busy_clock() is clock
