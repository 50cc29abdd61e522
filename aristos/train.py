"""Optimizers of `MoE(..., train=True)`: AdamW, and SGD with momentum.

A rank has the states of its own experts, of the router, of the shared expert, and of a model's other arrays (`dense`).
All states but the experts' are always equal on all ranks.

All arithmetic is float32, element by element, so weights have the same bits on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from kernel_cache.errors import quoted

from .config import real
from .errors import InputError, OpenCallError
from .trainable import AdamScales, MomentumScales, Trainable, TrainedLayer

EXPERTS = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")  # arrays whose first axis is this rank's experts
Arrays = dict[str, np.ndarray]
SMALLEST, LARGEST = 2.0**-126, 2.0**127  # the range of positive options, because steps compute in float32
LONGEST = 200  # most characters of a dense array's name


class Optimizer:
    """Base of the optimizers: options, the states of every trained array, and the step.

    All options may change between steps.

    Parameters
    ----------
    moe : MoE
        The layers to train, made with train=True, all loaded. The optimizer only uses its attribute `training`, see
        `aristos.trainable.Trainable`.
    lr : float
        Learning rate, at least 0 and below 2**127.
    weight_decay : float
        Each step multiplies matrices by 1 - lr * weight_decay; vectors (biases) stay. At least 0 and below 2**127.
    clip : float or None
        The largest global norm of the gradients. If the norm is larger, a step scales all gradients, those of `dense`
        included, so that their norm is `clip`. None: no limit.
    dense : dict of str to array, or None
        A model's arrays outside the MoE layers, by name: writable float32, of any shape, equal on all ranks. `step`
        changes them in place. None: there are none.

    Attributes
    ----------
    steps : int
        The number of steps taken.
    half_changed : bool
        Whether a step or a restore was interrupted while it wrote.
    states : list of dict
        For each layer, name of an array -> name of a state -> array of the same shape, float32.
    dense_states : dict of str to dict
        Name of a dense array -> name of a state -> array of the same shape, float32.

    Raises
    ------
    InputError
        An option out of its range, or a dense array of a wrong type or with a name under which it cannot be saved.
    """

    def __init__(
        self, moe: TrainedLayer, lr: float, weight_decay: float, clip: float | None, dense: Arrays | None
    ) -> None:
        self.moe, self.training = moe, moe.training
        self.lr, self.weight_decay, self.clip, self.steps = lr, weight_decay, clip, 0
        self.check_options()
        self.half_changed = False
        self.states: list[dict[str, Arrays]] = [
            {name: self.new_state(master) for name, master in _trained(self.training, layer).items()}
            for layer in range(self.training.layers)
        ]
        self.dense = dict(dense or {})
        self._check_arrays()
        self.dense_states = {name: self.new_state(array) for name, array in self.dense.items()}
        self.check_dense()

    def dense_arrays(self) -> Arrays:
        """The dense arrays by name, and their states by `name.state`; `save` uses these names."""
        states = {f"{name}.{key}": array for name, each in self.dense_states.items() for key, array in each.items()}
        return self.dense | states

    def check_dense(self) -> None:
        """Refuse dense arrays that cannot be saved under their names.

        Raises
        ------
        InputError
            Two arrays or states that would be saved under one name; a name that is empty, too long or not printable; an
            array that is not writable float32; or other names than when the optimizer was made.
        """
        self._check_arrays()
        if self.dense.keys() != self.dense_states.keys():
            odd = sorted(map(str, self.dense.keys() ^ self.dense_states.keys()))
            raise InputError(
                f"dense must have the same names as when the optimizer was made; these are new or missing: {odd}"
            )
        owners: dict[str, str] = {}
        for name, state in self.dense_states.items():
            if not isinstance(name, str) or not 0 < len(name) <= LONGEST or not name.isprintable():
                raise InputError(
                    f"names of dense arrays must have 1 to {LONGEST} printable characters, got {quoted(name)}"
                )
            for full in (name, *(f"{name}.{key}" for key in state)):
                if owners.setdefault(full, name) != name:
                    raise InputError(
                        f"the dense arrays {owners[full]} and {name} would both be saved as {full}: rename one of them"
                    )

    def _check_arrays(self) -> None:
        for name, array in self.dense.items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.flags.writeable:
                raise InputError(f"dense arrays must be writable float32 arrays, got {name}: {describe(array)}")

    def check_options(self) -> None:
        """Refuse options out of their range.

        Raises
        ------
        InputError
            An option is not finite, or has the wrong sign.
        """
        _number("lr", self.lr)
        _number("weight_decay", self.weight_decay)
        if self.clip is not None and not 0 < real(self.clip) < LARGEST:
            raise InputError(f"clip must be None or a positive number below 2**127, got {quoted(self.clip)}")

    def new_state(self, master: np.ndarray) -> Arrays:
        """The initial states of one array, by name.

        Parameters
        ----------
        master : array, float32
            The array that is trained.

        Returns
        -------
        dict of str to array
            Arrays of its shape, float32.
        """
        raise NotImplementedError

    def change(self, master: np.ndarray, gradient: np.ndarray, state: Arrays, factor: float) -> None:
        """Write new values into an array and its states.

        Parameters
        ----------
        master : array, float32
            The array that is trained.
        gradient : array, float32
            Its gradient, of the same shape.
        state : dict of str to array
            Its states, which `new_state` made.
        factor : float
            The factor of the gradient: below 1 if `clip` limits the norm.
        """
        raise NotImplementedError

    def step(self, dense_gradients: Arrays | None = None) -> float:
        """Reduce the gradients, change the weights and pack them. Collective.

        If the step is interrupted while it changes weights, this rank refuses calls of the layers, `params`, `step` and
        `save`, until `moe.restore` has restored both weights and states.

        Parameters
        ----------
        dense_gradients : dict of str to array, or None, default None
            The gradient of each array of `dense`, by its name: float32, of the array's shape, summed over the ranks and
            equal on all of them (`aristos.reproducible_sum`).

        Returns
        -------
        float
            The global norm of the gradients, before `clip`; see `norm`.

        Raises
        ------
        InputError
            A gradient is not finite (raised on every rank); or on this rank an option or a gradient of `dense` does not
            fit, or weights or states are half changed. No weight has changed.
        PeerInputError
            Another rank raised InputError. No weight has changed.
        OpenCallError
            A tape is open: `backward` or `discard` it first.
        """
        dense_gradients = {} if dense_gradients is None else dense_gradients
        self.training.agree(self._refused(dense_gradients), "a step of its optimizer")
        self.training.reduce_grads()
        if (tapes := self.training.open_tapes) > 0:
            raise OpenCallError(f"open tapes: {tapes}: give each to backward(), or discard() it")
        norm = self.norm(dense_gradients)
        factor = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        parts = [list(self._parts(layer)) for layer in range(self.training.layers)]
        with self.training.changing():
            self.half_changed = True
            self.steps += 1
            for layer in range(self.training.layers):
                self.training.everywhere(lambda part: self.change(part[0], part[1], part[2], factor), parts[layer])
                self.training.update(layer)
            for name, array in self.dense.items():
                self.change(array, dense_gradients[name], self.dense_states[name], factor)
            self.half_changed = False
        return norm

    def _parts(self, layer: int) -> Iterator[tuple[np.ndarray, np.ndarray, Arrays]]:
        """(master, gradient, state) of each array of a layer. Each expert's arrays are separate items."""
        gradients, masters = self.training.grads(layer), self.training.params(layer)
        for name, state in self.states[layer].items():
            for i in range(len(masters[name])) if name in EXPERTS else [...]:
                yield masters[name][i], gradients[name][i], {key: array[i] for key, array in state.items()}

    def refuse_half_changed(self) -> None:
        """Refuse states that a step or a restore has changed only in part.

        Raises
        ------
        InputError
            This rank's states are half changed.
        """
        if self.half_changed:
            raise InputError(
                "the optimizer's states are half changed, because step() or restore() was interrupted while it wrote"
                " them: call restore(directory, optimizer) with a saved directory"
            )

    def _refused(self, gradients: Arrays) -> InputError | None:
        """The error for wrong options, gradients of dense arrays or weights; None if all are right."""
        try:
            self.check_options()
            self.training.refuse_half_changed()
            self.refuse_half_changed()
        except InputError as problem:
            return problem
        if gradients.keys() != self.dense.keys():
            odd = sorted(gradients.keys() ^ self.dense.keys())
            return InputError(
                f"step() needs a gradient for every array of dense and no other; superfluous or missing: {odd}"
            )
        for name, array in self.dense.items():
            given = gradients[name]
            if not isinstance(given, np.ndarray) or given.dtype != np.float32 or given.shape != array.shape:
                wanted = f"float32 {list(array.shape)}"
                return InputError(f"the gradient of the dense array {name} must be {wanted}, got {describe(given)}")
        return None

    def norm(self, dense_gradients: Arrays | None = None) -> float:
        """The norm of all gradients after `reduce_grads`: the square root of the sum of their squares. Collective.

        Squares are added in float64 for each layer, array and expert. Then these sums are added in order of layer, name
        and id, and those of dense arrays last. So the norm has the same bits on any number of ranks.

        Parameters
        ----------
        dense_gradients : dict of str to array, or None, default None
            See `step`.

        Returns
        -------
        float
            The norm, equal on all ranks.

        Raises
        ------
        InputError
            A gradient is not finite; the message names its array.
        """
        mine = dict(self._squares())
        everyone = self.training.everyone.allgather(mine, "squares of gradients")
        squares = {key: value for each in everyone for key, value in each.items()}
        named = {}
        for layer, name, expert in sorted(squares):
            where = f" of expert {expert}" if expert >= 0 else ""
            named[f"{name}{where} in layer {layer}"] = squares[layer, name, expert]
        for name, gradient in sorted((dense_gradients or {}).items()):
            named[f"the dense array {name}"] = self.training.updates.square_sum(gradient)
        for name, value in named.items():
            if not math.isfinite(value):
                raise InputError(f"the gradient of {name} is not finite: no weight has changed")
        return math.sqrt(sum(named.values()))

    def _squares(self) -> Iterator[tuple[tuple[int, str, int], float]]:
        """((layer, name, expert or -1), sum of squares), for every array on this rank."""
        held = self.training.mine
        keys, parts = [], []
        for layer in range(self.training.layers):
            for name, gradient in self.training.grads(layer).items():
                for expert, part in zip(held, gradient) if name in EXPERTS else [(-1, gradient)]:
                    keys.append((layer, name, expert))
                    parts.append(part)
        return zip(keys, self.training.everywhere(self.training.updates.square_sum, parts))

    def keeps(self, master: np.ndarray) -> float:
        """The factor of weight decay for the entries of an array: matrices shrink, vectors do not.

        Parameters
        ----------
        master : array
            The array that is trained; only its number of dimensions matters.

        Returns
        -------
        float
            1 - lr * weight_decay, or 1 for a vector.
        """
        return 1.0 - self.lr * self.weight_decay if master.ndim > 1 else 1.0


class Adam(Optimizer):
    """AdamW: Adam, and in each step matrices shrink by lr * weight_decay.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    moe : MoE
        The layers to train, made with train=True, all loaded.
    lr : float, default 1e-3
        Learning rate.
    betas : (float, float), default (0.9, 0.999)
        b1 and b2, the factors of m and v in a step, each at least 0 and below 1.
    eps : float, default 1e-8
        A number of at least 2**-126 that is added to the square root.
    weight_decay : float, default 0.0
        Each step multiplies matrices by 1 - lr * weight_decay; vectors (biases) stay.
    clip : float or None, default None
        The largest global norm of the gradients. If the norm is larger, a step scales all gradients, those of `dense`
        included, so that their norm is `clip`. None: no limit.
    dense : dict of str to array, or None, default None
        A model's arrays outside the MoE layers, by name: writable float32, of any shape, equal on all ranks. `step`
        changes them in place; `MoE.save` writes them and their states.

    Raises
    ------
    InputError
        An option out of its range, or a dense array of a wrong type or with a name under which it cannot be saved.

    Source
    ------
    arXiv:1711.05101, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import aristos
    >>> cfg = aristos.MoEConfig(hidden=16, ffn=32, experts=4)
    >>> with aristos.MoE(cfg, train=True) as moe:
    ...     moe.load(**aristos.reference.weights(cfg))
    ...     adam = aristos.train.Adam(moe, lr=1e-2, clip=1.0)
    ...     y, tape = moe.forward(np.ones((8, 16), np.float32))
    ...     dx = moe.backward(y, tape)
    ...     norm = adam.step()
    >>> adam.steps, norm > 0
    (1, True)
    """

    def __init__(
        self,
        moe: TrainedLayer,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
        dense: Arrays | None = None,
    ) -> None:
        self.betas, self.eps = betas, eps
        super().__init__(moe, lr, weight_decay, clip, dense)

    def check_options(self) -> None:
        super().check_options()
        betas = self.betas
        if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(0 <= real(beta) < 1 for beta in betas):
            raise InputError(f"betas must be two numbers of at least 0 and below 1, got {quoted(betas)}")
        _number("eps", self.eps)
        if not real(self.eps) >= SMALLEST:
            raise InputError(f"eps must be at least 2**-126, because a gradient may be 0, got {quoted(self.eps)}")

    def new_state(self, master: np.ndarray) -> Arrays:
        return {"mean": np.zeros_like(master), "square": np.zeros_like(master)}

    def change(self, master: np.ndarray, gradient: np.ndarray, state: Arrays, factor: float) -> None:
        (first, second), t = self.betas, self.steps
        scales = AdamScales(
            by=factor,
            keep=self.keeps(master),
            first=first,
            new=1 - first,
            second=second,
            fresh=1 - second,
            past=1 - second**t,
            eps=self.eps,
            rate=self.lr / (1 - first**t),
        )
        self.training.updates.adam(master, gradient, state["mean"], state["square"], scales)


class SGD(Optimizer):
    """Gradient descent with momentum: v = momentum v + g, w -= lr v; in each step matrices shrink by lr * weight_decay.

    Parameters
    ----------
    moe : MoE
        The layers to train, made with train=True, all loaded.
    lr : float
        Learning rate.
    momentum : float, default 0.0
        The factor of v in a step. An optimizer that was made with 0 has no v, so momentum must stay 0.
    weight_decay : float, default 0.0
        Each step multiplies matrices by 1 - lr * weight_decay; vectors (biases) stay.
    clip : float or None, default None
        The largest global norm of the gradients. If the norm is larger, a step scales all gradients, those of `dense`
        included, so that their norm is `clip`. None: no limit.
    dense : dict of str to array, or None, default None
        A model's arrays outside the MoE layers, by name: writable float32, of any shape, equal on all ranks. `step`
        changes them in place; `MoE.save` writes them and their states.

    Raises
    ------
    InputError
        An option out of its range, or a dense array of a wrong type or with a name under which it cannot be saved.
    """

    def __init__(
        self,
        moe: TrainedLayer,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = None,
        dense: Arrays | None = None,
    ) -> None:
        self.momentum, self._with_states = momentum, bool(momentum)
        super().__init__(moe, lr, weight_decay, clip, dense)

    def check_options(self) -> None:
        super().check_options()
        _number("momentum", self.momentum)
        if self.momentum and not self._with_states:
            raise InputError(f"momentum must stay 0 in an optimizer that was made with 0, got {quoted(self.momentum)}")

    def new_state(self, master: np.ndarray) -> Arrays:
        return {"velocity": np.zeros_like(master)} if self.momentum else {}

    def change(self, master: np.ndarray, gradient: np.ndarray, state: Arrays, factor: float) -> None:
        velocity = state["velocity"] if self.momentum else np.zeros_like(master)
        scales = MomentumScales(by=factor, keep=self.keeps(master), momentum=self.momentum, rate=self.lr)
        self.training.updates.momentum(master, gradient, velocity, scales)


def _trained(training: Trainable, layer: int) -> Arrays:
    """The masters of a layer that have a gradient."""
    masters = training.params(layer)
    return {name: masters[name] for name in training.grads(layer)}


def describe(value: object) -> str:
    """The type and shape of a value, for messages.

    Parameters
    ----------
    value : object
        An array, or anything else that came in its place.

    Returns
    -------
    str
        Such as "float32 [3, 4]" of an array, else the name of the type.
    """
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _number(name: str, value: object) -> None:
    if not 0 <= real(value) < LARGEST:
        raise InputError(f"{name} must be a number of at least 0 and below 2**127, got {quoted(value)}")
