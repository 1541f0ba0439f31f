"""Compiles every launch of a step for an H100 or H200, on a machine without a GPU.

Run as a program, since a process has one driver of Triton. It prints facts of the kernels as JSON.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from hpenv.optim.fused.arena import AdamWArena, MuonArena
from hpenv.optim.fused.launches import FusedAdamW, FusedMuon
from hpenv.optim.fused.layout import Layout

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Driver:
    """A driver of a GPU that is not there: it names the target, and nothing can be launched."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(kernel, *arguments, grid, warmup, **options):
    found[kernel.fn.__name__] = run(kernel, *arguments, grid=grid, warmup=True, **options)


def local_bytes(compiled):
    """Bytes of local memory a thread spills to, or None without the program that tells."""
    if not CUOBJDUMP.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(printed.split("LOCAL:")[1].split()[0]) + int(printed.split("STACK:")[1].split()[0])


run, JITFunction.run = JITFunction.run, compile_only
triton.runtime.driver.set_active(Driver())
found, compilations = {}, []
triton.knobs.compilation.listener = lambda **facts: compilations.append(facts["src"].name)

layout = Layout({"a": (64, 48), "b": (5, 7), "c": (48, 64)}, 3)
arenas = [AdamWArena.empty(layout, cap_cells=[0, 1, 0]), MuonArena.empty(layout, cap_cells=[0] * 3)]
steps = [FusedAdamW(arenas[0]).step, FusedMuon(arenas[1]).step]
for step in steps:
    step()
first = list(compilations)
for arena in arenas:
    for field, values in zip(arena.rates._fields, arena.rates, strict=True):
        values.fill_(0.0 if field == "gate" else 1.0)
for step in steps:
    step()

kernels = {
    name: {
        "stages": sorted(compiled.asm),
        "target": compiled.metadata.target.arch,
        "wide_reads": compiled.asm["ptx"].count("ld.global.v4"),
        "wide_writes": compiled.asm["ptx"].count("st.global.v4"),
        "fused": compiled.asm["ptx"].count("fma.rn.f32"),
        "approximate": compiled.asm["ptx"].count(".approx"),
        "atomics": len(re.findall(r"\b(?:atom|red)\.", compiled.asm["ptx"])),
        "shared": compiled.metadata.shared,
        "local": local_bytes(compiled) if "cubin" in compiled.asm else None,
    }
    for name, compiled in found.items()
}
print(json.dumps({"first": first, "later": compilations[len(first) :], "kernels": kernels}))
