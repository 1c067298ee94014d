import importlib.util
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from gpt.errors import UserError
from gpt.kernels import launch, layer_norm

TOOL = Path(__file__).resolve().parents[1] / "tools" / "kernel_gates.py"
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90"]
# A process that interprets kernels cannot compile them.
pytestmark = pytest.mark.skipif(launch.interpreted(), reason="TRITON_INTERPRET is set")


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
    version, table = gates.read_table()
    if version != triton.__version__:
        pytest.skip(f"the table holds figures of triton {version}")
    return table


def find(gates, name, width=768):
    (case,) = [case for case in gates.cases() if (case.name, case.width) == (name, width)]
    return case


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_kernels_are_within_the_table(gates, table, dtype, arch):
    found = [gates.measure(case, dtype, arch) for case in gates.cases()]
    assert len(found) == 4 * len(gates.H_DIMS) + 2 * len(gates.MLP_DIMS) + 3
    worse = [sentence for gate in found for sentence in gates.complaints(gate, table.get(gate.key()))]
    assert not worse, "\n".join(worse)


def test_table_is_whole_and_sound(gates):
    _, table = gates.read_table()
    expected = {(c.name, c.width, d, a) for c in gates.cases() for d in gates.DTYPES for a in ARCHITECTURES}
    assert set(table) == expected
    for gate in table.values():
        # 65,536 registers a multiprocessor let a program of 16 warps have 128 a thread; shared memory without opting in.
        assert 16 <= gate.registers <= 128 and gate.shared <= 48 * 1024
        assert gate.loads_128 >= 1 and gate.spills == gate.atomics == 0


@pytest.mark.parametrize("field, step, words", [
    ("registers", 1, "registers"), ("shared", 1, "shared"), ("loads_128", -1, "128-bit loads"),
    ("spills", 8, "spills"), ("atomics", 1, "atomics"),
])  # fmt: skip
def test_one_worse_than_the_table(gates, table, field, step, words):
    allowed = table["add_layer_norm backward", 768, "fp16", "sm_80"]
    (sentence,) = gates.complaints(allowed._replace(**{field: getattr(allowed, field) + step}), allowed)
    assert sentence.startswith("add_layer_norm backward, width 768, fp16, sm_80: " + words)
    assert gates.complaints(allowed, allowed) == []
    assert "not in the table" in gates.complaints(allowed, None)[0]


def test_registers_that_spill(gates, table, monkeypatch):
    monkeypatch.setattr(layer_norm, "num_warps", lambda block: 1)  # 64 columns a thread
    found = gates.measure(find(gates, "add_layer_norm backward", 2048), "fp16", "sm_80")
    assert found.spills > 0 and any("spills" in sentence for sentence in gates.complaints(found, table[found.key()]))


def test_rows_that_are_not_aligned(gates):
    case = find(gates, "add_layer_norm forward")
    narrow = case._replace(launch=lambda dtype: case.launch.func(770, True, dtype))
    assert gates.measure(narrow, "fp16", "sm_80").loads_128 == 0 < gates.measure(case, "fp16", "sm_80").loads_128


def test_command(gates, table, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["kernel_gates.py", "--arch", "sm_80", "--dtype", "fp16"])
    assert gates.main() == 0 and "27 compilations within the table" in capsys.readouterr().out
    line = next(line for line in gates.TABLE.read_text().splitlines() if "bias_gelu backward, width: 3072" in line)
    registers = table["bias_gelu backward", 3072, "fp16", "sm_80"].registers
    lowered = line.replace(f"registers: {registers}", f"registers: {registers - 1}")
    monkeypatch.setattr(gates, "TABLE", tmp_path / "table.yaml")
    original = TOOL.parents[1] / "tests" / "kernel_gates.yaml"
    gates.TABLE.write_text(original.read_text().replace(line, lowered))
    assert gates.main() == 1
    assert "bias_gelu backward, width 3072, fp16, sm_80: registers" in capsys.readouterr().out
    gates.TABLE.unlink()
    monkeypatch.setattr(sys, "argv", ["kernel_gates.py", "--write"])
    monkeypatch.setattr(gates, "measure", lambda *key: gates.Gate(key[0].name, key[0].width, *key[1:], 40, 0, 0))
    with pytest.raises(UserError, match="mend the kernel"):
        gates.main()
    assert not gates.TABLE.exists()
