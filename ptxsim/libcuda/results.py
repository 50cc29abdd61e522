"""The result codes of CUDA's driver API, and the exception by which a function of the stand-in returns one."""

from __future__ import annotations

TEXTS = {
    "SUCCESS": (0, "no error"),
    "ERROR_INVALID_VALUE": (1, "invalid argument"),
    "ERROR_OUT_OF_MEMORY": (2, "out of memory"),
    "ERROR_NOT_INITIALIZED": (3, "initialization error"),
    "ERROR_DEINITIALIZED": (4, "driver shutting down"),
    "ERROR_NO_DEVICE": (100, "no CUDA-capable device is detected"),
    "ERROR_INVALID_DEVICE": (101, "invalid device ordinal"),
    "ERROR_INVALID_IMAGE": (200, "device kernel image is invalid"),
    "ERROR_INVALID_CONTEXT": (201, "invalid device context"),
    "ERROR_NO_BINARY_FOR_GPU": (209, "no kernel image is available for execution on the device"),
    "ERROR_INVALID_PTX": (218, "a PTX JIT compilation failed"),
    "ERROR_INVALID_SOURCE": (300, "device kernel image is invalid"),
    "ERROR_FILE_NOT_FOUND": (301, "file not found"),
    "ERROR_INVALID_HANDLE": (400, "invalid resource handle"),
    "ERROR_ILLEGAL_STATE": (401, "the operation cannot be performed in the present state"),
    "ERROR_NOT_FOUND": (500, "named symbol not found"),
    "ERROR_NOT_READY": (600, "device not ready"),
    "ERROR_ILLEGAL_ADDRESS": (700, "an illegal memory access was encountered"),
    "ERROR_LAUNCH_OUT_OF_RESOURCES": (701, "too many resources requested for launch"),
    "ERROR_LAUNCH_TIMEOUT": (702, "the launch timed out and was terminated"),
    "ERROR_PEER_ACCESS_ALREADY_ENABLED": (704, "peer access is already enabled"),
    "ERROR_PEER_ACCESS_NOT_ENABLED": (705, "peer access has not been enabled"),
    "ERROR_HOST_MEMORY_ALREADY_REGISTERED": (712, "part or all of the requested memory range is already mapped"),
    "ERROR_HOST_MEMORY_NOT_REGISTERED": (713, "pointer does not correspond to a registered memory region"),
    "ERROR_LAUNCH_FAILED": (719, "unspecified launch failure"),
    "ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": (720, "too many blocks in cooperative launch"),
    "ERROR_NOT_PERMITTED": (800, "operation not permitted"),
    "ERROR_NOT_SUPPORTED": (801, "operation not supported"),
    "ERROR_SYSTEM_NOT_READY": (802, "system not yet initialized"),
    "ERROR_STREAM_CAPTURE_UNSUPPORTED": (900, "operation not permitted when stream is capturing"),
    "ERROR_STREAM_CAPTURE_INVALIDATED": (901, "operation failed due to a previous error during capture"),
    "ERROR_STREAM_CAPTURE_MERGE": (902, "operation would result in a merge of separate capture sequences"),
    "ERROR_STREAM_CAPTURE_UNMATCHED": (903, "capture was not ended in the same stream as it began"),
    "ERROR_STREAM_CAPTURE_UNJOINED": (904, "capturing stream has unjoined work"),
    "ERROR_STREAM_CAPTURE_ISOLATION": (905, "dependency created on uncaptured work in another stream"),
    "ERROR_STREAM_CAPTURE_IMPLICIT": (
        906,
        "the legacy stream would depend on a capturing blocking stream",
    ),
    "ERROR_CAPTURED_EVENT": (907, "operation not permitted on an event last recorded in a capturing stream"),
    "ERROR_STREAM_CAPTURE_WRONG_THREAD": (
        908,
        "capture of another thread cannot be ended by this one",
    ),
    "ERROR_GRAPH_EXEC_UPDATE_FAILURE": (910, "the graph update was not performed because of a violated constraint"),
    "ERROR_UNKNOWN": (999, "unknown error"),
}
CODES = {name: code for name, (code, _) in TEXTS.items()}


class Refused(Exception):
    """A function returns a result other than success. name: of the result, without CUDA_.

    why: a line for stderr, or '' where programs expect this result.
    """

    def __init__(self, name: str, why: str = ""):
        super().__init__(name)
        self.code, self.why = CODES[name], why
