"""Compute classes, and the command that measures a device for them."""

import csv
import json
import sys

import numpy as np
import pytest
from conftest import ROOT, load_command, tiny_run, write_run

from gpt.compute import classes
from gpt.config.resolve import load, resolve
from gpt.errors import UserError
from gpt.training import throughput as gpt_throughput

throughput = load_command("throughput")
THROUGHPUT = ROOT / "tools" / "throughput.py"

RATE = classes.Rate(1000, 10**6, "fp16")


def test_the_published_throughput_gives_the_shipped_files(tmp_path, run_command):
    command = [
        sys.executable,
        "-X",
        "importtime",
        THROUGHPUT,
        "--from_reference",
        "--write_config",
        "classes",
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "deepspeed"}
    written = sorted(path.name for path in (tmp_path / "classes").iterdir())
    assert written == ["12h.json", "24h.json", "48h.json", "6h.json", "96h.json"]
    for name in written:
        assert (tmp_path / "classes" / name).read_bytes() == (
            ROOT / "ds_configs" / name
        ).read_bytes()
    # 3 h of 55,416 tokens/s are 598,492,800 tokens, in steps of 128 x 512; 384 h of 16,618 are
    # 22,972,723,200
    assert "9,132" in done.stdout.splitlines()[2] and "175,268" in done.stdout.splitlines()[-2]


def test_other_gpus_get_other_steps():
    assert classes.reference_class(24, "A100")["gpt"]["max_train_steps"] == round(
        24 * 3600 * 135107 / (256 * 512)
    )


def test_a_class_with_a_cooldown_keeps_its_share():
    tree = classes.shipped_tree("mini", 128)
    tree["scheduler"] = {"type": "LinearCooldownLR", "params": {"cooldown_share": 0.1}}
    config = resolve(classes.class_tree(tree, 6, RATE, 16, 512), "6h")
    assert config.options.max_train_steps == config.schedule.decay_steps == 330
    assert config.schedule.cooldown_start == 297


@pytest.mark.parametrize("preset", ["nano", "mini", "small", "XL"])
def test_a_class_of_any_preset_resolves(preset):
    tree = classes.class_tree(classes.shipped_tree(preset, 128), 6, RATE, 16, 512)
    config = resolve(json.loads(classes.text_of(tree)), "6h")
    assert (config.batch.micro_size, config.batch.accumulation) == (16, 8)
    assert list(tree)[:2] == ["train_batch_size", "train_micro_batch_size_per_gpu"]
    assert resolve(tree, "6h", 8).batch.accumulation == 1
    # 21,600,000 tokens / 65,536
    assert config.options.max_train_steps == config.schedule.decay_steps == 330


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"micro": 3},
            (
                "the micro batch 3 does not divide train_batch_size 8 of the class 6h: choose"
                " another of the two"
            ),
        ),
        ({"hours": 1e-6}, "the class 1e-06h is less than one step of 256 tokens at 1,000 tokens/s"),
        (
            {"scheduler": {"type": "WarmupLR"}},
            (
                "the class 6h needs the scheduler LanguiniCosineLR or LinearCooldownLR, whose"
                " decay_steps follow the class; the config's is WarmupLR"
            ),
        ),
    ],
)
def test_what_cannot_be_a_class(changes, sentence):
    tree = tiny_run(**{key: value for key, value in changes.items() if key == "scheduler"})
    with pytest.raises(UserError) as caught:
        classes.class_tree(tree, changes.get("hours", 6), RATE, changes.get("micro", 4), 32)
    assert str(caught.value).startswith(sentence)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, run_command):
    """A model whose activations at micro batch 64 take more memory than it is given."""
    folder = tmp_path_factory.mktemp("measured")
    write_run(folder, train_batch_size=64, gpt={"mlp_dim": 8192, "seq_len": 64, "kernels": "auto"})
    command = [
        sys.executable,
        THROUGHPUT,
        "--ds_config",
        "tiny.json",
        "--micro_batch",
        64,
        8,
        "--steps",
        3,
        "--warmup",
        1,
        "--memory_limit",
        0.8,
        "--hours",
        6,
        0.5,
        "--max_lr",
        1e-3,
        "--json",
        "o.json",
        "--csv",
        "o.csv",
        "--write_config",
        "classes",
    ]
    done = run_command(command, folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_memory_that_ends_costs_one_micro_batch(measured):
    folder, told = measured
    report = json.loads((folder / "o.json").read_text())
    assert [(r["micro_batch"], r["accumulation"], r["status"]) for r in report["results"]] == [
        (8, 8, "ok"),
        (64, 1, "out of memory"),
    ]
    found = report["results"][0]
    assert found["tokens_per_second"] == pytest.approx(
        64 * 64 / np.mean(found["step_seconds"]), rel=1e-9
    )
    assert found["median"] == pytest.approx(64 * 64 / np.median(found["step_seconds"]), rel=1e-9)
    assert found["lower_quartile"] <= found["median"] <= found["upper_quartile"]
    assert (
        len(found["step_seconds"]) >= 3
        and sum(found["step_seconds"]) >= 3
        and 10**8 < found["peak_memory"]
        and found["mfu"] is None
    )
    assert (
        report["best_micro_batch"] == 8
        and report["precision"] == "fp32"
        and len(report["config_hash"]) == 64
    )
    assert {"torch", "deepspeed", "python"} <= report["versions"].keys() and report[
        "device"
    ].startswith("cpu (")
    assert "         64            1 out of memory" in told
    rows = list(csv.DictReader((folder / "o.csv").open()))
    assert [row["status"] for row in rows] == ["ok", "out of memory"]
    assert (
        float(rows[0]["tokens_per_second"]) == found["tokens_per_second"]
        and rows[1]["tokens_per_second"] == ""
    )


def test_classes_are_written_for_this_device(measured):
    folder, told = measured
    report = json.loads((folder / "o.json").read_text())
    for name, hours in (("6h", 6), ("0.5h", 0.5)):
        config = load(folder / "classes" / f"{name}.json")
        speed = config.options.tokens_per_second
        assert speed == pytest.approx(report["tokens_per_second"], rel=0.01)
        steps = round(hours * 3600 * speed / (64 * 64))
        assert (
            config.options.max_train_steps
            == config.schedule.decay_steps
            == report["classes"][name]["steps"]
            == steps
        )
        assert (config.batch.train_batch_size, config.batch.micro_size) == (64, 8)
        shared = load(folder / "classes" / f"{name}.json", 4).batch  # on another number of GPUs
        assert (shared.micro_size, shared.accumulation) == (8, 2)
        assert config.schedule.max_lr == 1e-3 and config.model.mlp_dim == 8192
        assert f"{name:>7s} {64:>6d} {steps:>12,} {steps * 64 * 64:>18,}" in told


BAD = [
    ([], "what is to be measured? give --preset NAME or --ds_config FILE.json"),
    (["--preset", "smal"], "gpt.preset is 'smal' (did you mean 'small'?)"),
    (["--ds_config", "no.json"], "cannot read the config no.json: No such file or directory"),
    (
        ["--ds_config", "tiny.json", "--sweep", "--micro_batch", "3"],
        "--sweep finds the micro batches by itself: leave out --micro_batch, or --sweep",
    ),
    (
        ["--ds_config", "tiny.json", "--micro_batch", "3"],
        "--micro_batch 3 does not divide train_batch_size 8: it can be 1, 2, 4, 8",
    ),
    (
        ["--ds_config", "tiny.json", "--micro_batch", "0"],
        "--steps, --warmup and --micro_batch must be at least 1",
    ),
    (["--ds_config", "tiny.json", "--steps", "x"], "argument --steps: invalid int value: 'x'"),
    (
        ["--ds_config", "tiny.json", "--precision", "bf16", "--fp16.enabled", "true"],
        "--precision sets fp16.enabled and bf16.enabled: leave out --precision",
    ),
    (
        ["--ds_config", "tiny.json", "--sweep", "--train_micro_batch_size_per_gpu", "2"],
        "measure other micro batches than --train_micro_batch_size_per_gpu: give one of them",
    ),
    (["--preset", "null"], "what is to be measured? give --preset NAME or --ds_config FILE.json"),
    (
        ["--ds_config", "tiny.json", "--gpt.seed.x", "1"],
        "--gpt.seed.x is not a known key: gpt.seed is a value, and no block",
    ),
    (["--ds_config", "tiny.json", "--gpt.sed", "null"], "gpt.sed is not a known key"),
    (["--ds_config", "tiny.json", "--hours", "0"], "--hours must be above 0, and below a million"),
    (
        ["--ds_config", "tiny.json", "--hours", "6", "0.1", "0.10000001"],
        "--hours names the class 0.1h more than once: give each class once",
    ),
    (["--ds_config", "tiny.json", "--memory_limit", "nan"], "--memory_limit must be above 0"),
    (
        ["--ds_config", "flat.json", "--seed", "1", "--precision", "bf16"],
        "gpt is 5, not a block {…}",
    ),
    (
        ["--ds_config", "tiny.json", "--resume", "must"],
        "--resume and --allow_change are for train.py",
    ),
    (
        ["--ds_config", "tiny.json", "--max_l", "1"],
        "unknown option --max_l (did you mean '--max_lr'?)",
    ),
    (
        ["--ds_config", "tiny.json", "--swep"],
        "unknown option --swep (did you mean '--sweep'?)",
    ),
    (
        ["--ds_config", "tiny.json", "--hours", "6", "--write_config", "."],
        "6h.json is there already: name another folder with --write_config",
    ),
    (
        ["--ds_config", "tiny.json", "--json", "no/o.json"],
        "--json no/o.json: give the name of a file in a folder that exists",
    ),
    (
        ["--ds_config", "tiny.json", "--csv", "."],
        "--csv .: give the name of a file in a folder that exists",
    ),
    (
        ["--ds_config", "tiny.json", "--write_config", "flat.json"],
        "--write_config flat.json is a file: name a folder",
    ),
    (
        ["--ds_config", "linear.json", "--write_config", "classes"],
        "the class 3h needs the scheduler LanguiniCosineLR or LinearCooldownLR, whose decay_steps"
        " follow the class; the config's is WarmupDecayLR: give a config with LanguiniCosineLR or"
        " LinearCooldownLR",
    ),
    (["--from_reference", "5090"], "invalid choice: '5090'"),
    (
        ["--from_reference", "--preset", "small"],
        "--from_reference tells the published figures of the shipped classes and measures nothing",
    ),
]


@pytest.mark.parametrize(
    "options, sentence", [pytest.param(*case, id=" ".join(case[0]) or "nothing") for case in BAD]
)
def test_a_mistake_ends_before_anything_is_measured(options, sentence, tmp_path, run_command):
    write_run(tmp_path), write_run(tmp_path, "6h")
    warmup = {"warmup_max_lr": 1e-3, "warmup_num_steps": 2, "total_num_steps": 6}
    scheduler = {"type": "WarmupDecayLR", "params": warmup}
    write_run(tmp_path, "linear", scheduler=scheduler)
    flat = {"gpt": 5, "optimizer": {"type": "Adam", "params": {"lr": 0.1}}, "train_batch_size": 8}
    (tmp_path / "flat.json").write_text(json.dumps(flat))
    done = run_command([sys.executable, THROUGHPUT, *options], tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["6h.json", "flat.json", "linear.json", "tiny.json"]


def test_a_cell_of_the_csv_is_no_formula():
    report = {"config": "=1+1|' cmd", "results": [{"micro_batch": 4, "status": "-1\n"}]}
    head, row = csv.reader(throughput.as_csv(report).splitlines())
    assert dict(zip(head, row))["config"] == "'=1+1|' cmd"
    assert dict(zip(head, row))["status"] == "'-1\\n"


def test_classes_of_a_model_file_keep_it_and_state_its_rate(tmp_path):
    tree = {**tiny_run(), "train_batch_size": 8}
    tree["gpt"] |= {"model_file": "modern", "model_options": {"tied": True}}
    plan = gpt_throughput.plan(tree, "tiny", False, [4])
    gpt_throughput.require_classes(plan, [6.0], True)
    measured = {"status": "ok", "micro_batch": 4, "tokens_per_second": 1234.4}
    measured["machine"] = {"precision": "fp32", "device": "a test"}
    report = gpt_throughput.report(plan, [measured])
    gpt = plan.config.model
    # one matrix of the vocabulary's less, in as many products
    assert report["parameters"] == gpt.parameters() - gpt.vocab_size * gpt.h_dim
    assert report["flops_per_token"] == gpt.matmul_flops_per_token()
    report["classes"] = gpt_throughput.classes_here(report, [6.0], True)
    of_class = gpt_throughput.class_trees(plan.tree, report)[6.0]
    written = json.loads(classes.text_of(of_class))
    assert written["gpt"]["model_file"] == "modern"
    assert written["gpt"]["model_options"] == {"tied": True}
    config = resolve(written, "6h")
    assert config.options.tokens_per_second == 1234
    assert config.options.reference_model == plan.config.model_digest
    assert config.options.max_train_steps == round(6 * 3600 * 1234 / (8 * 32))
    other = resolve(written, "6h", overrides={"gpt.model_options.tied": False})
    assert other.options.tokens_per_second is None
    # the same file as a class of the GPT
    report["model_digest"] = None
    assert "reference_model" not in gpt_throughput.class_trees(plan.tree, report)[6.0]["gpt"]
