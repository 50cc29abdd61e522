"""The experts of a layer as a module of PyTorch, on CPUs, with gradients: `Experts(cfg, comm, train=True)`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..config import MoEConfig
from ..errors import InputError
from ..layer.moe import MoE
from . import data_parallel
from .graphs import Graphs, TapedCall
from .lent import lent
from .masters import Masters, as_numpy

ROWS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

CALLS = threading.RLock()  # the thread that calls a layer holds it, because layers share an engine


class Experts(torch.nn.Module):
    """y = experts(x, ids, weights), for any number of tokens on each rank of a communicator. Collective.

    With train=True this rank's experts are torch's parameters, by transformers' names: gate_up_proj [n, 2F, H] (up_proj
    [n, F, H] without a gate), down_proj [n, H, F], and their biases with _bias. After a change of the parameters,
    the layer reads them again before the next call; after a write through `.data`, call `changed`. The parameters'
    gradients are those of the mean of all ranks' losses.

    Parameters
    ----------
    cfg : MoEConfig
        The layer's configuration.
    comm : communicator or None, default None
        An mpi4py communicator. None: one process.
    threads : int or None, default None
        Workers of this rank. None: torch's number of threads without comm; with comm, as `aristos.MoE` chooses.
    train : bool, default False
        Whether the experts are parameters and calls have gradients.
    masters : Masters or None, default None
        The parameters of another module, which are used instead of new ones.
    **options : object
        Further arguments of `aristos.MoE`.

    Raises
    ------
    InputError
        A value out of its range; with train=True, a plan or an expert on several ranks.
    PeerInputError
        Another rank raised InputError.
    MismatchError
        Ranks give different arguments.
    ClosedError
        An earlier failure left the engine of the communicator unusable.
    EnvironmentProblem
        The backend or MPI lacks a feature that Aristos needs.
    """

    def __init__(
        self,
        cfg: MoEConfig,
        comm: Any = None,
        *,
        threads: int | None = None,
        train: bool = False,
        masters: Masters | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        if threads is None and comm is None:
            threads = torch.get_num_threads()
        self.moe = MoE(cfg, comm, backend="cpu", threads=threads, train=train, **options)
        self._dtype = getattr(torch, cfg.dtype)
        self._graphs = Graphs()
        shared = [expert for expert, ranks in enumerate(self.moe.placement.copies) if len(ranks) > 1]
        if train and (shared or self.moe.everyone.world != self.moe.world):
            self.moe.close()
            raise InputError("train=True requires each expert on one rank and no plan: leave placement and plan out")
        self._masters: Masters | None = None
        if train:
            self._masters = masters or self._own_masters()

    def _own_masters(self) -> Masters:
        """New parameters, drawn in float32 as torch.nn.Linear does. They do not depend on the number of ranks."""
        cfg, mine = self.cfg, self.moe.placement.mine(self.moe.rank)
        first, wide = ("gate_up", 2 * cfg.ffn) if cfg.gated else ("up", cfg.ffn)
        every = {f"{first}_proj": (wide, cfg.hidden), "down_proj": (cfg.hidden, cfg.ffn)}
        made: dict[str, torch.nn.Parameter] = {}
        for name, shape in every.items():
            largest = shape[1] ** -0.5
            for full, size in ((name, shape), *([(f"{name}_bias", shape[:1])] if cfg.bias else [])):
                value = torch.empty(len(mine), *size)
                for expert in range(cfg.experts):
                    drawn = torch.empty(size).uniform_(-largest, largest)
                    if expert in mine:
                        value[mine.index(expert)] = drawn
                made[full] = torch.nn.Parameter(value)
                self.register_parameter(full, made[full])
        return Masters(self, list(made), transposed=False, interleaved=False)

    def __reduce_ex__(self, _: Any) -> Any:
        raise InputError(
            "a layer has memory and threads of this process, so it is neither copied nor pickled: copy a model before"
            " its first call, or open it again"
        )

    def load(self, **weights: Any) -> None:
        """Load the layer's weights. Not collective.

        Parameters
        ----------
        **weights : array
            As `aristos.MoE.load` takes them.

        Raises
        ------
        InputError, OpenCallError, ClosedError
            What `aristos.MoE.load` raises.
        """
        self._graphs.discard_all()
        self.moe.load(0, **weights)
        if self._masters is not None:
            self._masters.take_weights(self.moe)

    def load_together(self, load: Callable[[], None]) -> None:
        """Load weights. If one rank cannot, every rank raises, and the layer is closed. Collective.

        Parameters
        ----------
        load : callable
            A function that loads this rank's weights.

        Raises
        ------
        PeerInputError
            `load` raised on another rank. If `load` raises on this rank, its exception is raised instead.
        """
        try:
            with self.moe.together("the experts of a layer"):
                load()
        except Exception:
            self.close()
            raise

    def named_masters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of this rank's experts; none without train=True."""
        return {} if self._masters is None else self._masters.parameters

    def averaged(self) -> None:
        """Note that ranks have averaged their gradients outside the experts."""
        if self._masters is not None:
            self._masters.apart = False

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a state dict. From arrays of all experts this rank takes its own."""
        mine = self.moe.placement.mine(self.moe.rank)
        for name in self.named_masters():
            value = state.get(prefix + name)
            if value is not None and len(value) == self.cfg.experts:
                state[prefix + name] = value[mine]
        super()._load_from_state_dict(state, prefix, *rest)

    def changed(self) -> None:
        """Read the parameters again before the next call.

        This is needed after a write through `.data`, which torch does not count.
        """
        if self._masters is not None:
            self._masters.changed()

    @torch.compiler.disable
    def forward(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, calls: int | None = None
    ) -> torch.Tensor:
        """The sum of the experts' weighted outputs for each token. Collective.

        More than cfg.max_tokens tokens are computed in several calls, equally many on every rank.

        Parameters
        ----------
        x : torch.Tensor [..., H], of cfg.dtype
            This rank's tokens.
        ids : torch.Tensor [..., k], integers
            The experts of each token.
        weights : torch.Tensor [..., k]
            The combine weights of these experts, read as float32.
        calls : int or None, default None
            How many calls the ranks have agreed on. None: they agree now.

        Returns
        -------
        torch.Tensor [..., H], of x's type
            y, a row for each token.

        Raises
        ------
        InputError
            Tensors do not fit, or are not on the CPU; or a gradient is asked for without train=True.
        PeerInputError
            Another rank refused its input.
        """
        return self.computed(x, ids, weights, calls)

    def computed(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, calls: int | None = None
    ) -> torch.Tensor:
        """What `forward` computes, for callers that torch does not compile."""
        with CALLS:
            return self._computed(x, ids, weights, calls)

    def _computed(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, calls: int | None) -> torch.Tensor:
        if not (x.is_cpu and ids.is_cpu and weights.is_cpu):
            device = next(each.device for each in (x, ids, weights) if not each.is_cpu)
            raise InputError(
                f"tensors must be on the CPU, because Aristos computes there, got {device}: use device_map='cpu'"
            )
        if x.dtype != self._dtype:
            raise InputError(
                f"x must be of {self._dtype}, for which the layer was made, got {x.dtype} (transformers: give a model"
                " its dtype before its first call)"
            )
        rows, ids, of_choices = _table(x), _table(ids), _table(weights)
        needed = self.calls_for(rows.shape[0])
        if calls is None:
            calls = needed if self.moe.world == 1 else self._agreed(needed)
        elif calls < needed:
            raise InputError(
                f"x must have at most {calls * self.cfg.max_tokens} tokens with calls={calls}, got {rows.shape[0]}"
            )
        self._graphs.discard()
        if self._masters is not None:
            self._take_parameters(self._masters)
        y: torch.Tensor
        if not self.taping(x, weights):
            y = self._untaped(rows, ids, of_choices, calls)
        elif self._masters is None:
            raise InputError(
                "a gradient is asked for, but the layer was made without train=True: call under torch.no_grad(), or"
                " make it with train=True (transformers: open the model again, and call model.train() before its first"
                " call)"
            )
        else:
            y = TapedCall.apply(self, ids, calls, rows, of_choices, *self._masters.parameters.values())
            self._graphs.discard()  # discards this call's own tapes, if torch saves nothing
        return y if x.dim() == 2 else y.reshape(x.shape)

    def taping(self, x: torch.Tensor, weights: torch.Tensor) -> bool:
        """Whether a call now computes gradients."""
        return torch.is_grad_enabled() and any(
            each.requires_grad for each in (x, weights, *self.named_masters().values())
        )

    def _take_parameters(self, masters: Masters) -> None:
        if masters.stale(self.moe):
            self._graphs.discard_all()  # torch refuses the backward pass of graphs with other weights
            masters.give(self.moe)

    def _untaped(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, calls: int) -> torch.Tensor:
        if weights.dtype != torch.float32:
            weights = weights.float()
        if calls == 1:
            y = torch.empty_like(x) if x.is_contiguous() else torch.empty(x.shape, dtype=x.dtype)
            self.moe(lent(x), lent(ids), lent(weights), out=lent(y))
            return y
        x = x.contiguous()
        y = torch.empty_like(x)
        arrays = as_numpy(x), ids.numpy(), as_numpy(weights), as_numpy(y)
        for part in self._parts(calls):
            rows, chosen, shares, out = (each[part] for each in arrays)
            self.moe(rows, chosen, shares, out=out)
        return y

    def taped(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, calls: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, the number of the graph for `backward`) of a call with gradients. x: [S, H], contiguous or not."""
        x, weights = x.contiguous(), weights.float()
        y, (graph, number) = torch.empty_like(x), self._graphs.new()
        out = as_numpy(y)
        for part in self._parts(calls):
            out[part], tape = self.moe.forward(as_numpy(x[part]), ids[part].numpy(), weights[part].numpy())
            graph.tapes.append(tape)
        return y, number

    def backward(
        self, dy: torch.Tensor, number: torch.Tensor, parameters: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """(dx, gradient of weights, gradients of the parameters) of a call of `taped`. Collective."""
        with CALLS:
            assert self._masters is not None
            graph = self._graphs.graph_of(number)
            if graph.used:
                raise InputError(
                    "a call of the layer allows one backward pass: leave retain_graph=True out, or call the layer again"
                )
            graph.used = True
            dy = dy.to(self._dtype).contiguous()
            dx, dw = torch.empty_like(dy), torch.empty(len(dy), self.cfg.top_k)
            self.moe.zero_grads()
            for part, tape in reversed(list(zip(self._parts(len(graph.tapes)), graph.tapes, strict=True))):
                into_x, into_w = self.moe.backward(as_numpy(dy[part]), tape)
                as_numpy(dx)[part], dw.numpy()[part] = into_x, into_w
            return dx, dw, self._masters.gradients(self.moe, parameters)

    def _parts(self, calls: int) -> list[slice]:
        """The rows of each call."""
        most = self.cfg.max_tokens
        return [slice(call * most, (call + 1) * most) for call in range(calls)]

    def calls_for(self, tokens: int) -> int:
        """How many calls this rank needs for its tokens."""
        return -(-tokens // self.cfg.max_tokens)

    def _agreed(self, mine: int) -> int:
        """How many calls the rank with most tokens needs."""
        return int(self.moe.runtime.group.exchange(np.array([mine]), "the number of calls for their tokens").max())

    def idle(self, calls: int) -> None:
        """Take part, without tokens, in the other ranks' calls."""
        x = torch.empty(0, self.cfg.hidden, dtype=self._dtype)
        ids = torch.empty(0, self.cfg.top_k, dtype=torch.int64)
        with torch.no_grad():
            self(x, ids, ids.float(), calls)

    def close(self) -> None:
        """Release the layer. Collective, and harmless when repeated."""
        self.moe.close()


def _table(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of a tensor."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


data_parallel.register(Experts)
