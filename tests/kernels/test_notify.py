"""On real links `notify` and `arrived` compile to a release store and an acquire load."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any

import numpy as np
import pytest
from numba import njit, typeof, types

from aristos.engine import arrivals, dispatch, packing, returns
from aristos.kernels import cpu  # noqa: F401  registers the lowerings
from aristos.primitives import memory

JOB, WORD = typeof(np.zeros(1, np.int64)), types.int64
STEPS = [
    (dispatch.publish, (JOB, JOB, WORD)),
    (returns.post_return, (JOB, JOB, *[WORD] * 5)),
    (arrivals.read_returns, (JOB, JOB, WORD, WORD)),
    (packing.announce, (JOB, JOB)),
]


class Before(ast.NodeTransformer):
    """mem.notify(word, value, nbytes) -> mem.store_release(word, value), mem.arrived -> mem.load_acquire."""

    def __init__(self) -> None:
        self.replaced = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("notify", "arrived"):
            self.replaced += 1
            node.args = node.args[:2]
            node.func.attr = {"notify": "store_release", "arrived": "load_acquire"}[node.func.attr]
        return node


def written_with_stores(function: Any) -> Any:
    """A step compiled from its source, in which plain words replace `notify` and `arrived`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tree.body[0].decorator_list = []  # type: ignore[attr-defined]
    before = Before()
    tree = ast.fix_missing_locations(before.visit(tree))
    assert before.replaced
    scope = dict(function.__globals__)
    exec(compile(tree, "<before>", "exec"), scope)
    return scope[function.__name__]


def instructions(function: Any, signature: tuple) -> list[str]:
    """The machine instructions of a function compiled alone, without names and directives."""
    compiled = njit(nogil=True, error_model="numpy")(function)
    compiled.compile(signature)
    (assembly,) = compiled.inspect_asm().values()
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    named = [re.sub(r"[_.\w$]*(_ZN|NumbaEnv|\.const|_loop)[\w.$]*", "NAME", line) for line in lines]
    return [line for line in named if line and not line.startswith((".", "NAME:", '"'))]


@pytest.mark.parametrize(("step", "signature"), STEPS, ids=[step.py_func.__name__ for step, _ in STEPS])
def test_a_step_compiles_to_the_same_machine_code_as_with_plain_words(step, signature):
    now = instructions(step.py_func, signature)
    assert len(now) > 20
    assert now == instructions(written_with_stores(step.py_func), signature)


def test_plain_bodies_store_and_load():
    word = np.zeros(1, np.int64)
    memory.notify(word.ctypes.data, 7, 1 << 40)
    assert word[0] == memory.arrived(word.ctypes.data) == 7
