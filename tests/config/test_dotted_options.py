"""Options by the path of a value of the run's JSON."""

import json

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
        # a value has one form, by whichever name its option is called
        ("--max_lr=-1e-1", {"scheduler.params.max_lr": -0.1}),
        ("--max_lr -1e-1", {"scheduler.params.max_lr": -0.1}),
        ("--max_train_steps 1e3", {"gpt.max_train_steps": 1000}),
        ("--comment -x --run_dir=--y", {"gpt.comment": "-x", "gpt.run_dir": "--y"}),
        ("--optimizer.params.betas [0.9, 0.95]", {"optimizer.params.betas": [0.9, 0.95]}),
        ("--optimizer.params.betas 0.9,0.95", {"optimizer.params.betas": [0.9, 0.95]}),
        ('--comms_logger {"enabled":true}', {"comms_logger": {"enabled": True}}),
        ("--comms_logger.prof_ops all_reduce", {"comms_logger.prof_ops": ["all_reduce"]}),
        ('--comms_logger.prof_ops ["a","b"]', {"comms_logger.prof_ops": ["a", "b"]}),
        # what Python takes for a number, and neither JSON nor a person means as one
        ("--seed 1_0", {"gpt.seed": "1_0"}),
        ("--seed \u0663", {"gpt.seed": "\u0663"}),
        ("--tokens_per_second null", {"gpt.tokens_per_second": None}),
        ("--gpt.comment null --scheduler null", {"gpt.comment": None, "scheduler": None}),
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
            "--grad_clip_norm 2 --gradient_clipping 1",
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
        (
            '--optimizer.params {"lr":1,"lr":2}',
            "command line: the key 'lr' stands twice in one block",
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
        (
            "--optimizer.params.betas 0.9 null",
            "optimizer.params.betas is [0.9, null], not two numbers in [0, 1)",
        ),
        ("--seed x", "gpt.seed is 'x', not a whole number"),
        ("--seed true", "gpt.seed is true, not a whole number"),
        ("--seed=", "gpt.seed is '', not a whole number"),
        ("--comms_logger 1", "comms_logger is 1, not a block {…}"),
        ("--fp16 true", "fp16 is true, not a block {…} (did you mean 'fp16.enabled'?)"),
        (
            '--comms_logger {"enable":true}',
            "comms_logger.enable is not a known key (did you mean 'enabled'?)",
        ),
        (
            "--gpt.seeds null",
            "gpt.seeds is not a known key (did you mean 'seed'?)",
        ),
        (
            "--max_train_steps null",
            "gpt.max_train_steps is missing: optimiser steps of the whole run",
        ),
    ],
)
def test_values_are_checked_as_those_of_the_file(line, sentence):
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(), "tiny", 1, overrides_of(line))
    assert str(caught.value) == f"command line: {sentence}"


BELOW_A_VALUE = (
    "zero_optimization.stage",
    "optimizer.params.betas",
    "optimizer.type",
    "scheduler.params.max_lr",
    "train_batch_size",
    "gpt.data_root",
    "gpt.seed",
)


@pytest.mark.parametrize("value", ["1", "null"])
@pytest.mark.parametrize("path", BELOW_A_VALUE)
def test_a_path_behind_a_value_is_unknown(path, value):
    """Whether the file has the value or not."""
    for tree in (tiny_run(), load(ROOT / "ds_configs" / "24h.json").tree()):
        with pytest.raises(UserError) as caught:
            resolve(tree, "tiny", 1, overrides_of(f"--{path}.x {value}"))
        assert str(caught.value) == (
            f"command line: --{path}.x is not a known key: {path} is a value, and no block"
        )


def test_null_takes_out_what_the_file_says():
    tree = tiny_run(
        optimizer={"type": "SGD", "params": {"momentum": 0.9}},
        zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}},
    )
    tree["gpt"].update(tokens_per_second=1000, comment="long", seed=3)
    line = (
        "--gpt.tokens_per_second null --comment null --seed null --scheduler null --optimizer null"
        " --optimizer.params.lr 1e-3 --zero_optimization.offload_optimizer null"
    )
    with pytest.raises(UserError, match="--optimizer sets a whole block"):
        overrides_of(line)
    config = resolve(tree, "tiny", 1, overrides_of(line.replace("--optimizer null ", "")))
    options = config.options
    assert (options.tokens_per_second, options.comment, options.seed) == (None, "", 0)
    assert config.schedule is None and "scheduler" not in config.deepspeed
    assert "offload_optimizer" not in config.deepspeed["zero_optimization"]
    assert config.deepspeed["optimizer"]["params"] == {"momentum": 0.9, "lr": 1e-3}
    assert resolve(tree, "tiny", 1, {"optimizer": None}).deepspeed["optimizer"]["type"] == "Adam"


def test_a_block_from_the_command_line_is_no_longer_the_files(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_run(optimizer={"type": "Adam", "params": {"eps": 1}})))
    with pytest.raises(UserError) as caught:
        load(path, 1, overrides_of('--optimizer.params {"eps":-1,"betas":null}'))
    assert str(caught.value) == "command line: optimizer.params.eps is -1, must be at least 1e-38"


def test_a_schedules_option_needs_the_schedule():
    with pytest.raises(UserError) as caught:
        resolve(tiny_run(), "tiny", 1, {"scheduler": None, "scheduler.params.max_lr": 1e-3})
    assert "the run has no scheduler: give --scheduler.type LanguiniCosineLR as well" in str(
        caught.value
    )


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


def test_an_argument_may_be_taken_out(tmp_path):
    (tmp_path / "model.py").write_text("")
    gpt = {"model_file": str(tmp_path / "model.py"), "model_options": {"base": 500, "depth": 2}}
    overrides = overrides_of("--model_options.base null --model_options.other null")
    config = resolve(tiny_run(gpt=gpt), "tiny", overrides=overrides)
    assert config.options.model_options == {"depth": 2}


def test_of_an_option_that_is_repeated_the_last_one_counts():
    assert overrides_of("--seed 1 --fp16.enabled true --seed 2 --fp16.enabled false") == {
        "gpt.seed": 2,
        "fp16.enabled": False,
    }
