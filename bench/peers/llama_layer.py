"""llama.cpp by its wheel, on one rank: the time that it takes for one more layer in a model of this shape.

llama.cpp has no layer to call. So two models, of 2 and of 6 layers, are made with the job's weights in each layer. The
time of a call is the larger model's time for the prompt's tokens less the smaller model's time, divided by 4. In both
models the last layer computes only the last token. Beside the experts a layer has an attention with one head and its
own router, which chooses its experts. The codes are not the job's, since 32 successive k share a float16 scale; so the
output is not the job's either.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jobs import Floats, Job

from peers import Absent

FEW, MANY = 2, 6  # layers
VOCABULARY, HEAD = 512, 64
BYTES = 3  # tokens before the 256 tokens that stand for bytes: unknown, begin, end
ISAS = ("AMX_INT8", "AVX512_VNNI", "AVX512", "AVX_VNNI", "AVX2")


class LlamaLayer:
    """weights: "int8" (Q8_0) or "int4" (Q4_0)."""

    def __init__(self, comm: Any, job: Job, weights: str) -> None:
        if job.world > 1:
            raise Absent("llama.cpp has no expert parallelism: one rank only")
        if job.gate is None or job.shape.hidden % 32 or job.shape.ffn % 32:
            raise Absent("llama.cpp is compared only if experts are gated, and H and F are multiples of 32")
        try:
            self.llama: Any = importlib.import_module("xllamacpp")
            self.gguf: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise Absent(f"llama.cpp does not import ({error})") from None
        self.weights, self.shape, self.rng = weights, job.shape, np.random.default_rng(0)
        self.folder = tempfile.TemporaryDirectory(prefix="compare-llama-")
        experts = self._experts(job)
        self.servers = {layers: self._server(layers, experts) for layers in (FEW, MANY)}

    def _experts(self, job: Job) -> dict[str, Any]:
        """Codes of all experts' matrices, transposed: [expert, output, input]."""
        kind, quants = self._kind(), self.gguf.quants
        arrays = {name: np.ascontiguousarray(getattr(job, name).transpose(0, 2, 1)) for name in ("gate", "up", "down")}
        return {name: quants.quantize(array, kind) for name, array in arrays.items()}

    def _kind(self) -> Any:
        return getattr(self.gguf.GGMLQuantizationType, {"int8": "Q8_0", "int4": "Q4_0"}[self.weights])

    def _model(self, path: Path, layers: int, experts: dict[str, Any]) -> None:
        """Write a model of this many equal layers."""
        shape, rng = self.shape, self.rng
        file = self.gguf.GGUFWriter(str(path), "qwen3moe")
        file.add_context_length(2 * max(shape.tokens, 64))
        file.add_embedding_length(shape.hidden)
        file.add_block_count(layers)
        for add in (file.add_feed_forward_length, file.add_expert_feed_forward_length):
            add(shape.ffn)
        for add in (file.add_head_count, file.add_head_count_kv):
            add(1)
        for add in (file.add_key_length, file.add_value_length):
            add(HEAD)
        file.add_layer_norm_rms_eps(1e-6)
        file.add_expert_count(shape.experts)
        file.add_expert_used_count(shape.top_k)
        file.add_vocab_size(VOCABULARY)
        file.add_tokenizer_model("llama")
        others = VOCABULARY - BYTES - 256
        names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(f"t{i}" for i in range(others))]
        file.add_token_list(names)
        file.add_token_scores([0.0] * VOCABULARY)
        file.add_token_types([2, 3, 3] + [6] * 256 + [1] * others)

        def drawn(*of: int) -> Floats:
            return rng.standard_normal(of, np.float32) * np.float32(of[-1] ** -0.5)

        hidden = shape.hidden
        file.add_tensor("token_embd.weight", drawn(VOCABULARY, hidden))
        file.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
        file.add_tensor("output.weight", drawn(VOCABULARY, hidden))
        for layer in range(layers):
            tensors = {f"attn_{name}": drawn(HEAD, hidden) for name in "qkv"}
            tensors |= {f"attn_{name}_norm": np.ones(HEAD, np.float32) for name in "qk"}
            tensors |= {name: np.ones(hidden, np.float32) for name in ("attn_norm", "ffn_norm")}
            tensors |= {"attn_output": drawn(hidden, HEAD), "ffn_gate_inp": drawn(shape.experts, hidden)}
            for name, array in tensors.items():
                file.add_tensor(f"blk.{layer}.{name}.weight", array)
            for name, array in experts.items():
                file.add_tensor(f"blk.{layer}.ffn_{name}_exps.weight", array, raw_dtype=self._kind())
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()

    def _server(self, layers: int, experts: dict[str, Any]) -> Any:
        path, params = Path(self.folder.name) / f"{layers}.gguf", self.llama.CommonParams()
        self._model(path, layers, experts)
        params.model.path = str(path)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_batch = params.n_ubatch = max(self.shape.tokens, 32)  # all tokens in one step
        params.n_ctx, params.n_parallel = 2 * max(self.shape.tokens, 64), 1
        params.fit_params = params.warmup = params.cache_prompt = False
        params.cache_ram_mib, params.n_ctx_checkpoints, params.verbosity = 0, 0, 0
        return self.llama.Server(params)

    def _seconds(self, layers: int) -> float:
        """How long the tokens of a prompt take."""
        tokens = self.rng.integers(BYTES + 256, VOCABULARY, self.shape.tokens).tolist()
        asked = {"prompt": tokens, "n_predict": 1, "cache_prompt": False, "temperature": 0}
        said = self.servers[layers].handle_completions(asked)
        if "timings" not in said or said["timings"]["prompt_n"] != self.shape.tokens:
            raise RuntimeError(f"llama.cpp did not compute {self.shape.tokens} tokens: {said}")
        return float(said["timings"]["prompt_ms"]) / 1e3

    def __call__(self, i: int) -> float:
        """The seconds of a layer."""
        return (self._seconds(MANY) - self._seconds(FEW)) / (MANY - FEW)

    def arrays(self) -> list[Any]:
        return []

    def kernels(self) -> dict[str, str]:
        """The type of codes, and the instruction set that llama.cpp's wheel was built for."""
        flags = self.llama.get_system_info()
        return {"weights": self.weights, "isa": next((isa for isa in ISAS if f"{isa} = 1" in flags), "less than AVX2")}

    def close(self) -> None:
        self.servers.clear()
        self.folder.cleanup()
