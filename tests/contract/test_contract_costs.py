"""A model that computes more than what is counted of it."""

import pytest

pytest.importorskip("torch")

from model_files import changed

from gpt.architecture.architecture import Architecture
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig
from gpt.contract.costs import are_counted
from gpt.contract.subject import Subject
from gpt.errors import UserError

SHAPE = ModelConfig(
    n_layers=2, h_dim=16, mlp_dim=32, n_heads=2, head_dim=8, vocab_size=64, seq_len=16
)
# of the model's matrices and causal attention
COUNTED = 3 * (2 * (64 * 16 + 2 * 4 * 16 * 16) + 2 * 2 * 16 * 16)


def result_of(folder, *changes):
    (folder / "model.py").write_text(changed(*changes))
    code = read_own_code(str(folder / "model.py"), "gpt.model_file")
    return are_counted(Subject(Architecture(SHAPE, code)))


def test_what_is_counted_is_told(tmp_path):
    assert result_of(tmp_path) == f"{COUNTED:,} per token counted"


@pytest.mark.parametrize(
    "condition", ["x.is_meta", "len(x) < 3"], ids=["without values", "in small batches"]
)
def test_more_than_is_counted_is_refused(condition, tmp_path):
    loop = f"for _ in range(1 if {condition} else 8):\n    x = x @ self.blocks[0].out.weight"
    with pytest.raises(UserError) as caught:
        result_of(tmp_path, ("# last", loop))
    computed, counted = (16 * (COUNTED + times * 6 * 16 * 16) for times in (8, 1))
    assert str(caught.value).endswith(
        f"model.py: 5 rows take {computed:,} FLOPs each on the CPU, and {counted:,} where they are"
        " counted, of 2 rows without values: let what it computes hang neither on the device nor"
        " on the number of rows"
    )


def test_what_is_counted_on_the_cpu_is_told_with_its_reason(tmp_path):
    words = result_of(tmp_path, ("# last", "x = x if x.detach().amax().item() < 1e9 else -x"))
    assert words.startswith(f"{COUNTED:,} per token counted; ")
    assert "its FLOPs are those of a pass on the CPU, as none can be made without values" in words
