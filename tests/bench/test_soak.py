"""`aristos soak`: all ranks draw the same objects; it finds wrong outputs, names the object, and finds leaks."""

from __future__ import annotations

import mmap
from dataclasses import replace

import numpy as np
import pytest

from aristos import MoE, MoEConfig, reference
from aristos.bench import health, world
from aristos.bench.soak import Asked, SoakError, draw, largest_terms, near_kink, soak
from aristos.bench.world import World
from aristos.cli import soak as command
from aristos.cli.soak import options


def test_objects_are_drawn_alike_and_differ():
    drawn = [draw(Asked(5, 64), number, 4) for number in range(60)]
    assert [str(each) for each in drawn] == [str(draw(Asked(5, 64), number, 4)) for number in range(60)]
    assert len({str(each) for each in drawn}) == 60
    for name in ("schedule", "train", "moves", "ranks_per_node", "threads", "layers"):
        assert len({each.options[name] for each in drawn}) > 1, name
    assert any(isinstance(rank, list) for each in drawn for rank in each.options["placement"] or ())
    assert {each.cfg.dtype for each in drawn} == {"float32", "bfloat16", "float16"}


def test_given_levels_and_nodes_change_nothing_else():
    """With two levels some objects also have sums, where they can. The command of an object has what was given."""
    asked, sums = Asked(5, 64, 2, 3), 0
    for number in range(60):
        plain, given = draw(Asked(5, 64), number, 6), draw(asked, number, 6)
        assert replace(given.cfg, combine="rows") == replace(plain.cfg, levels=2)
        assert given.options == plain.options | {"ranks_per_node": 3}
        if given.cfg.combine == "sums":
            sums += 1
            assert (given.options["schedule"], given.options["train"]) == ("fused", False)
    assert 5 < sums < 40
    words = asked.command(7).split()
    assert words[:2] == ["aristos", "soak"]
    assert vars(options(words[2:])).items() >= {"seed": 5, "first": 7, "levels": 2, "ranks_per_node": 3}.items()


@pytest.mark.parametrize("words", ["--minutes nan", "--minutes -1", "--seed -1", "--first -1"])
def test_options_that_are_no_valid_numbers_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        options(words.split())
    assert ended.value.code == 2
    assert "argument " + words.split()[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_calls_of_drawn_objects_are_right(comm):
    counts = soak(World(comm), Asked(3, 48), 0, lambda counts: counts.objects < 6)
    assert (counts.objects, counts.calls > 6, counts.worst < 1) == (6, True, True)


@pytest.mark.parallel
def test_a_wrong_output_is_found_and_the_object_named(monkeypatch):
    real = MoE.__call__

    def wrong(self, *args, **options):
        y, *rest = real(self, *args, **options)
        if y.size:
            y.flat[-1] += np.abs(y).max() / 8
        return (y, *rest)

    monkeypatch.setattr(MoE, "__call__", wrong)
    with pytest.raises(
        SoakError, match=r"the error of y must be at most the error of rounding to \w+, got [\d.e+]+ times"
    ) as found:
        soak(World(), Asked(3, 48), 0, lambda counts: counts.objects < 20)
    assert found.value.__notes__[0].startswith("aristos soak --seed 3 --first ")
    assert "MoEConfig(" in found.value.__notes__[0]


def test_growth_in_the_second_half_is_a_leak():
    steady = [health.Sample(i, 100 + 200 * (i < 5), 10, 4, 0) for i in range(20)]  # it grows only at first
    assert health.leaks(steady) == []
    growing = [health.Sample(i, 100 + 20 * i, 10 + 2 * i, 4, 0) for i in range(20)]
    memory, files = health.leaks(growing)
    assert memory.startswith("memory_mib grew by 180.0 in the second half of the run; at most 64 is allowed")
    assert files.startswith("files grew by 18.0")
    assert health.growth(growing[:4]) == {}


def test_a_sample_counts_open_files_and_shared_memory(tmp_path):
    (tmp_path / "shared").write_bytes(bytes(4096))
    before = health.sample(0.0)
    with open(tmp_path / "shared", "r+b") as file, mmap.mmap(file.fileno(), 4096):
        now = health.sample(1.0)
    assert now.files >= before.files + 1
    assert now.shared == before.shared + 1
    assert now.memory_mib > 10
    assert now.threads >= 1


@pytest.mark.parametrize("gated", [False, True])
def test_tokens_near_a_kink_of_relu_are_found(gated):
    cfg = MoEConfig(8, 6, 3, 2, activation="relu", gated=gated, bias=True, max_tokens=5, shared_ffn=4)
    w = reference.weights(cfg)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    ids = np.array([[0, 1], [1, 2], [2, -1], [0, 2], [1, 0]])
    assert not near_kink(cfg, w, x, ids).any()
    name = "gate" if gated else "up"
    expert, shared = w[name + "_bias"], w[f"shared_{name}_bias"]
    expert[2, 3] -= np.float32(x[1] @ w[name][2, :, 3] + expert[2, 3])  # a hidden input of token 1 is 0
    assert near_kink(cfg, w, x, ids).tolist() == [False, True, False, False, False]
    shared[0] -= np.float32(x[4] @ w[f"shared_{name}"][:, 0] + shared[0])
    assert near_kink(cfg, w, x, ids).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("gated", [False, True])
def test_the_largest_terms_do_not_cancel(gated):
    cfg = MoEConfig(4, 6, 3, 2, gated=gated, bias=True, max_tokens=5)
    w = reference.weights(cfg)
    experts = {name: array for name, array in w.items() if name != "router"}
    experts["down"][:, 1:] = 0  # each output has one term, so it is as large as that term
    experts["down_bias"][:] = 0
    x = 10 * np.ones((1, 4), np.float32)
    most = 3 * sum(np.abs(reference.expert(cfg, x, e, **experts)).max() for e in (1, 2))
    given = {"ids": np.array([[1, 2]]), "weights": np.array([[3, -3]], np.float32)}
    assert abs(largest_terms(cfg, experts, x, **given) - most - 1) < 1e-6
    experts["down"][1, 1] = -experts["down"][1, 0]
    assert largest_terms(cfg, experts, x, **given) > most / 2


def test_ctrl_c_ends_the_job_on_all_ranks(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    ended: list[int] = []
    monkeypatch.setattr(World, "abort", lambda self, code: ended.append(code) or code)
    monkeypatch.setattr(world, "connect", World)
    monkeypatch.setattr("aristos.bench.soak.soak", interrupted)
    assert command.main(["--json"]) == 130
    assert ended == [130]
    assert capsys.readouterr().err == "aristos soak: interrupted\n"
