"""`aristos doctor` on GPUs: simulated drivers, GPUs, peers and packages, and how it queries real ones."""

from __future__ import annotations

from dataclasses import replace

import fake_nvml
import pytest

from aristos.doctor import gpu_facts, gpus, main
from aristos.doctor.finding import fail, ok
from aristos.doctor.gpu_facts import DriverAnswer, NodeGpus, RankGpus
from aristos.doctor.output import ReportWriter
from aristos.host.nodes import Nodes
from aristos.substrate.cuda.device_puts import Answer
from aristos.topology.model import Gpu, Mig

UUIDS = tuple(f"GPU-{digit * 8}-0000-0000-0000-000000000000" for digit in "abcd")
BUS = ("0000:01:00.0", "0000:02:00.0")
VERSIONS = {"numba-cuda": "0.30.4", "numpy": "2.4.9", "cuda-bindings": "12.9.10", "cuda-core": "1.2.2"}


def seen(count=2, visible=None, blocked=(), mig=False, **fields):
    """A machine with `count` GPUs, of which `visible` are visible to CUDA (None: all)."""
    slices = (Mig(0, "MIG-1", "1g.10gb"),) if mig else ()
    devices = tuple(
        Gpu(at, "NVIDIA H100", uuid=UUIDS[at], pci=address, mig=slices) for at, address in enumerate(BUS[:count])
    )
    driver = DriverAnswer("", (12, 9), UUIDS[: count if visible is None else visible], tuple(blocked))
    return NodeGpus(**{"driver": driver, "devices": devices, "bus": BUS, "files": count} | fields)


NOTHING = NodeGpus(None)
ARCHS = DriverAnswer("", (12, 9), UUIDS[:2], (), ("sm_90", "sm_75"))
SILENT = DriverAnswer("CUDA_ERROR_NO_DEVICE", (12, 9))


@pytest.mark.parametrize(
    ("what", "state", "word", "remedy"),
    [
        (NOTHING, "ok", "no GPU", ""),
        (NodeGpus(SILENT), "ok", "no GPU", ""),
        (seen(), "ok", "supports CUDA 12.9, 2 GPUs", ""),
        (seen(driver=ARCHS), "warn", "GPU 1 is sm_75: a layer's kernels need sm_80 (A100) or later", "VISIBLE_DEVICES"),
        (seen(driver=None), "warn", "2 NVIDIA GPUs are in this machine, but libcuda.so.1 is not here", "--gpus all"),
        (NodeGpus(SILENT, bus=BUS[:1]), "warn", "1 NVIDIA GPU is in this machine, but no file", "--nv"),
        (seen(driver=SILENT), "warn", "but the driver answers CUDA_ERROR_NO_DEVICE", "--gpu-bind=none"),
        (seen(driver=DriverAnswer("CUDA_ERROR_SYSTEM_NOT_READY")), "warn", "SYSTEM_NOT_READY", "nvidia-fabricmanager"),
        (seen(driver=DriverAnswer("error 12345")), "warn", "the driver answers error 12345", "cuInit"),
        (seen(driver=SILENT, mig=True, caps=False), "warn", "/dev/nvidia-caps", "MIG-UUID"),
        (seen(driver=SILENT, mig=True), "warn", "but the driver answers CUDA_ERROR_NO_DEVICE", "nvidia-smi -L"),
    ],
)
def test_the_driver_check(what, state, word, remedy):
    got = gpus.driver(what)
    assert got.state == state
    assert word in got.text
    assert remedy in got.remedy
    assert bool(got.remedy) == (state == "warn")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(True), "MPI puts to other nodes from the memory of GPU 0"),
        (Answer(False, "MPI crashed (SIGSEGV)"), "go through the host's pinned memory: MPI crashed (SIGSEGV)"),
    ],
)
def test_whether_mpi_puts_from_gpu_memory(monkeypatch, answer, text):
    monkeypatch.setattr("aristos.substrate.cuda.device_puts.probe", lambda ordinal, seconds: answer)
    got = gpus.puts(seen(), 60.0)
    assert got.state == "ok"
    assert text in got.text
    assert got.values == {"from_gpu": answer.supported}
    for none in (NOTHING, NodeGpus(SILENT), seen(visible=0)):
        assert "not needed" in gpus.puts(none, 60.0).text


@pytest.mark.parametrize(
    ("what", "env", "ranks", "state", "word"),
    [
        (NOTHING, {}, 2, "ok", "no GPU"),
        (seen(), {"CUDA_VISIBLE_DEVICES": "0,1"}, 2, "ok", "2 x NVIDIA H100, CUDA_VISIBLE_DEVICES=0,1, all 2 ordered"),
        (seen(visible=1), {"CUDA_VISIBLE_DEVICES": "1"}, 1, "ok", "1 of the machine's 2 visible to CUDA, CUDA_VIS"),
        (seen(visible=1), {"CUDA_VISIBLE_DEVICES": "1,7"}, 1, "warn", "'7' is none of the 2 GPUs here"),
        (seen(blocked=[(0, 1), (1, 0)]), {}, 2, "warn", "2 of 2 ordered pairs cannot"),
        (seen(1), {"SLURM_GPUS_PER_TASK": "1"}, 2, "warn", "machine's 2 visible to CUDA; --gpus-per-task hides"),
        (seen(1), {"SLURM_TRES_PER_TASK": "cpu=2,gres/gpu=1"}, 2, "warn", "--gpus-per-task hides"),
        (seen(1), {"SLURM_GPU_BIND": "single:1"}, 2, "warn", "--gpu-bind=single:1 hides"),
        (seen(), {"SLURM_GPU_BIND": "none"}, 2, "ok", "2 x"),
        (seen(1), {"SLURM_GPUS_PER_TASK": "1"}, 1, "ok", "1 x"),
        (seen(1), {"SLURM_JOB_ID": "1", "SLURM_JOB_GPUS": "0,1"}, 2, "warn", "a cgroup hides the other GPUs"),
        (seen(1), {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-"}, 2, "ok", "1 x"),
        (seen(mig=True), {}, 2, "warn", "GPU0, GPU1 in MIG mode"),
        (seen(mig=True), {}, 1, "ok", "2 x"),
        (seen(driver=None), {}, 2, "ok", "2 x"),
    ],
)
def test_the_check_of_a_nodes_gpus(what, env, ranks, state, word):
    got = gpus.gpus(what, env, ranks)
    assert got.state == state
    assert word in got.text
    assert bool(got.remedy) == (state == "warn")


def ranks_see(*visible, **fields):
    return [
        RankGpus(DriverAnswer("", (12, 9), tuple(UUIDS[at] for at in each)), "pid:[1]", **fields) for each in visible
    ]


def test_peers_may_not_be_hidden_by_the_system():
    """GPUs are compared by UUID. A GPU that only CUDA_VISIBLE_DEVICES hides can still be opened."""
    two = Nodes.split(2)
    assert gpus.peers([RankGpus(None)] * 2, two).text == "not needed: there is no GPU"
    assert "(2 ordered pairs)" in gpus.peers(ranks_see((0, 1), (0, 1)), two).text
    assert gpus.peers(ranks_see((0, 1), (1, 0)), two).state == "ok"
    assert gpus.peers(ranks_see((0,), (0,)), two).state == "ok"
    assert gpus.peers(ranks_see((0,), (1,), visible="0"), two).state == "ok"
    got = gpus.peers(ranks_see((0,), (1,)), two)
    assert got.state == "warn"
    assert f"the GPU of rank 1 ({UUIDS[1]}) is hidden from rank 0 by the system: CUDA IPC" in got.text
    assert "--gpu-bind=none" in got.remedy
    assert gpus.peers(ranks_see((0,), (1,)), Nodes.split(2, 1)).state == "ok", "on two nodes"
    got = gpus.peers(ranks_see((0, 1), ()), two)
    assert got.text == "no GPU is visible to rank 1, but other ranks see one"
    apart = [replace(each, space=f"pid:[{rank}]") for rank, each in enumerate(ranks_see((0, 1), (0, 1)))]
    got = gpus.peers(apart, two)
    assert "ranks 0 and 1 are in different PID namespaces" in got.text
    assert "--pid=host" in got.remedy


def test_shared_gpus_need_mps():
    two = Nodes.split(2)
    assert gpus.sharing([RankGpus(None)] * 2, two).state == "ok"
    assert gpus.sharing(ranks_see((0, 1), (0, 1)), two).text == "each rank has a GPU of its own"
    got = gpus.sharing(ranks_see((0,), (0,)), two)
    assert got.state == "warn"
    assert f"ranks 0-1 share {UUIDS[0]} without MPS" in got.text
    assert "nvidia-cuda-mps-control -d" in got.remedy
    assert "by MPS in /mps" in gpus.sharing(ranks_see((0,), (0,), pipes="/mps"), two).text
    got = gpus.sharing(ranks_see((0,), pipes="/mps") + ranks_see((0,)), two)
    assert "rank 1 uses no MPS daemon" in got.text
    assert "CUDA_MPS_PIPE_DIRECTORY" in got.remedy
    got = gpus.sharing(ranks_see((0,), pipes="/a") + ranks_see((0,), pipes="/b"), two)
    assert "ranks 0-1 ask different MPS daemons" in got.text
    assert gpus.sharing(ranks_see((0,), (), ()), Nodes.split(3)).state == "ok", "ranks without a GPU share none"
    assert "ranks 0, 2 share" in gpus.sharing(ranks_see((0, 1), (0, 1), (0, 1)), Nodes.split(3)).text


def unreadable(*_, **__):
    raise OSError("no such file")


def test_gpus_that_cannot_be_read_are_one_finding_of_the_node(monkeypatch):
    monkeypatch.setattr(gpu_facts, "of_node", unreadable)
    *others, (name, check) = main._of_node(2, 2, 1.0)
    assert [other for other, _ in others] == ["/dev/shm", "left in shm", "experts in place"]
    got = check()
    assert (name, got.name, got.state) == ("GPU facts", "GPU facts", "fail")
    assert got.text == "could not be checked: OSError: no such file"


class TwoRanks:
    """Two ranks of one node with equal facts."""

    rank, size, comm, nodes = 0, 2, object(), Nodes.split(2)

    def allgather(self, value, what):
        return [value] * 2


def test_ranks_that_cannot_read_their_gpus_are_named_and_other_checks_go_on(monkeypatch):
    monkeypatch.setattr(gpu_facts, "of_rank", unreadable)
    monkeypatch.setattr(main, "_levels", lambda: (3, 3))
    monkeypatch.setattr(main.windows, "shared", lambda ranks: ok("windows", ""))
    monkeypatch.setattr(main.progress, "progress", lambda ranks, multiple: ok("RMA progress", ""))
    report = ReportWriter(as_json=True, silent=True)
    main._together(TwoRanks(), report, None)
    found = {each.name: each for each in report.findings}
    assert (found["GPU facts"].state, found["GPU facts"].text) == (
        "fail",
        "ranks 0-1: could not be checked: OSError: no such file",
    )
    assert "GPU peers" not in found
    assert list(found).index("GPU facts") < len(found) - 1


def test_ranks_are_compared_if_all_could_read_their_gpus():
    seen_by = ranks_see((0, 1), (0, 1))
    assert [each.name for each in gpus.together(seen_by, Nodes.split(2))] == ["GPU peers", "GPU sharing"]
    (got,) = gpus.together([seen_by[0], fail("GPU facts", "why", "what to do")], Nodes.split(2))
    assert got == fail("GPU facts", "rank 1: why", "what to do")


def changed(**versions):
    return VERSIONS | {name.replace("_", "-"): version for name, version in versions.items()}


@pytest.mark.parametrize(
    ("versions", "what", "word", "remedy"),
    [
        (dict.fromkeys(VERSIONS), NOTHING, "not needed", ""),
        (VERSIONS, seen(), "numba-cuda 0.30.4, numpy 2.4.9, cuda-bindings 12.9.10, cuda-core 1.2.2", ""),
        (changed(numba_cuda=None, cuda_core=None), seen(), "not installed: numba-cuda, cuda-core", "aristos[cuda12]"),
        (changed(numpy="2.10.0"), seen(), "does not work with NumPy 2.5", "numpy<2.5"),
        (changed(numba_cuda="0.31.0"), seen(), "written for numba-cuda 0.30", "numba-cuda>=0.30,<0.31"),
        (changed(cuda_core="2.0"), seen(), "needs cuda-core 0.5 to 1", "cuda-core>=0.5.1,<2"),
        (changed(cuda_bindings="13.1.0"), seen(driver=DriverAnswer("", (13, 0))), "cuda-bindings 13.1.0", ""),
        (changed(cuda_bindings="13.1.0"), seen(), "the driver supports CUDA 12.9, cuda-bindings", "aristos[cuda12]"),
        (changed(cuda_bindings="13.1.0"), seen(driver=None), "cuda-bindings 13.1.0", ""),
    ],
)
def test_the_package_check(versions, what, word, remedy):
    got = gpus.packages(versions, what)
    assert got.state == ("warn" if remedy else "ok")
    assert word in got.text
    assert remedy in got.remedy


class Libcuda:
    """The driver functions called through ctypes, for two GPUs. code: the result of cuInit."""

    def __init__(self, code=0, named=True):
        self.code, self.named = code, named

    def cuInit(self, flags):
        return self.code

    def cuDriverGetVersion(self, number):
        number._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = 10 + ordinal
        return 0

    def cuDeviceCanAccessPeer(self, yes, one, other):
        yes._obj.value = (one.value, other.value) == (10, 11)
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: device.value - 10}[attribute]
        return 0

    def cuDeviceGetUuid(self, uuid, device):
        uuid._obj[:] = [device.value * 16 + at for at in range(16)]
        return 0

    def cuGetErrorName(self, code, text):
        text._obj.value = b"CUDA_ERROR_NO_DEVICE" if self.named else None
        return 0 if self.named else 1


def test_libcuda_is_queried_through_ctypes():
    assert gpu_facts.ask_driver(None) is None
    got = gpu_facts.ask_driver(Libcuda())
    assert got.version == (12, 8)
    assert got.uuids[0] == "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"
    assert got.blocked == ((1, 0),)
    assert got.archs == ("sm_90", "sm_91")
    assert gpu_facts.ask_driver(Libcuda(100)) == DriverAnswer("CUDA_ERROR_NO_DEVICE", (12, 8))
    assert gpu_facts.ask_driver(Libcuda(4321, named=False)).error == "error 4321"


def test_a_nodes_gpus_are_read_from_files_and_drivers(tmp_path):
    """GPUs hidden by a cgroup are counted from the kernel's files; NVML lists the others."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"):
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    for address in BUS:
        folder = tmp_path / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "vendor").write_text("0x10de\n")
        (folder / "class").write_text("0x030200\n")
    library = fake_nvml.Library([fake_nvml.FakeGpu("NVIDIA H100", UUIDS[0], ":01:00.0")], {})
    got = gpu_facts.of_node(tmp_path, lambda words: None, lambda: library, Libcuda())
    assert (got.files, got.caps, got.bus) == (2, True, BUS)
    assert [each.uuid for each in got.devices] == [UUIDS[0]]
    assert got.driver == gpu_facts.ask_driver(Libcuda())
    assert gpu_facts.of_node(tmp_path / "none", lambda words: None, lambda: None) == NodeGpus(None, caps=False)


def test_a_ranks_namespace_and_mps_folder(tmp_path):
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    env = {gpu_facts.PIPES: str(tmp_path), "CUDA_VISIBLE_DEVICES": "1"}
    assert gpu_facts.of_rank(env, None, tmp_path) == RankGpus(None, "pid:[4026531836]", "", "1")
    (tmp_path / "control").touch()
    assert gpu_facts.of_rank(env, None, tmp_path / "none") == RankGpus(None, "", str(tmp_path), "1")
