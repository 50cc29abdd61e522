"""The usual way in JAX: shard_map over one CPU device a process, lax.all_to_all over gloo, rows padded to a capacity.

The shapes of a compiled program are fixed, so every (source, expert) has as many places as the fullest one of any
input; nothing is dropped. XLA on CPUs has no ragged all-to-all.
"""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

import numpy as np
from jobs import Floats, Job

from peers import Absent

_joined = False  # jax.distributed is initialized once a process


def _jax(comm: Any) -> Any:
    """JAX on one CPU device a rank, one thread. Raises Absent. Collective."""
    global _joined
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    try:
        jax: Any = importlib.import_module("jax")
    except ImportError as error:
        raise Absent(f"JAX does not import ({error})") from None
    if not _joined:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = comm.bcast(found.getsockname()[1])
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", comm.size, comm.rank)
        _joined = True
    return jax


class JaxLayer:
    """One jitted program for all inputs of the job."""

    def __init__(self, comm: Any, job: Job, dtype: str) -> None:
        self.jax = jax = _jax(comm)
        jnp = jax.numpy
        world, shape = job.world, job.shape
        fullest = max(int(np.bincount(ids.ravel()).max()) for ids in job.ids)
        self.capacity = max(comm.allgather(fullest))
        kind = jnp.dtype(dtype)
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rank",))
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rank"))

        def spread(array: Any) -> Any:  # makes a global array from this rank's part; the first axis is that of ranks
            part = np.asarray(array)[None]
            return jax.make_array_from_process_local_data(place, part, (world, *part.shape[1:]))

        self.inputs = [
            (spread(job.xs[i].astype(kind)), spread(job.ids[i]), spread(job.weights[i])) for i in range(shape.inputs)
        ]
        tensors = [job.up, job.down] + ([] if job.gate is None else [job.gate])
        self.weights = [spread(tensor[job.local].astype(kind)) for tensor in tensors]
        self.y: Any = None
        part = jax.sharding.PartitionSpec("rank")
        body = _layer(jax, shape, world, self.capacity)
        self.program = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=part, out_specs=part))

    def __call__(self, i: int) -> None:
        self.y = self.program(*self.inputs[i], *self.weights)
        self.y.block_until_ready()

    def arrays(self) -> list[Any]:
        return [self.inputs[0][0], *self.weights, self.y]

    def output(self) -> Floats:
        return np.asarray(self.y.addressable_data(0)[0]).astype(np.float32)

    def close(self) -> None:
        """Does nothing: the arrays are freed with the peer."""


def _layer(jax: Any, shape: Any, world: int, capacity: int) -> Any:
    jnp, lax = jax.numpy, jax.lax

    def layer(x: Any, ids: Any, weights: Any, up: Any, down: Any, *gate: Any) -> Any:
        """x: [1, S, H], ids, weights: [1, S, k]; up, gate: [1, E / world, H, F]; down: [1, E / world, F, H]."""
        x, ids, weights, up, down = x[0], ids[0], weights[0], up[0], down[0]
        flat = ids.reshape(-1)
        taken = jax.nn.one_hot(flat, shape.experts, dtype=jnp.int32)
        places = jnp.take_along_axis(jnp.cumsum(taken, 0) - 1, flat[:, None], 1)[:, 0]
        slots = flat * capacity + places
        tokens = jnp.full(shape.experts * capacity, shape.tokens).at[slots].set(jnp.arange(len(flat)) // shape.top_k)
        sent = jnp.take(x, tokens, axis=0, mode="fill", fill_value=0)
        landed = lax.all_to_all(sent.reshape(world, -1, shape.hidden), "rank", 0, 0)
        rows = landed.reshape(world, -1, capacity, shape.hidden).transpose(1, 0, 2, 3)
        rows = rows.reshape(len(up), -1, shape.hidden)  # [E / world, world * capacity, H]
        h = jnp.einsum("ech,ehf->ecf", rows, up)
        h = jax.nn.silu(jnp.einsum("ech,ehf->ecf", rows, gate[0][0])) * h if gate else jax.nn.relu(h)
        outputs = jnp.einsum("ecf,efh->ech", h, down).reshape(len(up), world, capacity, shape.hidden)
        outputs = outputs.transpose(1, 0, 2, 3).reshape(world, -1, shape.hidden)
        back = lax.all_to_all(outputs, "rank", 0, 0).reshape(-1, shape.hidden)
        picked = back[slots].reshape(shape.tokens, shape.top_k, shape.hidden)
        return jnp.einsum("tk,tkh->th", weights.astype(x.dtype), picked)[None]

    return layer
