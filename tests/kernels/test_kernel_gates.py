import importlib.util
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from gpt.errors import UserError
from gpt.kernels import gelu, heads, layer_norm, triton_shared
from tools import kernel_cases
from tools.kernel_cases import cases

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kernel_gates.py"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
# A process that interprets kernels cannot compile them.
pytestmark = pytest.mark.skipif(triton_shared.interpreted(), reason="TRITON_INTERPRET is set")


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """The tool as a module, with a compiler cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setattr(sys, "path", list(sys.path))
        spec = importlib.util.spec_from_file_location("kernel_gates", TOOL)
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        yield tool


@pytest.fixture
def table(gates):
    versions, table = gates.read_table()
    if triton.__version__ not in versions:
        pytest.skip(f"the table is for triton {' and '.join(versions)}")
    return table


def find(name, width=768):
    (case,) = [case for case in cases() if (case.name, case.width) == (name, width)]
    return case


def narrowest_cases():
    """Each kernel at its narrowest width; the others differ in how wide a program is."""
    first = {}
    for case in cases():
        first.setdefault(case.name, case)
    return list(first.values())


def assert_within(gates, table, measured):
    worse = []
    for figures in measured:
        worse += gates.complaints(figures, table.get(figures.key()))
    assert not worse, "\n".join(worse)


def test_narrow_kernels_are_within_the_table(gates, table):
    """On an H100; the other widths and architectures under the marker `slow`."""
    measured = [gates.measure(case, "fp16", "sm_90") for case in narrowest_cases()]
    assert_within(gates, table, measured)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_kernels_are_within_the_table(gates, table, dtype, arch):
    assert_within(gates, table, [gates.measure(case, dtype, arch) for case in cases()])


def test_table_is_whole_and_sound(gates):
    _, table = gates.read_table()
    assert (
        set(table) == {(case.name, case.width) for case in cases()}
        and gates.ARCHITECTURES == ARCHITECTURES
    )
    for gate in table.values():
        # 65,536 registers a multiprocessor let a program of 16 warps have 128 a thread; shared
        # memory without opting in.
        assert 32 <= gate.registers <= 128 and gate.registers % 8 == 0 and gate.shared <= 48 * 1024
        assert gate.loads_128 >= 1 and gate.instructions >= 50


@pytest.mark.parametrize(
    "kernel, block_size, warps_of, resident_warps",
    [
        (
            "add_bias_layer_norm backward",
            layer_norm.block_size,
            triton_shared.num_warps,
            layer_norm.resident_warps,
        ),
        (
            "bias_gelu backward",
            lambda width: triton_shared.block_size(width, gelu.COLUMNS),
            gelu.backward_warps,
            lambda block: triton_shared.RESIDENT_WARPS,
        ),
        (
            "heads backward",
            lambda width: triton_shared.block_size(width, heads.COLUMNS),
            lambda block: heads.WARPS,
            lambda block: triton_shared.RESIDENT_WARPS,
        ),
    ],
)
def test_looping_programs_are_all_resident(gates, kernel, block_size, warps_of, resident_warps):
    """No more of them start than fit on a multiprocessor at once, whatever registers the table lets
    them have."""
    _, table = gates.read_table()
    widths = [width for name, width in table if name == kernel]
    assert len(widths) == 6
    for width in widths:
        block = block_size(width)
        warps = warps_of(block)
        gate = table[kernel, width]
        # of sm_86, sm_89, sm_120
        fitting = min(65536 // (32 * gate.registers * warps), 100 * 1024 // (gate.shared + 1024))
        assert max(1, resident_warps(block) // warps) <= fitting


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("registers", 65, "registers 65, the table allows 64"),
        ("shared", 4097, "shared 4097, the table allows 4096"),
        ("instructions", 211, "instructions 211, the table allows 210"),
        ("loads_128", 3, "128-bit loads 3, the table wants 4"),
        ("async_copies", 5, "asynchronous copies 5, the table wants 6"),
        ("spills", 8, "spills 8, the table allows 0"),
        ("atomics", 1, "atomics 1, the table allows 0"),
    ],
)
def test_one_worse_than_the_table(gates, field, value, words):
    allowed = gates.Gate("a kernel", 768, 64, 4096, instructions=210, loads_128=4, async_copies=6)
    within = gates.Figures("a kernel", 768, "fp16", "sm_80", 63, 4096, 210, 4, 6)
    assert gates.complaints(within._replace(**{field: value}), allowed) == [
        f"a kernel, width 768, fp16, sm_80: {words}"
    ]
    assert gates.complaints(within, allowed) == []
    assert gates.complaints(within, None) == ["a kernel, width 768, fp16, sm_80: not in the table"]


def sass(*operations):
    """As cuobjdump prints it: each instruction with its address and its code, in 16 bytes."""
    return "".join(
        f"        /*{16 * place:04x}*/  {operation} ;  /* 0x000fe400078e00ff */\n{'':60}/* 0x0 */\n"
        for place, operation in enumerate(operations)
    )


@pytest.mark.parametrize(
    "operations, instructions",
    [
        (["MOV R1, R2", "@P0 EXIT", "FADD R1, R1, R2", "EXIT", "BRA 0x40", "NOP", "NOP"], 5),
        # a loop of three, with a jump forward inside; around it what is done once
        (["MOV R1, R2", "@!P0 BRA 0x20", "FADD R1, R1, R2", "@P5 BRA 0x10", "EXIT", "NOP"], 3),
        # two loops, the second within a third of four
        (
            ["FADD", "@P0 BRA 0x0", "MOV", "FMUL", "@P1 BRA.U 0x30", "BRA.U UP0, 0x20", "EXIT"],
            6,
        ),
    ],
)
def test_instructions_are_those_of_loops(gates, operations, instructions):
    assert gates.instructions_of(sass(*operations)) == instructions


def test_a_loop_that_no_longer_fetches_ahead(gates, table, monkeypatch):
    monkeypatch.setattr(layer_norm, "_stages", lambda *args: 1)
    figures = gates.measure(find("add_layer_norm backward"), "fp16", "sm_80")
    assert any(
        "asynchronous copies 0" in sentence
        for sentence in gates.complaints(figures, table[figures.key()])
    )


def test_registers_that_spill(gates, table, monkeypatch):
    monkeypatch.setattr(layer_norm, "num_warps", lambda block: 1)  # 64 columns a thread
    found = gates.measure(find("add_layer_norm backward", 2048), "fp16", "sm_80")
    assert found.spills > 0 and any(
        "spills" in sentence for sentence in gates.complaints(found, table[found.key()])
    )


def test_any_number_of_rows_takes_the_same_compilation(gates, monkeypatch):
    """An evaluation scores other numbers of tokens than a training step has, and a run shall not
    stop to compile for each."""

    def compilations():
        return [gates.specialised(case, "fp16")[1:] for case in cases()]

    expected = compilations()
    for rows in (48, 65, 66):
        monkeypatch.setattr(kernel_cases, "ROWS", rows)
        assert compilations() == expected


def test_rows_that_are_not_aligned(gates):
    case = find("add_layer_norm forward")
    narrow = case._replace(launch=lambda dtype: case.launch.func(770, True, False, dtype))
    assert (
        gates.measure(narrow, "fp16", "sm_80").loads_128
        == 0
        < gates.measure(case, "fp16", "sm_80").loads_128
    )


def test_command(gates, table, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["kernel_gates.py", "--arch", "sm_80", "--dtype", "fp16"])
    few_cases = [find("bias_gelu backward", 3072), find("layer_norm forward")]
    monkeypatch.setattr(gates, "cases", lambda: few_cases)
    assert gates.main() == 0
    assert "2 compilations within the table" in capsys.readouterr().out
    monkeypatch.setattr(gates, "TABLE", tmp_path / "table.yaml")
    key = "bias_gelu backward", 3072
    gates.write_table(["3.7.1"], {**table, key: table[key]._replace(registers=8)})
    assert gates.main() == 1
    assert "bias_gelu backward, width 3072, fp16, sm_80: registers" in capsys.readouterr().out


def test_tables_are_made_and_widened(gates, monkeypatch, tmp_path):
    monkeypatch.setattr(gates, "TABLE", tmp_path / "table.yaml")

    def figures(registers, shared, instructions, loads_128, async_copies, **others):
        return lambda case, dtype, arch: gates.Figures(
            case.name,
            case.width,
            dtype,
            arch,
            registers + (arch == "sm_90"),
            shared,
            instructions,
            loads_128,
            async_copies,
            **others,
        )

    def make(option, version, measure):
        monkeypatch.setattr(sys, "argv", ["kernel_gates.py", option])
        monkeypatch.setattr(triton, "__version__", version)
        monkeypatch.setattr(gates, "measure", measure)
        assert not gates.main()
        versions, table = gates.read_table()
        return versions, {gate[2:] for gate in table.values()}

    # a twentieth more instructions, and registers to the next multiple of 8
    assert make("--write", "3.7.1", figures(40, 16, 200, 4, 6)) == (
        ["3.7.1"],
        {(48, 16, 210, 4, 6)},
    )
    assert make("--widen", "3.6.0", figures(32, 64, 190, 3, 5)) == (
        ["3.6.0", "3.7.1"],
        {(48, 64, 210, 3, 5)},
    )
    assert make("--write", "3.6.0", figures(31, 64, 190, 3, 5)) == (
        ["3.6.0"],
        {(32, 64, 200, 3, 5)},
    )
    before = gates.TABLE.read_text()
    good = (32, 0, 200, 1, 0)
    without_wide_loads = figures(32, 0, 200, 0, 0)
    for bad in (without_wide_loads, figures(*good, spills=8), figures(*good, atomics=1)):
        with pytest.raises(UserError, match="mend the kernel"):
            make("--write", "3.7.1", bad)
    assert gates.TABLE.read_text() == before
