"""`aristos.Checkpoint`: a published model's directory, and its MoE layers as configurations and weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..config import MoEConfig, Router, without_capacity
from ..errors import AristosError, CheckpointError, InputError
from ..layer.arguments import DEFAULT_TIMEOUT, check_comm
from ..transport.warning import warn
from ..weight_types import WeightType
from . import encoder_decoder_families, methods, sigmoid_families, softmax_families, topk_families
from .agreement import agree, difference, shapes_of
from .directory import Directory
from .options import Options
from .progress import Progress
from .recipe import FAMILIES, REFUSED, Family, StoredLayer
from .safetensors import shown
from .stored_arrays import LATE, TABLE, LayerReader, StoredArray, packed_ways
from .tables import TokenTable

RECIPES = (
    softmax_families,
    topk_families,
    sigmoid_families,
    encoder_decoder_families,
)  # recipes register themselves when they are imported
# INNER: options that hold the options of a model inside another. OUTSIDE: beginnings of the names of tensors that
# belong to no layer of the text model
INNER = ("text_config", "thinker_config", "llm_config", "language_config")
OUTSIDE = ("mtp.", "model.mtp", "mtp_", "model.visual.", "visual.", "vision", "model.vision", "audio", "model.audio")
MOST_EXPERTS = 1 << 16  # the most experts of a layer: four times the most in any published model
EXPERT = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
BIASES = ("router_bias", "select_bias")  # the biases of a router
AS_DTYPE = "declares quantised inputs of linear layers; Aristos leaves inputs in the layer's dtype"


class Checkpoint:
    """A model directory: config.json and safetensors files, memory-mapped. Opening it reads only config.json.

    Parameters
    ----------
    path : path
        The directory.
    comm : communicator or None, default None
        An mpi4py communicator. With it opening is collective: if one rank cannot open the directory, all ranks raise at
        once, instead of waiting for that rank when they make an MoE. None: this process alone.
    timeout : float, default 120.0
        Seconds that the other ranks may take to open the directory.

    Attributes
    ----------
    path : Path
        The directory.
    model_type : str
        The type of the model that has experts, which may be a text model inside another model.
    layers : tuple of int
        Numbers of the model's MoE layers that have tensors in the directory, in order. In an encoder-decoder model the
        decoder's layers are numbered after the encoder's.
    missing : tuple of int
        Numbers of layers that config.json names, but that have no tensors.
    quantisation : str
        The method by which weights are quantised, or "".

    Raises
    ------
    CheckpointError
        The directory cannot be read, or config.json has a model_type or an option that Aristos does not know. The error
        names the file or the option; nothing is guessed.
    InputError
        `path` or `comm` has a wrong type.
    PeerInputError
        With comm, another rank cannot open the directory.
    MismatchError
        With comm, the ranks' config.json differ.
    OpenCallError
        With comm, a call on the communicator is open.
    WaitTimeout
        With comm, another rank did not open its directory within `timeout`.
    EnvironmentProblem
        With comm, MPI lacks a feature that Aristos needs.
    """

    def __init__(self, path: str | os.PathLike[str], comm: Any = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        check_comm(comm)
        problem, options = None, ""
        try:
            self._open(path)
            text = json.dumps(self._directory.config, sort_keys=True)
            options = hashlib.sha256(text.encode()).hexdigest()
        except Exception as error:
            if comm is None:
                raise
            problem = error
        if comm is not None:
            agree(comm, timeout, path, problem, options)

    def __repr__(self) -> str:
        quantised = f", quantised: {self.quantisation}" if self.quantisation else ""
        return f"<Checkpoint {self.path}: {self.model_type}{quantised}>"

    def _open(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"path must be the path of a model directory, got {path!r}")
        self.path = Path(path)
        self._directory = Directory(self.path)
        self._where = self.path / "config.json"
        self.model_type, self._config = self._text_model(self._directory.config)
        family = self._family()
        options = Options(self._config, self._where, family.defaults)
        self._layers: dict[int, StoredLayer] = family.build(options)
        options.refuse_unknown(self.model_type)
        if not self._layers:
            raise CheckpointError(
                f"{self._where} must name at least one MoE layer for model_type {self.model_type}, got none"
            )
        self._quantised = methods.options({**self._directory.config, **self._config}, str(self._where))
        self.quantisation = self._quantised.method
        if form := self._quantised.form:
            for n, stored in self._layers.items():
                self._layers[n] = replace(stored, parts=tuple(packed_ways(part, form) for part in stored.parts))
        self._progress, self._warned = Progress(), False
        self._prefixes: dict[str, str] = {}
        self._tables: dict[int, TokenTable] = {}

    def _text_model(self, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """(model_type, options) of the model that has experts: the directory's, or one inside it."""
        outer = kind = config.get("model_type")
        while not isinstance(kind, str) or kind not in FAMILIES | REFUSED:
            inner = next((config[key] for key in INNER if isinstance(config.get(key), dict)), None)
            if inner is None:
                break
            config = inner
            kind = config.get("model_type") or f"{outer}_text"
        if not isinstance(kind, str):
            raise CheckpointError(f"{self._where} must have a model_type, which says what model this is, got none")
        return kind, config

    def _family(self) -> Family:
        if why := REFUSED.get(self.model_type):
            raise CheckpointError(
                f"{self._where}: model_type {shown(self.model_type)} is not supported: {why}. Pass its weights to"
                " MoE.load_expert yourself, and ids and weights to each call of MoE"
            )
        if self.model_type not in FAMILIES:
            raise CheckpointError(
                f"{self._where}: model_type {shown(self.model_type)} is not known; known are"
                f" {', '.join(sorted(FAMILIES))}. Pass its weights to MoE.load_expert and load_router yourself"
            )
        return FAMILIES[self.model_type]

    # ------------------------------------------------------------ which layers are there

    @cached_property
    def layers(self) -> tuple[int, ...]:
        return tuple(number for number in sorted(self._layers) if number not in self.missing)

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """Numbers of layers without tensors.

        Empty if no layer has tensors or files cannot be listed; `check` says why.
        """
        stacks: dict[str, set[str]] = {}  # the beginning of a layer's tensor names -> these tensors
        for stored in self._layers.values():
            probes = stacks.setdefault(stored.layer, set())
            probes |= {array.probe for part in stored.parts for way in part for array in way.values()}
        try:
            there = {layer: self._directory.numbers(layer, probes, OUTSIDE) for layer, probes in stacks.items()}
        except CheckpointError:
            return ()
        own = {n: n if stored.own is None else stored.own for n, stored in self._layers.items()}
        gone = [n for n, stored in self._layers.items() if own[n] not in there[stored.layer]]
        return tuple(sorted(gone)) if len(gone) < len(self._layers) else ()

    # ------------------------------------------------------------ configurations

    def _stored(self, number: Any) -> StoredLayer:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or int(number) not in self._layers:
            raise InputError(f"number must be one of the model's MoE layers {sorted(self._layers)}, got {number!r}")
        return self._layers[int(number)]

    def problem(self, number: int) -> str:
        """Why Aristos cannot run a layer of the model.

        Parameters
        ----------
        number : int
            The model's layer.

        Returns
        -------
        str
            The reason; empty if Aristos can run the layer.

        Raises
        ------
        InputError
            The model has no MoE layer of this number.
        """
        stored = self._stored(number)
        if stored.problem:
            return stored.problem
        try:
            self._layer_config(number, {})
        except AristosError as error:
            return str(error)
        return ""

    def note(self, number: int) -> str:
        """A note on a layer: how it differs from the model's own code, or what its calls need.

        Parameters
        ----------
        number : int
            The model's layer.

        Returns
        -------
        str
            A sentence; empty if there is nothing to say.

        Raises
        ------
        InputError
            The model has no MoE layer of this number.
        """
        note = self._stored(number).note
        if self._quantised.activations:
            note = "; ".join(filter(None, [note, f"config.json {AS_DTYPE}"]))
        return note

    def weight_type(self, number: int) -> WeightType | None:
        """The type in which the weights of a layer's experts are stored. Reads only headers.

        Parameters
        ----------
        number : int
            The model's layer.

        Returns
        -------
        WeightType or None
            The type; None if weights are stored as float32, bfloat16 or float16.

        Raises
        ------
        CheckpointError
            What `check` raises; or the layer's types differ, or Aristos cannot keep them packed.
        InputError
            The model has no MoE layer of this number.
        """
        return self._checked(number).weight_type

    def layer_config(
        self,
        number: int,
        *,
        max_tokens: int = 4096,
        dtype: str = "float32",
        precision: str = "highest",
        weight_dtype: WeightType | str | None = None,
    ) -> MoEConfig:
        """The configuration of a layer of the model.

        Parameters
        ----------
        number : int
            The model's layer.
        max_tokens : int, default 4096
            See `MoEConfig`.
        dtype : str, default "float32"
            See `MoEConfig`.
        precision : str, default "highest"
            See `MoEConfig`.
        weight_dtype : WeightType, str or None, default None
            See `MoEConfig`. "file": the experts' weights stay packed as they are stored, see `weight_type`. With any
            other value, weights that are packed in the file are expanded first.

        Returns
        -------
        MoEConfig
            The configuration.

        Raises
        ------
        CheckpointError
            Aristos cannot run the layer; with weight_dtype="file" also what `weight_type` raises.
        InputError
            A value that MoEConfig refuses, or a layer that the model does not have.
        """
        if why := self._stored(number).problem:
            raise CheckpointError(f"{self._where}: layer {number} of this {self.model_type} is not supported: {why}")
        given: dict[str, Any] = {"max_tokens": max_tokens, "dtype": dtype, "precision": precision}
        if weight_dtype == "file":
            weight_dtype = self.weight_type(number)
        if weight_dtype is not None:
            given["weight_dtype"] = weight_dtype
        return self._layer_config(number, given)

    def _layer_config(self, number: int, given: Mapping[str, Any]) -> MoEConfig:
        options = dict(self._stored(number).options)
        try:
            cfg = MoEConfig(**{**options, "router": Router(**options["router"])})
        except InputError as error:
            raise CheckpointError(
                f"{self._where}: the options of layer {number} do not fit MoEConfig: {error}"
            ) from error
        if cfg.columns > MOST_EXPERTS:
            raise CheckpointError(
                f"{self._where}: layer {number} must have at most {MOST_EXPERTS} experts, got {cfg.columns}"
            )
        return replace(cfg, **given)

    def configs(
        self,
        *,
        max_tokens: int = 4096,
        dtype: str = "float32",
        precision: str = "highest",
        weight_dtype: WeightType | str | None = None,
    ) -> list[MoEConfig]:
        """A configuration for each of `layers`.

        Parameters
        ----------
        max_tokens : int, default 4096
            See `MoEConfig`.
        dtype : str, default "float32"
            See `MoEConfig`.
        precision : str, default "highest"
            See `MoEConfig`.
        weight_dtype : WeightType, str or None, default None
            See `layer_config`.

        Returns
        -------
        list of MoEConfig
            Configurations in the order of `layers`.

        Raises
        ------
        CheckpointError
            Aristos cannot run a layer; with weight_dtype="file" also what `weight_type` raises.
        InputError
            A value that MoEConfig refuses.
        """
        given: dict[str, Any] = {"dtype": dtype, "precision": precision, "weight_dtype": weight_dtype}
        return [self.layer_config(number, max_tokens=max_tokens, **given) for number in self.layers]

    def config(
        self,
        *,
        max_tokens: int = 4096,
        dtype: str = "float32",
        precision: str = "highest",
        weight_dtype: WeightType | str | None = None,
    ) -> MoEConfig:
        """The one configuration of all `layers`.

        Parameters
        ----------
        max_tokens : int, default 4096
            See `MoEConfig`.
        dtype : str, default "float32"
            See `MoEConfig`.
        precision : str, default "highest"
            See `MoEConfig`.
        weight_dtype : WeightType, str or None, default None
            See `layer_config`.

        Returns
        -------
        MoEConfig
            The configuration.

        Raises
        ------
        CheckpointError
            The layers differ (see `configs`), or Aristos cannot run one; with weight_dtype="file" also what
            `weight_type` raises.
        InputError
            A value that MoEConfig refuses.
        """
        found = self.configs(max_tokens=max_tokens, dtype=dtype, precision=precision, weight_dtype=weight_dtype)
        for number, other in zip(self.layers, found):
            if other != found[0]:
                what = f"layers {self.layers[0]} and {number} differ ({difference(found[0], other)})"
                raise CheckpointError(f"{self._where}: {what}: use configs() instead of config()")
        return found[0]

    # ------------------------------------------------------------ tensors

    def _prefix(self, number: int, stored: StoredLayer) -> str:
        """The common beginning of the names of a layer's tensors."""
        key = stored.layer
        if key not in self._prefixes:
            first = next((n for n in self.layers if self._layers[n].layer == key), number)
            self._prefixes[key] = self._find_prefix(first, self._layers[first])
        return self._prefixes[key] + key.format(n=number if stored.own is None else stored.own)

    def _find_prefix(self, number: int, stored: StoredLayer) -> str:
        below = stored.layer.format(n=number if stored.own is None else stored.own)
        probes = {array.probe for part in stored.parts[:2] for way in part for array in way.values()}
        ends = re.compile(r"(?:^|.*?\.)(?=" + re.escape(below) + "(?:" + "|".join(map(re.escape, probes)) + r")$)")
        found = {match[0] for name in self._directory.where if (match := ends.match(name))}
        found = {prefix for prefix in found if not prefix.startswith(OUTSIDE)}
        if len(found) != 1:
            what = f"it for several models ({', '.join(map(shown, sorted(found)))})" if found else "none"
            raise CheckpointError(
                f"{self.path}: layer {number} of model_type {self.model_type} must have a tensor"
                f" {shown('...' + below + min(probes))}, but this directory has {what}: is the download complete?"
            )
        return found.pop()

    def _reader(self, number: int) -> LayerReader:
        """A reader of the layer's arrays, as the directory stores them."""
        stored = self._stored(number)
        cfg = self.layer_config(number)
        prefix = self._prefix(number, stored)
        shapes, experts = shapes_of(cfg, stored), cfg.experts - stored.late
        stored_arrays: dict[str, StoredArray] = {}
        for part in stored.parts:
            stored_arrays |= self._choose(prefix, part, shapes, experts)
        return LayerReader(self._directory, prefix, stored_arrays, shapes, experts, stored.late, self._quantised)

    def _choose(
        self, prefix: str, part: Any, shapes: Mapping[str, tuple[int, ...]], experts: int
    ) -> dict[str, StoredArray]:
        """The alternative of a part for which the directory has the tensors."""
        there = [way for way in part if all(prefix + stored.probe in self._directory for stored in way.values())]
        if not there:
            tried = sorted({shown(prefix + stored.probe) for way in part for stored in way.values()})
            raise CheckpointError(
                f"{self.path} has none of the tensors {', '.join(tried[:6])}{' and others' if len(tried) > 6 else ''},"
                f" one of which model_type {self.model_type} needs: is the download complete?"
            )
        if len(there) == 1:
            return there[0]
        fitting = [way for way in there if self._fits(prefix, way, shapes, experts)]
        names = [{stored.probe for stored in way.values()} for way in fitting]
        if len(fitting) > 1 and names[0] == names[1]:
            raise CheckpointError(
                f"{self.path}: the shape of tensor {shown(prefix + min(names[0]))} fits both [in, out] and [out, in],"
                " so its order is unknown: read the tensor yourself and pass it to MoE.load_expert"
            )
        return (fitting or there)[0]

    def _fits(
        self, prefix: str, way: Mapping[str, StoredArray], shapes: Mapping[str, tuple[int, ...]], experts: int
    ) -> bool:
        return all(
            stored.form
            or array == TABLE
            or self._directory.entry(prefix + stored.probe).shape == stored.shape(shapes[array], experts)
            for array, stored in way.items()
        )

    def check(self, number: int) -> None:
        """Check that a layer has exactly the tensors that it needs, in config.json's shapes. Reads only headers.

        Parameters
        ----------
        number : int
            The model's layer.

        Raises
        ------
        CheckpointError
            A tensor is missing, damaged, of another shape or unknown; the message names file and tensor.
        InputError
            The model has no MoE layer of this number.
        """
        self._checked(number)

    def _checked(self, number: int) -> LayerReader:
        reader = self._reader(number)
        used = reader.check() | {reader.prefix + name for name in self._stored(number).unused}
        for scope in self._stored(number).scopes:
            for name in self._directory.names(reader.prefix + scope):
                if name not in used:
                    self._refuse_tensor(name, number)
        return reader

    def _refuse_tensor(self, name: str, number: int) -> NoReturn:
        why = (
            f"is not known for model_type {self.model_type}, so its effect is not known: read the layer yourself and"
            " pass the layer's weights to MoE.load_expert"
        )
        if "shared" in name and not self._stored(number).options.get("shared_ffn"):
            why = (
                f"belongs to a shared expert, but {self._where} says that layer {number} has none: add the missing"
                " option with the number or width of shared experts, such as n_shared_experts"
            )
        self._directory.refuse(name, f" {why}")

    # ------------------------------------------------------------ loading

    def load(self, moe: Any, *, layer: int, number: int) -> None:
        """Load a layer of the model into a layer of an MoE: this rank's experts, the router, shared parts.

        Collective over the ranks of `moe`. Values are read expert by expert, so only one expert's memory is needed in
        addition to the packed weights. A rank that reads for long shows its progress on stderr. If a rank raises, calls
        of the layer are refused on all ranks until it is loaded again. If config.json declares quantised inputs, rank 0
        warns at the first load that inputs have the layer's dtype in Aristos.

        Parameters
        ----------
        moe : MoE
            Made with the layer's configuration.
        layer : int
            The layer of `moe`.
        number : int
            The model's layer.

        Raises
        ------
        CheckpointError
            Damaged or missing tensors, or a configuration that is not this layer's.
        InputError
            A layer that the model or `moe` does not have, or arrays that do not fit.
        PeerInputError
            Another rank raised one of these.
        """
        with moe.together(f"layer {number} of {self.path}"):
            self._load(moe, layer, number)

    def _load(self, moe: Any, layer: int, number: int) -> None:
        moe.unload(layer)  # on every rank, even if only one fails: no call may mix old and new parts
        cfg = moe.layer_config(layer)
        wanted = self.layer_config(
            number, max_tokens=cfg.max_tokens, dtype=cfg.dtype, precision=cfg.precision, weight_dtype=cfg.packed
        )
        if without_capacity(cfg) != without_capacity(wanted):
            raise CheckpointError(
                f"layer {layer} of the MoE does not fit layer {number} of {self.path} ({difference(cfg, wanted)}):"
                " make the MoE with Checkpoint.config or Checkpoint.configs"
            )
        reader = self._checked(number)
        self._load_experts(moe, layer, number, reader)
        if TABLE not in reader.stored_arrays:  # if a router were loaded, a call without ids would choose by scores
            biases: dict[str, Any] = {name: reader.read_finite(name) for name in BIASES if name in reader.stored_arrays}
            stored = self._stored(number)
            if stored.late:  # larger than any value that sigmoid and bias give other experts
                bias = np.asarray(biases["select_bias"], np.float32)
                biases["select_bias"] = np.append(bias, [2 + 2 * np.abs(bias).max()] * stored.late).astype(np.float32)
            router = reader.router(stored.router_factor)
            moe.load_router(layer, layout="out_in", router=router, **biases)
        if beside := reader.shared(cfg.packed, self._stored(number).shared_factor):
            moe.load_shared(layer, layout="out_in", **{name.removeprefix("shared_"): a for name, a in beside.items()})

    def load_experts(self, moe: Any, *, layer: int, number: int) -> None:
        """Load only this rank's experts of a layer of the model. Not collective.

        This is for callers that do the routing themselves.

        Parameters
        ----------
        moe : MoE
            Made with the layer's configuration.
        layer : int
            The layer of `moe`.
        number : int
            The model's layer.

        Raises
        ------
        CheckpointError
            What `check` raises; or tensors are damaged.
        InputError
            A layer that the model or `moe` does not have, or an array that does not fit.
        """
        self._load_experts(moe, layer, number, self._checked(number))

    def _load_experts(self, moe: Any, layer: int, number: int, reader: LayerReader) -> None:
        if self._quantised.activations and moe.rank == 0 and not self._warned:
            self._warned = True
            warn(f"{self._where} {AS_DTYPE}")
        mine, packed = moe.placement.mine(moe.rank), moe.layer_config(layer).packed
        arrays = [name for name in EXPERT if name in reader.stored_arrays]
        stored = packed is not None and packed == reader.weight_type
        with self._progress.load(f"rank {moe.rank}: layer {number} of {self.path.name}", len(mine)):
            for e in mine:
                found: dict[str, Any] = reader.as_stored(arrays, e) if stored else reader.expert(arrays, e)
                moe.load_expert(layer, e, layout="out_in", **found)
                self._progress.step(sum(array.nbytes for array in found.values()))
                del found
                for name in arrays:
                    reader.release(name, e)

    def route(self, number: int, x: Any, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
        """The ids and weights for a call of a layer that chooses experts by a table of token ids. Not collective.

        Parameters
        ----------
        number : int
            The model's layer.
        x : array [S, H], float32, bfloat16 or float16
            The layer's input.
        tokens : array [S], integers
            The tokens' ids in the vocabulary.

        Returns
        -------
        ids : array [S, k], int32
            The experts of each token.
        weights : array [S, k], float32
            Their combine weights.

        Raises
        ------
        InputError
            The layer has a router that chooses by scores, or arguments do not fit.
        CheckpointError
            The table is damaged or missing.
        """
        self._stored(number)
        if number not in self._tables:
            reader = self._checked(number)
            if TABLE not in reader.stored_arrays:
                raise InputError(
                    f"route() needs a layer that chooses experts by a table, but layer {number} has a router: call MoE"
                    " without ids"
                )
            self._tables[number] = TokenTable(reader, self.layer_config(number))
        return self._tables[number].route(x, tokens)

    @property
    def options(self) -> Mapping[str, Any]:
        """The options in config.json of the model that has the experts."""
        return self._config

    @property
    def files(self) -> Mapping[str, str]:
        """The file of each tensor, as a path in the directory, by the tensor's name."""
        return self._directory.where

    def has(self, name: str) -> bool:
        """Whether the directory has a tensor.

        Parameters
        ----------
        name : str
            The tensor's name in the directory.

        Returns
        -------
        bool
            True if the directory has the tensor.
        """
        return name in self._directory

    def tensor(self, name: str) -> np.ndarray:
        """Any tensor of the directory, as stored.

        Parameters
        ----------
        name : str
            The tensor's name in the directory.

        Returns
        -------
        array
            A read-only view. Values are read from disk when they are used.

        Raises
        ------
        CheckpointError
            There is no such tensor, or its file is damaged.
        """
        return self._directory.array(name)

    def expert_tensors(self, number: int) -> set[str]:
        """Names of the tensors that hold the arrays of a layer's experts, as `arrays` reads them.

        Parameters
        ----------
        number : int
            The model's layer.

        Returns
        -------
        set of str
            The tensors' names in the directory.

        Raises
        ------
        CheckpointError
            What `check` raises; or an expert has other arrays than weights and biases.
        InputError
            The model has no MoE layer of this number.
        """
        reader, cfg = self._checked(number), self.layer_config(number)
        for name in reader.stored_arrays:
            if name.startswith(LATE) or name == "expert_scale":
                raise CheckpointError(
                    f"{self.path}: the experts of layer {number} must have only weights and biases, got {name}"
                )
        stored_arrays = [reader.stored_arrays[name] for name in EXPERT if name in reader.stored_arrays]
        return {reader.prefix + tensor for stored in stored_arrays for tensor in stored.tensors(cfg.experts)}

    def arrays(self, number: int, expert: int, *, packed: bool = False) -> dict[str, Any]:
        """One expert's arrays by name, in nn.Linear's order. Values are read from disk when they are used.

        Parameters
        ----------
        number : int
            The model's layer.
        expert : int
            The expert's id in 0..E-1.
        packed : bool, default False
            True: `Quantised` weights [in, out], which must be packed in the file. False: packed weights are expanded.

        Returns
        -------
        dict of str to array
            up, gate: [F, H]; down: [H, F]; biases.

        Raises
        ------
        CheckpointError
            What `check` raises; or, with `packed`, the file's weights are not packed.
        InputError
            A layer or an expert that the model does not have.
        """
        reader, cfg = self._checked(number), self.layer_config(number)
        if isinstance(expert, bool) or not isinstance(expert, int | np.integer) or not 0 <= expert < cfg.experts:
            raise InputError(f"expert must be an int in 0..{cfg.experts - 1}, got {expert!r}")
        names = [name for name in EXPERT if name in reader.stored_arrays]
        return reader.as_stored(names, int(expert)) if packed else reader.expert(names, int(expert))
