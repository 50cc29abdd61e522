"""Makes the assembly of micro-kernels for Arm, on any machine."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir


class Nothing:
    """A stand-in for Numba's context, which a micro-kernel only asks for an empty result."""

    def get_dummy_value(self) -> None:
        return None


def arm_assembly(kernel: Any, count: int, cpu: str, features: str) -> str:
    """LLVM's AArch64 assembly of a micro-kernel with `count` arguments. Any machine can make it."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    _, emit = kernel._defn(None, *[None] * count)
    made = ir.Module()
    made.triple = "aarch64-unknown-linux-gnu"
    word = ir.IntType(64)
    function = ir.Function(made, ir.FunctionType(ir.VoidType(), [word] * count), "kernel")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(Nothing(), builder, None, function.args)
    builder.ret_void()
    parsed = binding.parse_assembly(str(made))
    parsed.verify()
    machine = binding.Target.from_triple(made.triple).create_target_machine(cpu=cpu, features=features, opt=3)
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))
