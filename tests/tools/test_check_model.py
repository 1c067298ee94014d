"""tools/check_model.py: its lines and exit codes, its options, and its runs on two ranks."""

import sys

import pytest

pytest.importorskip("torch")

from model_files import LAST, changed

from gpt.architecture.architecture import Architecture
from gpt.config.own_code import read_own_code
from gpt.config.shape import ModelConfig
from gpt.contract.subject import Subject
from gpt.training.contract_runs import TRIALS, look

SMALL = [
    *("--n_layers", 1, "--h_dim", 16, "--mlp_dim", 16, "--n_heads", 2, "--head_dim", 8),
    *("--seq_len", 16),
]
TWICE = changed(("in self.blocks:", "in [*self.blocks, *self.blocks]:"))


@pytest.fixture
def check(load_tool, monkeypatch, tmp_path):
    """check(text, *options) -> exit code of the tool on a model file of this text."""
    tool = load_tool("check_model")
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)

    def run(text, *options):
        file = tmp_path / "my.py"
        file.write_text(text)
        monkeypatch.setattr(sys, "argv", ["check_model.py", str(file), *map(str, options)])
        return tool.main()

    run.mistake = tool.mistake
    return run


def test_a_good_model_gets_a_line_for_each_check(check, capsys):
    code = check(changed(), *SMALL, "--skip_runs", "--model_options.base", 2)
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == "all 14 checks passed, the runs on two ranks left out"
    assert "16 tokens" in next(line for line in lines if "outputs" in line)


def test_what_is_wrong_is_told_and_the_exit_code_is_2(check, capsys):
    code = check(changed((LAST, "x = x - x.mean(1, keepdim=True)")), *SMALL)
    assert code == 2
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert len(failed) == 1
    assert "the model sees the future" in failed[0]
    assert lines[-1] == "1 of 14 checks failed; the runs on two ranks come after them"


def test_what_the_others_need_ends_the_check(check, capsys):
    assert check("def build(shape): return 3", *SMALL) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("my.py: build returns int, not a torch.nn.Module: return the model")
    assert lines[-1] == "1 of 2 checks failed, and the others need it"


def test_a_terminal_names_the_check_under_way(check, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert check("def build(shape): return 3", *SMALL) == 2
    first, second, *_ = capsys.readouterr().out.split("\n")
    shown = [line.split("\r") for line in (first, second)]
    assert [name for name, _ in shown] == ["...   imports", "...   builds"]
    # nothing of the name remains
    assert all(result.startswith(("ok  ", "FAIL")) for _, result in shown)
    assert all(len(result) >= len(name) for name, result in shown)


def test_a_gradient_of_its_own_can_be_meant(check):
    detached = changed(("return x + self.out(y)", "return x + self.out(y) + x.detach()"))
    assert check(detached, *SMALL, "--skip_runs") == 2
    assert check(detached, *SMALL, "--skip_runs", "--own_gradient") == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["none.py"], "model_file: none.py: No such file or directory"),
        (["model.txt"], "model_file is 'model.txt', which is no file of Python"),
        (
            ["my.py", "--max_lr", "3"],
            "command line: --scheduler.params.max_lr is nothing that a model is checked with",
        ),
        (["my.py", "--n_layers", "0"], "n_layers"),
        (["my.py", "--skip_run"], "command line: unknown option --skip_run"),
        ([], "command line: the following arguments are required: FILE.py"),
    ],
)
def test_a_mistake_on_the_command_line(check, arguments, sentence):
    assert sentence in check.mistake(*arguments)


# The trainer itself, in processes of its own. DeepSpeed has had wrong gradients at ZeRO 2 in bf16
# for what is called twice (its issue 8224), and fails at ZeRO 3 where that is gathered as a whole.
def test_runs_on_two_ranks_agree_with_plain_torch_where_blocks_are_called_twice(sample, tmp_path):
    chosen = [trial for trial in TRIALS if trial.name in ("ZeRO 2 in bf16", "ZeRO 3")]
    results = looked_at(sample, tmp_path, TWICE, tuple(chosen))
    assert [(result.name, result.seen) for result in results if not result.is_right] == []
    assert [result.name for result in results] == ["2 ranks", "resume", "evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        [("in self.blocks:", "in [*self.blocks, *self.blocks]:")],
        [("# model", "self.head.weight = self.embed.weight")],
        [('output_layer = "head"', "pass"), (LAST, "x = x @ self.head.weight.t()")],
        [
            (
                "nn.ModuleList(Block(shape) for _ in range(shape.n_layers))",
                "nn.Sequential(Block(shape))",
            )
        ],
        [("# model", "for block in self.blocks:\n    block.qkv = self.blocks[0].qkv")],
    ],
    ids=[
        "blocks twice",
        "tied",
        "weights by hand",
        "no list of blocks",
        "a layer in all blocks",
    ],
)
def test_runs_of_other_good_models(sample, tmp_path, changes):
    results = looked_at(sample, tmp_path, changed(*changes))
    assert [(result.name, result.seen) for result in results if not result.is_right] == []


@pytest.mark.slow
def test_a_run_that_fails_is_told_by_its_sentence(sample, tmp_path):
    broken = changed((LAST, "import os\nif 'RANK' in os.environ:\n    x = x + torch.ones(7, 7, 7)"))
    (result,) = looked_at(sample, tmp_path, broken)
    assert not result.is_right
    assert "my.py" in result.seen
    assert "forward fails (RuntimeError" in result.seen


def looked_at(sample, folder, text, trials=TRIALS):
    (folder / "my.py").write_text(text)
    shape = ModelConfig(2, 16, 16, 2, 8, 2048, 16)
    code = read_own_code(str(folder / "my.py"), "model_file")
    return look(Subject(Architecture(shape, code)), sample, lambda result: None, trials)
