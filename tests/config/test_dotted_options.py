"""Options by the path of a value of the run's JSON."""

import pytest
from conftest import ROOT, tiny_run

from gpt.config.command_line import parse_command_line
from gpt.config.resolve import load, resolve
from gpt.errors import UserError


def overrides_of(line):
    return parse_command_line(["--ds_config", "x.json", *line.split()]).overrides


@pytest.mark.parametrize(
    "line, overrides",
    [
        ("--optimizer.params.weight_decay 0.1", {"optimizer.params.weight_decay": 0.1}),
        ("--optimizer.params.weight_decay=1e-1", {"optimizer.params.weight_decay": 0.1}),
        ("--optimizer.params.betas 0.9 0.95", {"optimizer.params.betas": [0.9, 0.95]}),
        ("--optimizer.params.betas [0.9,0.95]", {"optimizer.params.betas": [0.9, 0.95]}),
        ("--optimizer.type AdamW", {"optimizer.type": "AdamW"}),
        ("--fp16.enabled False", {"fp16.enabled": False}),
        ("--zero_optimization.stage 2", {"zero_optimization.stage": 2}),
        (
            "--zero_optimization.reduce_bucket_size 5e8",
            {"zero_optimization.reduce_bucket_size": 5e8},
        ),
        ("--gradient_clipping 1.0", {"gradient_clipping": 1.0}),
        ("--gpt.eval_every -1 --seed 3", {"gpt.eval_every": -1, "gpt.seed": 3}),
        # a text stays one, whatever it looks like
        ("--gpt.run_dir 24", {"gpt.run_dir": "24"}),
    ],
)
def test_a_path_is_an_option(line, overrides):
    assert overrides_of(line) == overrides


def test_every_key_of_the_json_is_an_option():
    """All of the paths that a resolved run has, each with its own value."""
    config = load(ROOT / "ds_configs" / "24h.json")
    for path, value, _ in config.values():
        if value is None or path.startswith("scheduler.") or value == "":
            continue
        words = [str(number) for number in value] if isinstance(value, list) else [str(value)]
        argv = ["--ds_config", "x.json", f"--{path}", *words]
        assert parse_command_line(argv).overrides == {path: value}, path


@pytest.mark.parametrize(
    "line, sentence",
    [
        (
            "--max_lr 1 --scheduler.params.max_lr 2",
            (
                "command line: --max_lr and --scheduler.params.max_lr set the same value: give"
                " one of them"
            ),
        ),
        (
            "--gradient_clipping 1 --grad_clip_norm 2",
            (
                "command line: --grad_clip_norm and --gradient_clipping set the same value: give"
                " one of them"
            ),
        ),
        (
            "--optimizer.params {} --optimizer.params.eps 1e-6",
            (
                "command line: --optimizer.params sets a whole block, and --optimizer.params.eps a"
                " value in it: give one of them"
            ),
        ),
        ("--fp16.enabled", "command line: --fp16.enabled needs a value"),
        ("--fp16. true", "command line: --fp16. is no path of a key, such as --optimizer.type"),
    ],
)
def test_a_mistake_in_the_form_gets_its_sentence(line, sentence):
    with pytest.raises(UserError) as caught:
        overrides_of(line)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--zero_optimization.stage 5", "zero_optimization.stage is 5, must be one of 0, 1, 2, 3"),
        ("--fp16.enabled yes", "fp16.enabled is 'yes', not true or false"),
        (
            "--zero_optimization.stag 2",
            "zero_optimization.stag is not a known key (did you mean 'stage'?)",
        ),
        ("--fp17.enabled true", "fp17 is not a known key (did you mean 'fp16'?)"),
        (
            "--optimizer.params.betas 0.9 x",
            "optimizer.params.betas is [0.9, 'x'], not two numbers in [0, 1)",
        ),
    ],
)
def test_values_are_checked_as_those_of_the_file(line, sentence):
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(), "tiny", 1, overrides_of(line))
    assert str(caught.value) == f"command line: {sentence}"


def test_the_command_line_overrides_the_file_and_says_so():
    tree = tiny_run(optimizer={"type": "Adam", "params": {"weight_decay": 0.5, "eps": 1e-6}})
    config = resolve(tree, "tiny", 1, overrides_of("--optimizer.params.weight_decay 0.1"))
    params = config.deepspeed["optimizer"]["params"]
    assert (params["weight_decay"], params["eps"]) == (0.1, 1e-6)
    sources = {path: source for path, _, source in config.values()}
    assert sources["optimizer.params.weight_decay"] == "command line"


def test_another_type_leaves_out_what_it_does_not_have():
    tree = tiny_run(optimizer={"type": "Adam", "params": {"eps": 1e-6, "weight_decay": 0.1}})
    config = resolve(tree, "tiny", 1, overrides_of("--optimizer.type SGD"))
    assert config.deepspeed["optimizer"] == {"type": "SGD", "params": {"weight_decay": 0.1}}
    assert "optimizer.params of the file that SGD does not have are left out: eps" in config.notices


@pytest.mark.parametrize(
    "name, own", [("sweep", "--classes 6h --out o"), ("throughput", "--preset nano")]
)
def test_the_tools_take_them_too(name, own, load_tool, monkeypatch):
    words = "--optimizer.params.betas 0.9 0.99 --fp16.enabled false"
    monkeypatch.setattr("sys.argv", [name, *words.split(), *own.split()])
    _, train_args = load_tool(name).parse()
    overrides = parse_command_line(["--ds_config", "", *train_args]).overrides
    assert overrides["optimizer.params.betas"] == [0.9, 0.99]
    assert overrides["fp16.enabled"] is False
