"""Floors of the CUDA kernels: values computed by hand, growth with the work, and the table in the docs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aristos.bench.floors import (
    BYTES,
    GPUS,
    KERNELS,
    MEANING,
    GpuCall,
    KernelWork,
    calls,
    chain,
    digits,
    floor,
    layer,
    main,
    page,
)
from aristos.errors import InputError
from aristos.models import PRESETS

A100, H100, H200 = GPUS


pytestmark = pytest.mark.parallel


def us(gpu, kind, work):
    return floor(gpu, kind, work)[0]


def test_shape_a_by_hand():
    """1024 tokens, H 1024, F 4096, 8 experts, 2 for each token, bf16, on one H100: all numbers by hand.

    2048 rows. x: 2 MiB. A matrix of weights: 8 MiB, eight of them 64 MiB. h: 16 MiB. Return rows: 4 MiB.
    """
    (call,) = calls("a", "bf16", 1)
    mib, hbm = 1 << 20, 3.35e6  # bytes, bytes a microsecond
    expected = {
        "route": (2 * mib + 32768 + 24576) / hbm,  # x; 1024 x 8 float32; 12 bytes a choice. (16.8 MFLOP take 0.25 us)
        "place": 49152 / hbm,
        "dispatch": 0,
        "up": (2 + 64 + 16) * mib / hbm,  # longer than the 17.4 us of 17.18 GFLOP
        "down": (16 + 64 + 4) * mib / hbm,
        "return": 0,
        "combine": (4 * mib + 2 * mib + 24576) / hbm,
    }
    for name, kernel in KERNELS.items():
        assert us(H100, "bf16", kernel(call)) == pytest.approx(expected[name]), name
    assert chain(H100, call) == pytest.approx(sum(expected.values()))
    assert us(H100, "bf16", layer(call)) == pytest.approx((2 + 2 + 128) * mib / hbm + 32768 / hbm)
    assert us(A100, "bf16", layer(call)) == pytest.approx(34359738368 / 312e6)  # arithmetic takes longer than memory
    assert us(A100, "bf16", KERNELS["up"](call)) == pytest.approx(17179869184 / 312e6)


def test_a_gated_float32_call_on_4_gpus_by_hand():
    """10 tokens of 100 float32 on each of 4 GPUs, F 50, 8 gated experts, 4 for each token.

    So a GPU has 2 experts and 40 rows, of which 30 go to other GPUs.
    """
    call = GpuCall(10, 100, 50, 8, 4, gated=True, kind="f32", gpus=4)
    works = {name: kernel(call) for name, kernel in KERNELS.items()}
    assert works["route"] == KernelWork(plain=16000, memory=4000 + 3200 + 480)
    assert works["place"] == KernelWork(memory=960)
    assert works["dispatch"] == KernelWork(memory=4000 + 12000, link=12000)
    assert works["up"] == KernelWork(products=2 * 40 * 100 * 50 * 2, memory=40 * 400 + 2 * 2 * 20000 + 40 * 200)
    assert works["down"] == KernelWork(products=2 * 40 * 100 * 50, memory=40 * 200 + 2 * 20000 + 40 * 400)
    assert works["return"] == KernelWork(memory=24000, link=12000)
    assert works["combine"] == KernelWork(plain=8000, memory=40 * 400 + 4000 + 480)
    assert layer(call) == KernelWork(
        products=1_200_000, plain=24000, memory=2 * 4000 + 3200 + 3 * 2 * 20000, link=24000
    )
    assert floor(A100, "f32", layer(call)) == (pytest.approx(max(1.224 / 19.5, 131.2 / 2039, 24 / 300)), "link")


def test_few_rows_read_few_weights():
    one = GpuCall(1, 64, 32, 16, 2)
    assert one.active == 2
    assert replace(one, gpus=4).active == 2  # all GPUs have 8 rows for 8 of 16 experts; a quarter of these are here
    assert replace(one, tokens=100).active == 16


def test_tensor_cores_and_float32_units_work_in_parallel():
    work = KernelWork(products=312e6, plain=39e6)
    assert floor(A100, "bf16", work) == (pytest.approx(2.0), "compute")  # plain arithmetic takes longer: 39e6 / 19.5e6
    assert floor(A100, "f32", work) == (pytest.approx(18.0), "compute")  # both on float32 units: 16 + 2


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_peaks_follow_from_sms_and_clock(gpu):
    """Peaks are SMs x FLOPs per cycle x boost clock, by the white papers, to a percent.

    This finds typing errors, and rates that hold for sparse matrices alone.
    """
    clock, plain, tensor = {"A100": (1.41e9, 128, 2048)}.get(gpu.name, (1.83e9, 256, 4096))
    boost = clock if gpu.name == "A100" else 1.98e9  # an H100's tensor cores have a lower clock than its float32 units
    assert gpu.f32 == pytest.approx(gpu.sms * plain * boost, rel=0.01)
    assert gpu.bf16 == gpu.f16 == 2 * gpu.tf32 == pytest.approx(gpu.sms * tensor * clock, rel=0.01)


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("preset", PRESETS)
def test_more_work_never_takes_less(preset, kind):
    """More work is more tokens, wider rows, or a gate. A slower GPU is no faster either.

    The fused layer's floor is at most the sum of its kernels' floors.
    """
    for call in calls(preset, kind, 1):
        for gpus in (1, 2, 8):
            here = replace(call, gpus=gpus)
            bigger = [
                replace(here, tokens=2 * here.tokens),
                replace(here, hidden=2 * here.hidden),
                replace(here, ffn=2 * here.ffn),
                replace(here, gated=True),
            ]
            for work in (*KERNELS.values(), layer):
                assert us(H200, kind, work(here)) <= us(H100, kind, work(here)) <= us(A100, kind, work(here))
                for more in bigger:
                    assert us(H100, kind, work(here)) <= us(H100, kind, work(more)), (work, more)
            assert us(H100, kind, layer(here)) <= chain(H100, here)
    assert layer(replace(call, gpus=8)).link > layer(replace(call, gpus=2)).link > layer(call).link == 0


def test_the_docs_have_the_output(capsys):
    """docs/performance.md has the output of the command for bfloat16, to the letter."""
    assert main([]) == 0
    assert capsys.readouterr().out == page() + "\n"
    assert main(["--kinds", "bf16"]) == 0
    printed = capsys.readouterr().out
    docs = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert printed in docs, "put the output of `python -m aristos.bench floors --kinds bf16` into docs/performance.md"
    assert "nothing here was measured" in MEANING
    assert MEANING in docs


def test_the_command_needs_no_mpi_and_writes_nothing(tmp_path):
    code = (
        "import sys; sys.modules['mpi4py'] = None; from aristos.bench.main import main;"
        "sys.exit(main(['floors', 'b', '--kinds', 'tf32', '--gpus', '2']))"
    )
    root = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "tf32, 2 GPUs" in done.stdout
    assert "| B 4096/128/128/8/2 | H200 |" in done.stdout
    assert not list(tmp_path.iterdir())


def test_wrong_input_is_named(capsys):
    with pytest.raises(InputError, match="kind must be one of f32, tf32, bf16, f16, got 'fp8'"):
        GpuCall(1, 1, 1, 1, 1, kind="fp8")
    with pytest.raises(InputError, match=r"gpus must be in 1\.\.8, the number of experts, got 9"):
        GpuCall(1, 1, 1, 8, 1, gpus=9)
    for arguments in (["zz"], ["--kinds", "fp8"], ["--gpus", "0"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "unknown preset 'zz'; the presets are a, b, c" in capsys.readouterr().err


def test_digits():
    assert [digits(v) for v in (0.001, 0.0123, 9.876, 12.34, 1234.5)] == ["< 0.01", "0.01", "9.88", "12.3", "1234"]
