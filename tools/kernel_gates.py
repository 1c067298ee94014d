"""Compile every Triton kernel for GPUs that need not be here, and compare what the compiler made of
it with a table.

    python tools/kernel_gates.py                        all kernels, sm_80 to sm_120, fp16 and bf16
    python tools/kernel_gates.py --arch sm_80 --dtype fp16      some of them
    python tools/kernel_gates.py --write                make the table anew
    python tools/kernel_gates.py --widen                let it hold for this version of triton, too

The table, tests/support/kernel_gates.yaml, holds for each kernel and width, over all dtypes and
architectures and the versions of triton that it names, the most registers a thread and bytes of
shared memory a program may take, and how many of its loads from global memory must be 128 bits
wide. Registers come in steps of 8, as GPUs hand them out: within a step as many programs fit on a
multiprocessor. Spilled registers and atomics are never allowed. The kernels come with the launch
parameters of a training run: the tool calls their launchers, with a recorder in the kernel's place.
Exit code 0: all within the table; 1: a kernel is not, and is named. Needs triton, no GPU.
"""

import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command

TABLE = Path(__file__).resolve().parents[1] / "tests" / "support" / "kernel_gates.yaml"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
DTYPES = ["fp16", "bf16"]
H_DIMS = [768, 1024, 1536, 2048, 4096, 8192]
MLP_DIMS = [3072, 4096, 6144, 8192, 16384, 32768]
VOCAB_SIZE, ROWS = 16384, 64
STEP = 8  # registers a thread: a warp is given multiples of 256 (CUDA's occupancy calculator)

# In PTX
LOAD_128 = r"\bld\.global\S*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bfsu]16|b128)\b"
ATOMIC = r"\b(?:atom|red)\.\S+"


class Case(NamedTuple):
    """A kernel as the training run launches it: launch(dtype) reaches module.kernel with its
    arguments."""

    name: str
    width: int
    module: object
    kernel: str
    launch: object


class Gate(NamedTuple):
    """A line of the table."""

    kernel: str
    width: int
    registers: int  # a thread; a ceiling, in whole STEPs
    shared: int  # bytes a program; a ceiling
    loads_128: int  # instructions that load 128 bits a thread from global memory; a floor

    def key(self):
        return self[:2]


class Figures(NamedTuple):
    """What the compiler made of a kernel."""

    kernel: str
    width: int
    dtype: str
    arch: str
    registers: int
    shared: int
    loads_128: int
    spills: int = 0  # bytes a thread
    atomics: int = 0  # instructions

    def key(self):
        return self[:2]


def cases():
    import torch

    from gpt.kernels import cross_entropy, gelu, layer_norm

    def norm_forward(width, added, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        weight = torch.empty(width, dtype=dtype)
        residual = torch.empty_like(x) if added else None
        layer_norm.launch_forward(
            x, residual, weight, weight, x, residual, torch.empty(2, ROWS), 1e-5
        )

    def norm_backward(width, added, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        weight = torch.empty(width, dtype=dtype)
        grad_total = torch.empty_like(x) if added else None
        stats = torch.empty(2, ROWS)
        layer_norm.launch_backward(x, grad_total, x, weight, stats, x, torch.empty(2, 4, width), 16)

    def gelu_forward(width, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        gelu.launch_forward(x, x[0], x)

    def gelu_backward(width, dtype):
        x = torch.empty(ROWS, width, dtype=dtype)
        gelu.launch_backward(x, x, x[0], x, torch.empty(4, width), 16)

    def entropy(want_rank, want_gradient, dtype):
        logits = torch.empty(ROWS, VOCAB_SIZE, dtype=dtype)
        targets = torch.empty(ROWS, dtype=torch.int64)
        cross_entropy.launch(
            logits,
            targets,
            torch.empty(ROWS),
            targets if want_rank else None,
            1024.0,
            want_gradient,
        )

    for width in H_DIMS:
        for prefix, added in [("add_", True), ("", False)]:
            yield Case(
                f"{prefix}layer_norm forward",
                width,
                layer_norm,
                "_layer_norm_forward_kernel",
                partial(norm_forward, width, added),
            )
            yield Case(
                f"{prefix}layer_norm backward",
                width,
                layer_norm,
                "_layer_norm_backward_kernel",
                partial(norm_backward, width, added),
            )
    for width in MLP_DIMS:
        yield Case(
            "bias_gelu forward", width, gelu, "_gelu_forward_kernel", partial(gelu_forward, width)
        )
        yield Case(
            "bias_gelu backward",
            width,
            gelu,
            "_gelu_backward_kernel",
            partial(gelu_backward, width),
        )
    for name, rank, gradient in [
        ("gradient", False, True),
        ("nats", False, False),
        ("rank", True, False),
    ]:
        yield Case(
            f"cross_entropy {name}",
            VOCAB_SIZE,
            cross_entropy,
            "_cross_entropy_kernel",
            partial(entropy, rank, gradient),
        )


class _Recorder:
    """Stands in for a kernel: `recorder[grid](...)` keeps the arguments."""

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **options):
        self.args = args
        self.options = options


def specialised(case, dtype):
    """(kernel, signature, constants, attributes, compiler options) of a launch, as triton's
    just-in-time path has them: None, 1 and constexpr arguments are compiled in, integers and
    addresses divisible by 16 are known to be."""
    import torch
    from triton.runtime.jit import mangle_type

    kernel = getattr(case.module, case.kernel)
    recorder = _Recorder()
    setattr(case.module, case.kernel, recorder)
    try:
        case.launch({"fp16": torch.float16, "bf16": torch.bfloat16}[dtype])
    finally:
        setattr(case.module, case.kernel, kernel)
    values = dict(zip(kernel.arg_names, recorder.args))
    options = {
        name: value for name, value in recorder.options.items() if name not in kernel.arg_names
    }
    values.update(
        (name, value) for name, value in recorder.options.items() if name in kernel.arg_names
    )
    signature = {}
    constants = {}
    attributes = {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        free = parameter.do_not_specialize
        if (
            parameter.is_constexpr
            or value is None
            or (type(value) is int and value == 1 and not free)
        ):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = mangle_type(value)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        aligned = type(number) is int and number % 16 == 0
        if aligned and not free and not parameter.do_not_specialize_on_alignment:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return kernel, signature, constants, attributes, options


def _resources(cubin):
    """(registers a thread, bytes of stack and local memory a thread) of the one kernel in
    a cubin."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text).groups()
    )
    return registers, stack + local


_compiled = {}


def measure(case, dtype, arch) -> Figures:
    """What the compiler makes of a case. Widths that lead to the same compilation are compiled
    once."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constants, attributes, options = specialised(case, dtype)
    key = (
        case.module.__name__,
        case.kernel,
        arch,
        *map(str, (signature, constants, attributes, options)),
    )
    if key not in _compiled:
        source = ASTSource(kernel, signature, constants, attributes)
        done = triton.compile(
            source, target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32), options=options
        )
        wide, atomics = (
            len(re.findall(pattern, done.asm["ptx"])) for pattern in (LOAD_128, ATOMIC)
        )
        registers, spills = _resources(done.asm["cubin"])
        _compiled[key] = registers, done.metadata.shared, wide, spills, atomics
    return Figures(case.name, case.width, dtype, arch, *_compiled[key])


def complaints(found: Figures, allowed: Gate | None) -> list[str]:
    """What is worse than the table allows, one sentence each."""
    name = f"{found.kernel}, width {found.width}, {found.dtype}, {found.arch}"
    if allowed is None:
        return [f"{name}: not in the table"]
    result = []
    for field, most in (
        ("registers", allowed.registers),
        ("shared", allowed.shared),
        ("spills", 0),
        ("atomics", 0),
    ):
        if getattr(found, field) > most:
            result.append(f"{name}: {field} {getattr(found, field)}, the table allows {most}")
    if found.loads_128 < allowed.loads_128:
        result.append(
            f"{name}: 128-bit loads {found.loads_128}, the table wants {allowed.loads_128}"
        )
    return result


def gates_for(found) -> dict:
    """{(kernel, width): Gate} that all of these figures keep to."""
    gates = {}
    for one in found:
        registers = -(-one.registers // STEP) * STEP
        gate = Gate(*one.key(), registers, one.shared, one.loads_128)
        gates[one.key()] = _wider(gates.get(one.key(), gate), gate)
    return gates


def _wider(one: Gate, other: Gate) -> Gate:
    return Gate(
        *one.key(),
        max(one.registers, other.registers),
        max(one.shared, other.shared),
        min(one.loads_128, other.loads_128),
    )


def read_table():
    """(versions of triton that the table holds for, {(kernel, width): Gate})"""
    import yaml

    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    gates = [Gate(**line) for line in table["gates"]]
    return table["triton"], {gate.key(): gate for gate in gates}


def write_table(versions, gates):
    lines = [
        (
            "# Ceilings for the compiled kernels over dtypes and architectures, made by `python"
            " tools/kernel_gates.py --write`."
        ),
        (
            "# registers: a thread, in steps of 8; shared: bytes a program; loads_128: the fewest"
            " 128-bit loads from global memory."
        ),
        "# Spills and atomics are never allowed.",
        "triton: [" + ", ".join(f'"{version}"' for version in versions) + "]",
        "gates:",
    ]
    for gate in gates.values():
        lines.append("  - {" + ", ".join(f"{k}: {v}" for k, v in zip(gate._fields, gate)) + "}")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    parser = Parser(__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument(
        "--write",
        action="store_true",
        help="make the table of this triton's figures instead of comparing",
    )
    parser.add_argument(
        "--widen", action="store_true", help="widen the table where this triton's figures need it"
    )
    args = parser.parse_args()

    from gpt.kernels.triton_shared import OBSTACLE, interpreted

    if OBSTACLE is not None or interpreted():
        raise UserError(
            "the kernels' compiler is not at hand: install triton and leave TRITON_INTERPRET unset"
        )
    import triton

    if args.write or args.widen:
        args.arch = ARCHITECTURES
        args.dtype = DTYPES
    found = [
        measure(case, dtype, arch) for case in cases() for dtype in args.dtype for arch in args.arch
    ]
    for one in found:
        print(
            f"{one.kernel:24s} {one.width:6d} {one.dtype} {one.arch:6s}  registers"
            f" {one.registers:3d}  shared {one.shared:5d}  128-bit loads {one.loads_128:2d}  spills"
            f" {one.spills}"
        )
    if args.write or args.widen:
        return make_table(found, triton.__version__, args.widen)
    versions, table = read_table()
    if triton.__version__ not in versions:
        print(
            f"note: the table is for triton {' and '.join(versions)}; this is {triton.__version__},"
            " whose figures may differ"
        )
    worse = [sentence for one in found for sentence in complaints(one, table.get(one.key()))]
    print("\n".join(worse) if worse else f"{len(found)} compilations within the table")
    return 1 if worse else 0


def make_table(found, version, widen):
    for one in found:
        if one.spills or one.atomics or not one.loads_128:
            raise UserError(f"no ceiling can be made of {one}: mend the kernel first")
    versions, gates = [version], gates_for(found)
    if widen:
        earlier, before = read_table()
        versions = sorted({*earlier, version})
        gates = {key: _wider(before.get(key, gate), gate) for key, gate in gates.items()}
    write_table(versions, gates)


if __name__ == "__main__":
    command(main)
