"""Compile every Triton kernel for GPUs that need not be here, and compare what the compiler made of
it with a table.

    python tools/kernel_gates.py                        all kernels, sm_80 to sm_120, fp16 and bf16
    python tools/kernel_gates.py --arch sm_80 --dtype fp16      some of them
    python tools/kernel_gates.py --write                make the table anew
    python tools/kernel_gates.py --widen                let it hold for this version of triton, too

The table, tests/support/kernel_gates.yaml, holds for each kernel and width, over all dtypes and
architectures and the versions of triton that it names, ceilings: registers a thread, bytes of
shared memory a program, instructions of the kernel's loops (of all of it where it has none); and
floors: loads from global memory that are 128 bits wide, and asynchronous ones, into shared memory,
by which a loop fetches what its next turn computes with. Registers come in steps of 8, as GPUs hand
them out: within a step as many programs fit on a multiprocessor. The table allows a twentieth more
instructions than it was made of, for versions of triton differ by a few. Spilled registers and
atomics are never allowed. The kernels come with the launch parameters of a training run: the tool
calls their launchers, with a recorder in the kernel's place. Exit code 0: all within the table; 1:
a kernel is not, and is named. Needs triton, no GPU.
"""

import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command
from tools.kernel_cases import cases

TABLE = Path(__file__).resolve().parents[1] / "tests" / "support" / "kernel_gates.yaml"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
DTYPES = ["fp16", "bf16"]
# registers a thread: a warp is given multiples of 256 (CUDA's occupancy calculator)
STEP = 8
# of instructions, for other versions of triton
MARGIN = 1.05

# In PTX
LOAD_128 = (
    r"\bld\.global\S*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bfsu]16|b128)\b"
    r"|\bcp\.async\.c[ag]\.shared\.global\S* [^;]*, 0x10\b"
)
ASYNC_COPY = r"\bcp\.async\.c[ag]\.shared\.global\b"
ATOMIC = r"\b(?:atom|red)\.\S+"

# In SASS: an instruction's address and the rest of it without its condition, and a jump's target
INSTRUCTION = r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([^;]*);"
JUMP = r"(?:BRA|JMP)\b.*\b0x([0-9a-f]+)"


class Gate(NamedTuple):
    """A line of the table: what a kernel at a width may take."""

    kernel: str
    width: int
    registers: int  # a thread; a ceiling, in whole STEPs
    shared: int  # bytes a program; a ceiling
    instructions: int  # of its loops, or of all of it; a ceiling, with MARGIN
    loads_128: int  # instructions that load 128 bits a thread from global memory; a floor
    async_copies: int  # instructions that load into shared memory in the background; a floor

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
    instructions: int
    loads_128: int
    async_copies: int = 0
    spills: int = 0  # bytes a thread
    atomics: int = 0  # instructions

    def key(self):
        return self[:2]


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
    from triton.runtime.jit import mangle_type

    kernel = getattr(case.module, case.kernel)
    values, options = _recorded_launch(case, kernel, dtype)
    signature = {}
    constants = {}
    attributes = {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if _is_compiled_in(parameter, value):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        signature[parameter.name] = mangle_type(value)
        if _is_known_to_be_aligned(parameter, value):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return kernel, signature, constants, attributes, options


def _recorded_launch(case, kernel, dtype):
    """({parameter: value}, compiler options) with which a case's launcher starts its kernel."""
    import torch

    recorder = _Recorder()
    setattr(case.module, case.kernel, recorder)
    try:
        case.launch({"fp16": torch.float16, "bf16": torch.bfloat16}[dtype])
    finally:
        setattr(case.module, case.kernel, kernel)
    values = dict(zip(kernel.arg_names, recorder.args))
    options = {}
    for name, value in recorder.options.items():
        if name in kernel.arg_names:
            values[name] = value
        else:
            options[name] = value
    return values, options


def _is_compiled_in(parameter, value):
    if parameter.is_constexpr or value is None:
        return True
    return type(value) is int and value == 1 and not parameter.do_not_specialize


def _is_known_to_be_aligned(parameter, value):
    if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment:
        return False
    number = value.data_ptr() if hasattr(value, "data_ptr") else value
    return type(number) is int and number % 16 == 0


def _resources(cubin):
    """(registers a thread, instructions of its loops or of all of it, bytes of stack and local
    memory a thread) of the one kernel in a cubin."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    registers, stack, local = map(int, usage.groups())
    return registers, instructions_of(text), stack + local


def instructions_of(sass) -> int:
    """Instructions in the loops of a disassembled kernel; without loops all of them but the padding
    behind its end."""
    instructions = {
        int(address, 16): operation
        for address, operation in re.findall(INSTRUCTION, sass, re.MULTILINE)
    }
    in_loops = set()
    for address, operation in instructions.items():
        jump = re.match(JUMP, operation)
        # what jumps to itself only keeps the end
        if jump and int(jump[1], 16) < address:
            start = int(jump[1], 16)
            in_loops.update(place for place in instructions if start <= place <= address)
    if in_loops:
        return len(in_loops)
    return sum(not operation.startswith("NOP") for operation in instructions.values())


# {compilation: Figures' fields from `registers` on}
_compiled = {}


def measure(case, dtype, arch) -> Figures:
    """What the compiler makes of a case. Widths that lead to the same compilation are compiled
    once."""
    kernel, *specialisation = specialised(case, dtype)
    key = (case.module.__name__, case.kernel, arch, *map(str, specialisation))
    if key not in _compiled:
        _compiled[key] = _compile(kernel, *specialisation, arch)
    return Figures(case.name, case.width, dtype, arch, *_compiled[key])


def _compile(kernel, signature, constants, attributes, options, arch):
    """Figures' fields from `registers` on."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    program = triton.compile(source, target=target, options=options)
    loads_128, async_copies, atomics = (
        len(re.findall(pattern, program.asm["ptx"])) for pattern in (LOAD_128, ASYNC_COPY, ATOMIC)
    )
    registers, instructions, spills = _resources(program.asm["cubin"])
    shared = program.metadata.shared
    return registers, shared, instructions, loads_128, async_copies, spills, atomics


def complaints(figures: Figures, allowed: Gate | None) -> list[str]:
    """What is worse than the table allows, one sentence each."""
    name = f"{figures.kernel}, width {figures.width}, {figures.dtype}, {figures.arch}"
    if allowed is None:
        return [f"{name}: not in the table"]
    ceilings = {
        "registers": allowed.registers,
        "shared": allowed.shared,
        "instructions": allowed.instructions,
        "spills": 0,
        "atomics": 0,
    }
    floors = {
        "128-bit loads": (figures.loads_128, allowed.loads_128),
        "asynchronous copies": (figures.async_copies, allowed.async_copies),
    }
    sentences = []
    for field, most in ceilings.items():
        value = getattr(figures, field)
        if value > most:
            sentences.append(f"{name}: {field} {value}, the table allows {most}")
    for quantity, (value, least) in floors.items():
        if value < least:
            sentences.append(f"{name}: {quantity} {value}, the table wants {least}")
    return sentences


def gates_for(measured: list[Figures]) -> dict:
    """{(kernel, width): Gate} that all of these figures keep to."""
    gates = {}
    for figures in measured:
        key = figures.key()
        registers = math.ceil(figures.registers / STEP) * STEP
        gate = Gate(
            *key,
            registers=registers,
            shared=figures.shared,
            instructions=math.ceil(figures.instructions * MARGIN),
            loads_128=figures.loads_128,
            async_copies=figures.async_copies,
        )
        gates[key] = _wider(gates.get(key, gate), gate)
    return gates


def _wider(first: Gate, second: Gate) -> Gate:
    """What both gates allow."""
    return Gate(
        *first.key(),
        registers=max(first.registers, second.registers),
        shared=max(first.shared, second.shared),
        instructions=max(first.instructions, second.instructions),
        loads_128=min(first.loads_128, second.loads_128),
        async_copies=min(first.async_copies, second.async_copies),
    )


def read_table():
    """(versions of triton that the table holds for, {(kernel, width): Gate})"""
    import yaml

    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    gates = [Gate(**line) for line in table["gates"]]
    return table["triton"], {gate.key(): gate for gate in gates}


def write_table(versions, gates):
    lines = [
        "# Ceilings for the compiled kernels over dtypes and architectures, made by"
        " `python tools/kernel_gates.py --write`.",
        "# registers: a thread, in steps of 8; shared: bytes a program;"
        " instructions: of its loops, or of all of it where it has none.",
        "# Floors: loads_128: 128-bit loads from global memory;"
        " async_copies: asynchronous loads into shared memory.",
        "# Spills and atomics are never allowed.",
        "triton: [" + ", ".join(f'"{version}"' for version in versions) + "]",
        "gates:",
    ]
    for gate in gates.values():
        fields = ", ".join(f"{name}: {value}" for name, value in gate._asdict().items())
        lines.append(f"  - {{{fields}}}")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    args = parse()

    from gpt.kernels.triton_shared import OBSTACLE, interpreted

    if OBSTACLE is not None or interpreted():
        raise UserError(
            "the kernels' compiler is not at hand",
            mend="install triton and leave TRITON_INTERPRET unset",
        )
    import triton

    is_for_table = args.write or args.widen
    dtypes = DTYPES if is_for_table else args.dtype
    architectures = ARCHITECTURES if is_for_table else args.arch
    measured = []
    for case in cases():
        for dtype in dtypes:
            measured += [measure(case, dtype, arch) for arch in architectures]
    for figures in measured:
        print_row(figures)
    if is_for_table:
        make_table(measured, triton.__version__, args.widen)
        return 0
    return compare(measured, triton.__version__)


def parse():
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
    return parser.parse_args()


def print_row(figures):
    columns = [
        f"{figures.kernel:24s} {figures.width:6d} {figures.dtype} {figures.arch:6s}",
        f"registers {figures.registers:3d}",
        f"shared {figures.shared:5d}",
        f"instructions {figures.instructions:4d}",
        f"128-bit loads {figures.loads_128:2d}",
        f"async copies {figures.async_copies:2d}",
        f"spills {figures.spills}",
    ]
    print("  ".join(columns))


def compare(measured, version) -> int:
    """Tell what the table does not allow; returns the exit code."""
    versions, gates = read_table()
    if version not in versions:
        print(
            f"note: the table is for triton {' and '.join(versions)}; this is {version}, whose"
            " figures may differ"
        )
    worse = []
    for figures in measured:
        worse += complaints(figures, gates.get(figures.key()))
    print("\n".join(worse) if worse else f"{len(measured)} compilations within the table")
    return 1 if worse else 0


def make_table(measured, version, widen):
    for figures in measured:
        if figures.spills or figures.atomics or not figures.loads_128:
            raise UserError(f"no ceiling can be made of {figures}", mend="mend the kernel first")
    versions = [version]
    gates = gates_for(measured)
    if widen:
        earlier_versions, earlier_gates = read_table()
        versions = sorted({*earlier_versions, version})
        gates = {key: _wider(earlier_gates.get(key, gate), gate) for key, gate in gates.items()}
    write_table(versions, gates)


if __name__ == "__main__":
    command(main)
