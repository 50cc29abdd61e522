"""Talk with a model of transformers whose experts Aristos computes, in one process or on several ranks.

    python examples/upcycle.py smol-moe
    python examples/chat.py smol-moe
    aristos run -n 2 -- python examples/chat.py smol-moe --ask 'What is a compiler?'

Rank 0 talks; the other ranks have no prompts, and lend their experts and memory. Tokens are chosen greedily, so the
text is the same on any number of ranks. --top-k takes fewer experts for each token than the model was made for; --loss
shows what that costs.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, TextStreamer

import aristos.integrations.transformers as ours

DAY = 86400.0  # seconds that ranks wait for the next question


def questions(asked: list[str] | None) -> Iterator[str]:
    """The questions: the arguments, or lines from the terminal until an empty one."""
    if asked:
        yield from asked
        return
    with contextlib.suppress(EOFError):
        while line := input("> ").strip():
            yield line


def zen() -> str:
    """The Zen of Python, a text that each Python has."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")


def loss(model: Any, tokenizer: Any) -> float:
    """The model's loss on `zen`, in nats a token."""
    ids = tokenizer(zen(), return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


def reply(model: Any, tokenizer: Any, said: list[dict[str, str]], new: int) -> str:
    """Write the answer while it is made, and return it."""
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    begun = time.perf_counter()
    out = model.generate(**ids, max_new_tokens=new, do_sample=False, streamer=streamer)
    seconds, made = time.perf_counter() - begun, out[0][ids["input_ids"].shape[1] :]
    print(f"[{len(made)} tokens, {len(made) / seconds:.1f} tokens/s]", flush=True)
    return str(tokenizer.decode(made, skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="a model with a chat template")
    parser.add_argument(
        "--ask", action="append", metavar="TEXT", help="a question; may be repeated (default: from the terminal)"
    )
    parser.add_argument("--new", type=int, default=120, help="most tokens of an answer (%(default)s)")
    parser.add_argument("--top-k", type=int, metavar="K", help="experts a token (default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--loss", action="store_true", help="print nats a token of the Zen of Python first")
    asked = parser.parse_args()
    if not asked.directory.is_dir():
        parser.error(f"no directory {asked.directory}: `python examples/upcycle.py {asked.directory}` makes it")
    ours.options(timeout=DAY)
    config = AutoConfig.from_pretrained(asked.directory)
    config.num_experts_per_tok = asked.top_k or config.num_experts_per_tok
    model = ours.from_pretrained(asked.directory, config=config, dtype=getattr(torch, asked.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(asked.directory)
    said: list[dict[str, str]] = []
    with ours.together(model) as rank:
        if rank == 0:
            if asked.loss:
                k = config.num_experts_per_tok
                print(f"{k} of {config.num_local_experts} experts a token: {loss(model, tokenizer):.3f} nats a token")
            for question in questions(asked.ask):
                said += [{"role": "user", "content": question}]
                said += [{"role": "assistant", "content": reply(model, tokenizer, said, asked.new)}]
    ours.close(model)


if __name__ == "__main__":
    main()
