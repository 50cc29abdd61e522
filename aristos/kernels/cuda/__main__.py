"""`python -m aristos.kernels.cuda --arch sm_80,sm_90,sm_100 --out DIR`: every kernel as PTX, cubin and machine code.

No GPU and no driver is needed. report.json says what each kernel takes and how many blocks of it an SM holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import AristosError, InputError
from .assemble import TARGETS, assemble, capability, disassemble, tool


def architectures(text: str) -> list[str]:
    """The names in a list with commas; raises InputError for one that kernels are not made for."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        what = ", ".join(unknown) or "nothing"
        raise InputError(f"--arch must name some of {', '.join(TARGETS)}, with commas between, got {what}")
    return list(dict.fromkeys(names))


def finish(kernel: Any, arch: str, text: str, out: Path) -> dict[str, Any]:
    """Write NAME.ARCH.ptx, .cubin and .sass of one compiled kernel; its row of the report."""
    from ...simt import limits

    target = TARGETS[arch]
    files = {kind: out / f"{kernel.name}.{arch}.{kind}" for kind in ("ptx", "cubin", "sass")}
    files["ptx"].write_text(text, encoding="utf-8")
    made = assemble(files["ptx"], files["cubin"], target)
    files["sass"].write_text(disassemble(files["cubin"]), encoding="utf-8")
    shared = made.shared_bytes + kernel.shared_bytes
    of_arch = limits.of(capability(target))
    return {
        "kernel": kernel.name, "arch": arch, "registers": made.registers, "spill_bytes": made.spill_bytes,
        "shared_bytes": shared, "blocks_per_sm": limits.resident(of_arch, kernel.threads, shared, made.registers),
    }  # fmt: skip


def build_all(archs: list[str], out: Path) -> list[dict[str, Any]]:
    """Every kernel for every architecture, and report.json; says on stderr how far it is.

    One core compiles while another assembles what was compiled before.
    """
    from .build import ptx
    from .catalogue import kernels

    for name in ("ptxas", "nvdisasm"):
        tool(name)  # better missed now than after the first kernel
    out.mkdir(parents=True, exist_ok=True)
    work = [(kernel, arch) for arch in archs for kernel in kernels(arch)]
    coming, start = [], time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as assembler:
        for i, (kernel, arch) in enumerate(work):
            text, _ = ptx(kernel, TARGETS[arch])
            coming.append(assembler.submit(finish, kernel, arch, text, out))
            passed = time.monotonic() - start
            print(f"{i + 1}/{len(work)} {kernel.name} {arch}, {passed:.0f} s", file=sys.stderr, flush=True)
            if coming[0].done():
                coming[0].result()  # an error now, not at the end
        rows = [row.result() for row in coming]
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aristos.kernels.cuda", description=__doc__)
    parser.add_argument("--arch", default=",".join(TARGETS), help="architectures, with commas (%(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the files; made if it is not there")
    given = parser.parse_args(arguments)
    try:
        rows = build_all(architectures(given.arch), given.out)
    except (AristosError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(rows)} kernels, {given.out / 'report.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
