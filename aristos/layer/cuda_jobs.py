"""What a layer's kernels on a GPU get: the engine's job, the router's job, and memory that all calls use."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import MoEConfig
from ..engine import codes, schema, words
from ..engine import job as jobs
from ..errors import EnvironmentProblem
from ..kernels.common import scores
from ..kernels.cuda import router, router_job
from ..kernels.cuda.tile import BYTES, Tile
from ..row_types import KINDS
from ..substrate.cuda import persistent
from ..substrate.cuda.runtime import CudaRuntime, timeout_ns
from .arguments import capacity, choices, on_input
from .backend import Settings
from .collective import Membership


def blocks_of(cfg: MoEConfig, runtime: CudaRuntime, sms: int | None) -> dict[int, int]:
    """How many blocks of the persistent kernel a rank launches, by the rows of the kernel's tile."""
    tiles = persistent.layer_tiles(KINDS[cfg.dtype], runtime.device.target)
    return {tile.m: runtime.resident_blocks(tile, sms) for tile in tiles}


class LayerJobs:
    """The jobs of one object's layers on the GPU: for each layer and tile, one of the engine and one of the router.

    weights: the backend's weights of each layer. tiles: the tiles of the persistent kernels' products. blocks: how many
    blocks a rank launches, by the rows of a tile. host: the host's copies of the engine's jobs, by (layer, rows of the
    tile).
    """

    def __init__(self, settings: Settings, member: Membership, runtime: CudaRuntime, weights: list[Any]) -> None:
        self._cfgs, self._limits, self._member = settings.cfgs, settings.limits, member
        self._runtime, self._weights = runtime, weights
        cfg = settings.cfgs[0]
        self._kind = KINDS[cfg.dtype]
        self.tiles: list[Tile] = persistent.layer_tiles(self._kind, runtime.device.target)
        self.blocks = blocks_of(cfg, runtime, settings.sms)
        self.host: dict[tuple[int, int], np.ndarray] = {}
        self._jobs: dict[tuple[int, int], tuple[int, int]] = {}  # (layer, tile rows) -> addresses on the GPU
        self._filled = [-1] * settings.layers  # the runtime's version for which a layer's jobs were filled
        self._keeps_logits = False  # whether a call has returned its routing; the router writes logits only then
        self._buffers: dict[str, int] = {}  # name -> address of this object's memory on the GPU

    def refuse_counted(self) -> None:
        """Raise EnvironmentProblem if the GPU cannot hold the blocks of the kernels that keep workers' counters.

        Such a kernel may need more registers than the kernel without counters.
        """
        device = self._runtime.device
        for tile in self.tiles:
            blocks, fit = self.blocks[tile.m], self._runtime.resident_blocks(tile, counted=True)
            if fit < blocks:
                raise EnvironmentProblem(
                    f"timeline(True) needs {blocks} blocks of kernel {persistent.layer_kernel(tile, True).name}, as"
                    f" many as this layer launches, but {device.name} holds {fit} for each rank: make the layer with"
                    f" sms={device.sms}"
                )

    def fill(self, layer: int) -> None:
        """Fill a layer's jobs again, because its weights have changed."""
        self._filled[layer] = -1
        for tile in self.tiles:
            self.addresses_of(layer, tile)
        self.routing_buffers()

    def current(self, layer: int) -> bool:
        """Whether the layer's jobs were filled for the runtime's present memory."""
        return self._filled[layer] == self._runtime.version

    def keep_logits(self) -> None:
        """From the next call on, let the router write its scores to `logits`."""
        if not self._keeps_logits:
            self._keeps_logits, self._filled = True, [-1] * len(self._cfgs)

    def slots(self, layer: int) -> int:
        """The number of copies of experts over all ranks, with a copy of the shared expert on each."""
        return self._member.placement.slots + self._member.world * bool(self._cfgs[layer].shared_ffn)

    def _routing_job(self, layer: int, slot_of: int) -> np.ndarray:
        """The job of the router kernels. slot_of: GPU address of the engine's table of slots."""
        cfg, runtime, starts = self._cfgs[layer], self._runtime, self._runtime.tables.starts
        loaded = self._weights[layer]
        scratch = max(self._router_scratch(layer) for layer in range(len(self._cfgs)))
        weighted = BYTES[self._kind] * cfg.hidden * cfg.max_tokens

        def state(word: int) -> int:
            return runtime.state_at + 8 * word

        return router_job.new_job(
            hidden=cfg.hidden,
            experts=cfg.columns,
            top_k=choices(cfg),
            choices=cfg.top_k,
            logits=self.logits() if self._keeps_logits else 0,
            **scores.job_words(cfg.router),
            slots=self.slots(layer),
            slot_of=slot_of,
            offset=state(starts[words.T_OFFSET]),
            token=state(starts[words.T_TOKEN]),
            position=state(starts[words.T_POSITION]),
            status=state(words.STATUS),
            unbegun=state(words.UNBEGUN),
            router=0 if loaded is None else loaded.router or 0,
            select_bias=0 if loaded is None else loaded.select_bias,
            shared_sigmoid=0 if loaded is None else loaded.shared_sigmoid,
            weighted=self.buffer("weighted", weighted) if on_input(cfg) else 0,
            kept_weights=self.kept_weights() if on_input(cfg) else 0,
            scratch=self.buffer("scores", scratch),
        )

    def _router_scratch(self, layer: int) -> int:
        cfg = self._cfgs[layer]
        limited = choices(cfg) if capacity(cfg, cfg.max_tokens) else 0
        return router.scratch_bytes(cfg.max_tokens, cfg.columns, self.slots(layer), limited)

    def kept_weights(self) -> int:
        """Address of the combine weights, [max_tokens] float32, where tokens are weighted before the experts."""
        return self.buffer("kept weights", 4 * self._cfgs[0].max_tokens)

    def buffer(self, name: str, nbytes: int) -> int:
        """Address of GPU memory of this object, allocated once, while no call is in flight."""
        if name not in self._buffers:
            # an allocation may hold the driver's lock until the GPU is idle, and the proxy of a call needs this lock
            self._runtime.idle()
            self._buffers[name] = self._runtime.device.allocate(max(1, nbytes))
        return self._buffers[name]

    def addresses_of(self, layer: int, tile: Tile) -> tuple[int, int]:
        """GPU addresses of the engine's job and the router's. Both are filled again if weights or windows changed."""
        runtime = self._runtime
        if self._filled[layer] != runtime.version:
            runtime.idle()
            self._drop_jobs(layer)
            self._filled[layer] = runtime.version
        key = (layer, tile.m)
        if key not in self._jobs:
            cfg = self._cfgs[layer]
            job = self._member.new_layer_job(
                schema.CUDA,
                cfg,
                row_bytes=BYTES[self._kind] * cfg.hidden,
                timeout_ns=timeout_ns(self._limits.timeout),
                absent_ns=timeout_ns(self._limits.absent),
            )
            jobs.fill(job, schema.KIND, schema.CUDA, layer=layer, mode=codes.MODE_LAYER)
            jobs.leave_out(job, schema.CUDA, schema.TAPE, schema.EVENTS, schema.BACKWARD, schema.LANDING)
            runtime.fill(job)
            if self._weights[layer] is not None:
                self._weights[layer].fill(job)
            else:
                jobs.leave_out(job, schema.CUDA, schema.WEIGHTS)
            runtime.fill_tile(job, tile, self.blocks[tile.m], cfg.gated)
            jobs.check(job, schema.CUDA, runtime.version, later=(schema.START, schema.CALL))  # `begin` fills these
            self.host[key], at = job, self._copied(job)
            self._jobs[key] = at, self._copied(self._routing_job(layer, at + 8 * int(job[words.SLOT_OF])))
        return self._jobs[key]

    def routing_buffers(self) -> tuple[int, int]:
        """Where the router writes ids and weights."""
        pairs = max(choices(cfg) for cfg in self._cfgs) * self._cfgs[0].max_tokens
        return self.buffer("ids", 8 * pairs), self.buffer("weights", 4 * pairs)

    def _copied(self, job: np.ndarray) -> int:
        at = self._runtime.device.allocate(job.nbytes)
        self._runtime.device.copy_in(at, job)
        return at

    def _drop_jobs(self, layer: int) -> None:
        for key in [key for key in self._jobs if key[0] == layer]:
            for at in self._jobs.pop(key):
                self._runtime.device.free(at)

    def logits(self) -> int:
        """Where the router writes the scores that callers want to have."""
        return self.buffer("logits", 4 * self._cfgs[0].max_tokens * max(cfg.columns for cfg in self._cfgs))

    def free(self) -> None:
        """Free all memory on the GPU."""
        for layer in range(len(self._cfgs)):
            self._drop_jobs(layer)
        for at in self._buffers.values():
            self._runtime.device.free(at)
        self._buffers = {}
