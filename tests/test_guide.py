"""docs/extending.md can be followed: its files are taken from the page, and its commands run."""

import re
import shlex
import sys

import pytest
import torch
from conftest import ROOT, load_command, read_metrics, tiny_run, write_run
from plain_run import train

from gpt.architecture import own_module
from gpt.architecture.architecture import Architecture
from gpt.architecture.own_python import BUILD, function_of
from gpt.config.command_line import parse_command_line
from gpt.config.optimizer_keys import COOLDOWN, COSINE
from gpt.config.own_code import read_own_code
from gpt.config.resolve import load, resolve
from gpt.config.schedule import CooldownSchedule, CosineSchedule
from gpt.model import GPT

GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
ROTARY, SIGN = BLOCKS[:2]


@pytest.fixture
def rotary(tmp_path):
    path = tmp_path / "rotary.py"
    path.write_text(ROTARY, encoding="utf-8")
    return path


def rungs(folder, sample, **gpt):
    """Two classes of two seeds each, trained in this process."""
    for steps in (3, 6):
        for seed in (0, 1):
            train(
                folder / f"{steps}-seed{seed}",
                sample,
                scheduler={
                    "type": "LanguiniCosineLR",
                    "params": {"max_lr": 0.1, "warmup_steps": 1, "decay_steps": steps},
                },
                gpt={"max_train_steps": steps, "seed": seed, "eval_every": steps, **gpt},
            )


def test_from_the_model_file_to_the_table(rotary, sample, tmp_path, monkeypatch, capsys):
    for name in ("gpt", "rotary"):
        (tmp_path / name).mkdir()
    rungs(tmp_path / "gpt", sample)
    rungs(tmp_path / "rotary", sample, model_file=str(rotary), model_options={"base": 500})
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("gpt", "rotary")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *folders, "--over", "tokens"])
    load_command("compare").main()
    shown = capsys.readouterr().out
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| 1 |")]
    rows += [line.split(" | ") for line in shown.splitlines() if line.startswith("| 2 |")]
    shape = "2x32-mlp64-attn16"
    assert sorted(row[2] for row in rows) == sorted(2 * [shape, f"rotary {shape}"])
    assert "768 training tokens" in shown and "1,536 training tokens" in shown
    # of each class, both have two seeds
    assert all("2" in row for row in rows)


# {names of the guide's parameters: the GPT's}
NAMES = {
    "embed": "token_embedding",
    "norm1": "ln1",
    "norm2": "ln2",
    "qkv": "attn.qkv",
    "out": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    "norm": "ln_f",
}


def gpts_name(name):
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def test_positions_are_all_that_the_example_changes(rotary, monkeypatch):
    """Against gpt.model.GPT, where neither of the two is told positions."""
    shape = resolve(tiny_run(), "tiny").model
    code = read_own_code(str(rotary), "model_file")
    build = function_of(code, BUILD, "build")
    monkeypatch.setitem(build.__globals__, "turned", lambda x, angles: x)
    example = own_module.build_module(code, shape, {}, seed=3)
    gpt = GPT(shape, seed=3)
    gpts = dict(gpt.named_parameters())
    for name, parameter in example.named_parameters():
        other = gpts.pop(gpts_name(name))
        # of as many numbers, drawn from the same distribution
        assert parameter.std().item() == pytest.approx(other.std().item(), rel=0.1)
        assert parameter.mean().item() == pytest.approx(other.mean().item(), abs=0.003)
        with torch.no_grad():
            other.copy_(parameter)
    positions = gpts.pop("position_embedding.weight")
    assert not gpts
    with torch.no_grad():
        positions.zero_()
        tokens = torch.arange(24).view(2, 12) % shape.vocab_size
        logits = example(tokens) @ example.head.weight.t()
        assert torch.allclose(logits, gpt(tokens), rtol=0, atol=1e-5)


def test_the_example_can_be_read_in_one_sitting():
    lines = [line for line in ROTARY.splitlines() if line.strip()]
    assert len(lines) <= 50 and max(map(len, lines)) <= 100


def test_the_optimizer_of_the_guide_makes_the_steps_that_it_says(tmp_path):
    """By hand: with beta 0 the mean is the gradient, and every step is the rate long."""
    namespace = {}
    exec(compile(SIGN, "sign.py", "exec"), namespace)
    matrix, vector = torch.nn.Parameter(torch.zeros(1, 2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = namespace["build"]([("a.weight", matrix), ("a.bias", vector)], beta=0.0)
    assert [group.get("lr_scale", 1) for group in optimizer.param_groups] == [1, 0.5]
    for parameter in (matrix, vector):
        parameter.grad = torch.tensor([3.0, -0.5]).view(parameter.shape)
    optimizer.step()
    assert matrix.tolist() == [[pytest.approx(-1e-3), pytest.approx(1e-3)]]


def commands_of(script):
    """The guide's commands of a script, as words behind its name."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words[2:] for words in lines if words[:2] == ["python", script]]


def test_every_run_of_the_guide_resolves(tmp_path, monkeypatch):
    (tmp_path / "rotary.py").write_text(ROTARY, encoding="utf-8")
    (tmp_path / "sign.py").write_text(SIGN, encoding="utf-8")
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    monkeypatch.chdir(tmp_path)
    commands = commands_of("gpt/train.py")
    assert len(commands) > 5
    for words in commands:
        args = parse_command_line(words)
        config = load(args.ds_config, 1, args.overrides)
        if config.model_code is not None:
            assert Architecture.of(config).parameters() > 0


def test_the_rates_of_the_guide_are_the_schedules_own():
    (head,) = re.findall(r"^\| step \|(.*)\|$", GUIDE, re.MULTILINE)
    steps = [int(step.replace(",", "")) for step in head.split("|")]
    shape = {"max_lr": 1e-3, "min_lr": 0.0, "warmup_steps": 100, "decay_steps": 1000}
    own = {COSINE: CosineSchedule(**shape), COOLDOWN: CooldownSchedule(**shape, cooldown_share=0.2)}
    for kind, schedule in own.items():
        (row,) = re.findall(rf"^\| `{kind}` \|(( [\d.e-]+ \|)+)$", GUIDE, re.MULTILINE)
        rates = [float(rate) for rate in row[0].split("|")[:-1]]
        assert rates == pytest.approx([schedule.lr(step) for step in steps], rel=0.006, abs=1e-9)


def test_the_first_line_and_the_start_tell_the_files(rotary, sample, tmp_path, capsys):
    gpt = {"model_file": str(rotary), "max_train_steps": 1}
    train(tmp_path / "run", sample, gpt=gpt)
    (start,) = read_metrics(tmp_path / "run", "start")
    assert re.fullmatch("rotary.py [0-9a-f]{12}", start["model_file"])
    assert start["optimizer_file"] is None
    assert f"parameters of {start['model_file']}, fp32" in capsys.readouterr().out


@pytest.mark.slow
def test_the_guide_by_its_commands(rotary, sample, tmp_path, run_command):
    """check_model, train, sweeps of two tiny classes with two seeds, compare, as separate
    processes."""

    def run(script, *words, timeout=600):
        command = [sys.executable, ROOT / script, *words]
        done = run_command(command, tmp_path, timeout=timeout, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "ok    causal" in run("tools/check_model.py", rotary)
    for steps in (4, 8):
        gpt = {"max_train_steps": steps, "eval_every": steps, "data_root": str(sample)}
        params = {"max_lr": 3e-3, "warmup_steps": 1, "decay_steps": steps}
        scheduler = {"type": "LanguiniCosineLR", "params": params}
        write_run(tmp_path, f"class{steps}", scheduler=scheduler, gpt=gpt)
    classes = [tmp_path / f"class{steps}.json" for steps in (4, 8)]
    own = ["--model_file", rotary, "--model_options.base", "500"]
    run("gpt/train.py", "--ds_config", classes[0], *own, "--run_dir", tmp_path / "first")
    for name, options in (("gpt", []), ("rotary", own)):
        run("tools/sweep.py", "--classes", *classes, "--seeds", "0", "1", "--out", name, *options)
    table = run("tools/compare.py", "gpt", "rotary", "--over", "tokens")
    shape = "2x32-mlp64-attn16"
    assert table.count(f"| rotary {shape} |") == table.count(f"| {shape} |") == 2
