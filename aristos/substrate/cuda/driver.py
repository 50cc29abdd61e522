"""Calls the CUDA driver's functions by name. A failure raises an error with advice.

`call("cuMemAlloc", 8)` calls cuda.bindings' function and checks its status. Nothing is imported or started before the
first call.
"""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

from ...errors import EnvironmentProblem, MemoryProblem

MODULE = "cuda.bindings.driver"
INSTALL = "pip install 'aristos[cuda12]' (CUDA 12) or 'aristos[cuda13]' (CUDA 13)"
GPUS = (
    "start the process with srun --gpus-per-node=N --gpu-bind=none, docker run --gpus all or apptainer exec --nv, or"
    " unset CUDA_VISIBLE_DEVICES"
)

_FORKED = (
    "CUDA does not survive a fork: start the processes with mpiexec or srun, or with multiprocessing's 'spawn'; and"
    " make no CUDA call after CUDA was shut down at exit"
)
_KERNEL = (
    "this or an earlier kernel failed, and the process can no longer use the GPU: start the process again;"
    " `compute-sanitizer python ...` names the kernel, and `dmesg | grep Xid` shows faults of the GPU"
)
_OLD = "the driver is too old for the compiled code: update it, or install the packages of its CUDA version: " + INSTALL
_BUSY = (
    "another process uses the GPU exclusively: nvidia-smi shows which; `nvidia-smi -c 0` (as root) lets several use it"
)
_MPS = (
    "see the MPS control daemon (nvidia-cuda-mps-control -d, its logs), or unset CUDA_MPS_PIPE_DIRECTORY on all ranks"
)
_SYSTEM = (
    "see nvidia-smi and `systemctl status nvidia-fabricmanager`: the fabric manager must have the driver's version; if"
    " it has, reboot"
)
_PEERS = "`nvidia-smi topo -p2p r` shows which GPUs reach each other: use GPUs on NVLink or one PCIe root, without MIG"
_IPC = (
    "ranks of one node must run as one user in one PID namespace (docker run --pid=host, or --pid=container:NAME), and"
    " must see each other's GPUs"
)
_NO_EVENT_NODES = (
    "perhaps the captured graph is the body of a conditional node or a loop, which cannot hold the event nodes that"
    " order a layer's calls: make the call outside of it"
)
ADVICE = {
    "CUDA_ERROR_NO_DEVICE": f"no GPU is visible to this process: see nvidia-smi -L; {GPUS}",
    "CUDA_ERROR_INVALID_DEVICE": f"this process sees no GPU with that number: see nvidia-smi -L; {GPUS}",
    "CUDA_ERROR_STUB_LIBRARY": "libcuda.so.1 is the toolkit's stub: take its folder (stubs) out of LD_LIBRARY_PATH",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": _BUSY,
    "CUDA_ERROR_NOT_INITIALIZED": _FORKED,
    "CUDA_ERROR_DEINITIALIZED": _FORKED,
    "CUDA_ERROR_INVALID_CONTEXT": _FORKED,
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "the GPU was reset while this process used it: do not call cudaDeviceReset",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernel was compiled for another GPU: empty the kernel cache (ARISTOS_CACHE)",
    "CUDA_ERROR_INVALID_IMAGE": _OLD,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": _OLD,
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "libcuda and Linux's nvidia module differ, as after an update: reboot",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "take CUDA's forward compatibility (compat) out of LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_NOT_READY": _SYSTEM,
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": _SYSTEM,
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is faulty: see nvidia-smi -q -d ECC, and use another node",
    "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED": _PEERS,
    "CUDA_ERROR_TOO_MANY_PEERS": "a GPU reaches at most 8 others at once without NVSwitch: use fewer ranks a node",
    "CUDA_ERROR_MAP_FAILED": _IPC,
    "CUDA_ERROR_OPERATING_SYSTEM": f"the system refused this, as it may in containers: {_IPC}",
    "CUDA_ERROR_NOT_PERMITTED": f"the system refused this, as it may in containers: {_IPC}",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "the kernel needs more registers or threads than an SM has: use another GPU",
    **dict.fromkeys(("CUDA_ERROR_MPS_CONNECTION_FAILED", "CUDA_ERROR_MPS_RPC_FAILURE",
                     "CUDA_ERROR_MPS_SERVER_NOT_READY", "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED",
                     "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", "CUDA_ERROR_MPS_CLIENT_TERMINATED"), _MPS),
    **dict.fromkeys(("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT",
                     "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_ASSERT",
                     "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_HARDWARE_STACK_ERROR"),
                    _KERNEL),
}  # fmt: skip
_CAPTURED = {
    f"CUDA_ERROR_{error}": _NO_EVENT_NODES
    for error in ("NOT_SUPPORTED", "NOT_PERMITTED", "INVALID_VALUE", "STREAM_CAPTURE_UNSUPPORTED")
}
OF_CALL = {  # function -> error -> advice, for errors that mean something else in that function
    "cuIpcOpenMemHandle": {
        "CUDA_ERROR_INVALID_CONTEXT": f"CUDA does not find the process that owns the memory: {_IPC}",
        "CUDA_ERROR_INVALID_VALUE": f"perhaps the GPU that owns the memory is hidden: {_IPC}",
        "CUDA_ERROR_INVALID_HANDLE": "the process that owns the memory has ended, or has freed it: see its output",
    },
    "cuIpcGetMemHandle": {
        "CUDA_ERROR_NOT_SUPPORTED": "this GPU or system (WSL, vGPU) has no CUDA IPC: use one rank on each GPU"
    },
    "cuStreamWaitEvent": _CAPTURED,
    "cuEventRecordWithFlags": _CAPTURED,
}


def bindings() -> Any:
    """The module cuda.bindings.driver. Raises EnvironmentProblem if it is not installed."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise EnvironmentProblem(f"GPUs need numba-cuda and cuda-bindings: {INSTALL} ({error})") from error


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver. Returns its result without the status; None for a function without a result.

    Raises EnvironmentProblem, or MemoryProblem if memory is short, with the function, the error's name, and advice.
    """
    status, values = _answer(name, arguments)
    if int(status):
        _raise(name, status)
    return values[0] if values else None


def results(name: str, *arguments: Any) -> list[Any] | None:
    """Call a function that has several results, and return them; None if it fails."""
    status, values = _answer(name, arguments)
    return None if int(status) else values


def succeeds(name: str, *arguments: Any) -> bool:
    """Call a function that may fail; returns whether it succeeded."""
    return not int(_answer(name, arguments)[0])


def ready(name: str, *arguments: Any) -> bool:
    """Call a query function. Returns False for CUDA_ERROR_NOT_READY; raises as `call` does for other errors."""
    status, _ = _answer(name, arguments)
    if int(status) and status.name != "CUDA_ERROR_NOT_READY":
        _raise(name, status)
    return not int(status)


def _answer(name: str, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """(status, results) of a function of the driver. Raises EnvironmentProblem if the driver lacks the function."""
    function = getattr(bindings(), name)
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:  # the driver's library is missing, or lacks this function
        raise EnvironmentProblem(
            f"{name}: NVIDIA's driver (libcuda.so.1) is missing, or older than CUDA 12: install it, or start the"
            f" container with the GPUs (docker run --gpus all, apptainer exec --nv) ({error})"
        ) from error
    return status, values


def attribute(device: int, name: str) -> int:
    """An attribute of a device, by CUDA's name without the prefix, such as MULTIPROCESSOR_COUNT."""
    names = bindings().CUdevice_attribute
    return int(call("cuDeviceGetAttribute", getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}"), device))


def uuid_text(uuid: bytes) -> str:
    """16 bytes as nvidia-smi writes them: GPU-8-4-4-4-12 digits."""
    digits = uuid.hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _raise(name: str, status: Any) -> NoReturn:
    error = status.name
    advice = (ADVICE | OF_CALL.get(name, {})).get(error, "see this function in the reference of the CUDA driver API")
    if error == "CUDA_ERROR_OUT_OF_MEMORY":
        raise MemoryProblem(f"{name}: {error}: {_free_memory()}")
    raise EnvironmentProblem(f"{name}: {error}: {advice}")


def _free_memory() -> str:
    """How much GPU memory is free, and advice."""
    advice = "lower max_tokens, use more ranks, or see what else uses the GPU's memory (nvidia-smi)"
    status, *found = bindings().cuMemGetInfo()
    if int(status):
        return advice
    return f"{found[0] >> 20} of the GPU's {found[1] >> 20} MiB are free: {advice}"
