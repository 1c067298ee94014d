import importlib.util
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from gpt.errors import UserError
from gpt.kernels import gelu, layer_norm, triton_shared
from tools import kernel_cases
from tools.kernel_cases import H_DIMS, MLP_DIMS, cases

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


OFTEN = ("sm_80", "sm_90")  # A100, H100; the others under the marker `slow`


@pytest.mark.parametrize(
    "arch",
    [
        arch if arch in OFTEN else pytest.param(arch, marks=pytest.mark.slow)
        for arch in ARCHITECTURES
    ],
)
@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_kernels_are_within_the_table(gates, table, dtype, arch):
    measured = [gates.measure(case, dtype, arch) for case in cases()]
    assert len(measured) == 8 * len(H_DIMS) + 2 * len(MLP_DIMS) + 3
    worse = []
    for figures in measured:
        worse += gates.complaints(figures, table.get(figures.key()))
    assert not worse, "\n".join(worse)


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
        assert gate.loads_128 >= 1


@pytest.mark.parametrize(
    "kernel, block_size, warps_of, resident_warps",
    [
        (
            "add_layer_norm backward",
            layer_norm.block_size,
            triton_shared.num_warps,
            triton_shared.resident_warps,
        ),
        (
            "bias_gelu backward",
            gelu.block_size,
            gelu.backward_warps,
            lambda block: gelu.RESIDENT_WARPS,
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
        ("loads_128", 3, "128-bit loads 3, the table wants 4"),
        ("spills", 8, "spills 8, the table allows 0"),
        ("atomics", 1, "atomics 1, the table allows 0"),
    ],
)
def test_one_worse_than_the_table(gates, field, value, words):
    allowed = gates.Gate("a kernel", 768, registers=64, shared=4096, loads_128=4)
    within = gates.Figures("a kernel", 768, "fp16", "sm_80", 63, 4096, 4)
    assert gates.complaints(within._replace(**{field: value}), allowed) == [
        f"a kernel, width 768, fp16, sm_80: {words}"
    ]
    assert gates.complaints(within, allowed) == []
    assert gates.complaints(within, None) == ["a kernel, width 768, fp16, sm_80: not in the table"]


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
    narrow = case._replace(launch=lambda dtype: case.launch.func(770, True, dtype))
    assert (
        gates.measure(narrow, "fp16", "sm_80").loads_128
        == 0
        < gates.measure(case, "fp16", "sm_80").loads_128
    )


def test_command(gates, table, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["kernel_gates.py", "--arch", "sm_80", "--dtype", "fp16"])
    assert gates.main() == 0 and "63 compilations within the table" in capsys.readouterr().out
    monkeypatch.setattr(gates, "TABLE", tmp_path / "table.yaml")
    key = "bias_gelu backward", 3072
    gates.write_table(["3.7.1"], {**table, key: table[key]._replace(registers=8)})
    assert gates.main() == 1
    assert "bias_gelu backward, width 3072, fp16, sm_80: registers" in capsys.readouterr().out


def test_tables_are_made_and_widened(gates, monkeypatch, tmp_path):
    monkeypatch.setattr(gates, "TABLE", tmp_path / "table.yaml")

    def figures(registers, shared, loads_128, **others):
        return lambda case, dtype, arch: gates.Figures(
            case.name,
            case.width,
            dtype,
            arch,
            registers + (arch == "sm_90"),
            shared,
            loads_128,
            **others,
        )

    def make(option, version, measure):
        monkeypatch.setattr(sys, "argv", ["kernel_gates.py", option])
        monkeypatch.setattr(triton, "__version__", version)
        monkeypatch.setattr(gates, "measure", measure)
        assert not gates.main()
        versions, table = gates.read_table()
        return versions, {gate[2:] for gate in table.values()}

    assert make("--write", "3.7.1", figures(40, 16, 4)) == (["3.7.1"], {(48, 16, 4)})
    assert make("--widen", "3.6.0", figures(32, 64, 3)) == (["3.6.0", "3.7.1"], {(48, 64, 3)})
    assert make("--write", "3.6.0", figures(31, 64, 3)) == (["3.6.0"], {(32, 64, 3)})
    before = gates.TABLE.read_text()
    for bad in (figures(32, 0, 0), figures(32, 0, 1, spills=8), figures(32, 0, 1, atomics=1)):
        with pytest.raises(UserError, match="mend the kernel"):
            make("--write", "3.7.1", bad)
    assert gates.TABLE.read_text() == before
