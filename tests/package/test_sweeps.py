"""Runs with one number after another take every combination of a sweep, and every value of each axis in each run."""

from __future__ import annotations

import sweeps


def test_parts_share_all_combinations(monkeypatch):
    taken = []
    for number in range(7, 7 + sweeps.PARTS):
        monkeypatch.setenv("KERNELS", str(number))
        taken += sweeps.share(range(10))
    assert sorted(taken) == list(range(10))
    monkeypatch.setenv("KERNELS", "all")
    assert list(sweeps.share(range(10))) == list(range(10))


def test_values_take_turns(monkeypatch):
    for count in range(1, 6):
        pairs = set()
        for number in range(count):
            monkeypatch.setenv("KERNELS", str(number))
            pairs |= {(place, value) for place in range(6) for value in sweeps.turn(range(count), place)}
            if number == 0:
                assert {value for _, value in pairs} == set(range(count))
        assert len(pairs) == 6 * count
    assert sweeps.turn([]) == []
    monkeypatch.setenv("KERNELS", "all")
    assert sweeps.turn([1, 2, 3]) == [1, 2, 3]


def test_a_run_at_the_same_time_of_the_next_day_has_another_number(monkeypatch):
    numbers = []
    for hour in (0, 24, 25):
        monkeypatch.delenv("KERNELS", raising=False)
        monkeypatch.setattr(sweeps.time, "time", lambda at=hour: 3600.0 * at)
        sweeps.pytest_configure()
        numbers.append(sweeps.number())
    assert numbers == [0, 31, 32]
