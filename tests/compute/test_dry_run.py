"""What --dry_run and --explain tell, against measurements and arithmetic of their own."""

import json
import sys

import pytest
import torch
from conftest import ROOT, read_metrics, tiny_run, write_run
from live_storages import LiveStorages

from gpt.compute.costs import GPTCosts
from gpt.compute.dry_run import explain, report
from gpt.compute.memory import checkpoint_bytes, memory
from gpt.config.resolve import load, resolve
from gpt.config.shape import ModelConfig
from gpt.data.datasets import Dataset
from gpt.errors import UserError
from gpt.kernels.linear_cross_entropy import CHUNK_ELEMENTS
from gpt.model import GPT

TRAIN = ROOT / "gpt" / "train.py"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "shape", [(4, 64, 256, 4, 16, 100, 64), (2, 96, 200, 5, 24, 50, 32)], ids=["even", "odd"]
)
def test_activations_are_what_torch_keeps_for_the_backward_pass(shape, checkpointing, monkeypatch):
    config = ModelConfig(*shape)
    model = GPT(config, 0, checkpointing)
    tokens = torch.randint(config.vocab_size, (8, config.seq_len + 1))
    with LiveStorages() as live:
        loss = model(tokens[:, :-1], tokens[:, 1:])
        kept = live.bytes
    estimate = memory(GPTCosts(config), 8, 1, 1, "fp32", checkpointing, CHUNK_ELEMENTS["cpu"])
    block = 0
    # the estimate also holds the one block that is computed again in the backward pass
    if checkpointing:
        block = (
            (4 * config.h_dim + 4 * config.n_heads * config.head_dim + 2 * config.mlp_dim)
            * 4
            * 8
            * config.seq_len
        )
    head = 4 * config.vocab_size * config.h_dim
    assert kept == pytest.approx(estimate.activations - block + head, rel=0.1)
    assert loss.requires_grad


OPTIMIZER = {"offload_optimizer": {"device": "cpu"}}
PARAM = {"offload_param": {"device": "cpu"}}
OVERLAP = {"overlap_comm": True}
SCATTERED = {"contiguous_gradients": False}
QUICK = [
    (2, 1, "bf16", 4, {}),
    (1, 2, "fp16", 2, {}),
    (2, 3, "fp16", 1, {}),
    (2, 2, "fp32", 2, OPTIMIZER),
]
ALL = [
    (ranks, stage, precision, accumulation, {})
    for ranks in (1, 2)
    for stage in range(4)
    for accumulation in (1, 4)
    for precision in ("fp32", "fp16", "bf16")
    if stage or precision == "fp32"
]
ALL += [
    (2, stage, "fp16", 2, zero)
    for stage, zero in ((1, OVERLAP), (2, OVERLAP), (1, SCATTERED), (3, SCATTERED))
]
ALL += [
    (2, stage, precision, 2, OPTIMIZER)
    for stage in (1, 2, 3)
    for precision in ("fp32", "fp16", "bf16")
]
ALL += [
    (2, 3, precision, 2, {**PARAM, **zero})
    for precision in ("fp32", "fp16")
    for zero in ({}, OPTIMIZER)
]


@pytest.mark.parametrize(
    "cases", [QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_memory_is_what_the_engine_allocates(cases, tmp_path, run_command):
    """On the branches that DeepSpeed takes on GPUs, with buckets that are a quarter of the
    model."""
    gpt = {
        "h_dim": 128,
        "mlp_dim": 512,
        "n_heads": 2,
        "head_dim": 64,
        "n_layers": 8,
        "vocab_size": 256,
        "seq_len": 8,
        "last_n": 8,
    }
    small = {
        "reduce_bucket_size": 400_000,
        "stage3_prefetch_bucket_size": 200_000,
        "stage3_param_persistence_threshold": 0,
    }
    runs, files = [], []
    for index, (ranks, stage, precision, accumulation, zero) in enumerate(cases):
        half = {} if precision == "fp32" else {precision: {"enabled": True}}
        if precision == "fp16":
            half["fp16"]["initial_scale_power"] = 4
        files.append(
            write_run(
                tmp_path,
                str(index),
                gpt=gpt,
                zero_optimization={"stage": stage, **small, **zero},
                **half,
                train_batch_size=2 * accumulation * ranks,
                gradient_accumulation_steps=accumulation,
            )
        )
        runs += [ranks, files[-1]]
    done = run_command(
        [sys.executable, ROOT / "tests/support/memory_run.py", *runs],
        tmp_path,
        timeout=1800,
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    for case, file, peaks in zip(cases, files, measured, strict=True):
        config, (ranks, stage, precision, accumulation, zero) = load(file, case[0]), case
        plain, norms = (
            memory(
                GPTCosts(config.model),
                2,
                ranks,
                stage,
                precision,
                False,
                CHUNK_ELEMENTS["cpu"],
                norms=norms,
                accumulation=accumulation,
                fp32_sums=config.fp32_sums,
                zero=config.deepspeed["zero_optimization"],
            )
            for norms in (False, True)
        )
        off = [
            estimate.total + estimate.host - peak
            for estimate, peak in ((plain, peaks["peak"]), (norms, peaks["with norms"]))
        ]
        print(
            f"{case}: most at once {peaks['peak']:,}, estimated {off[0] / peaks['peak']:+.1%}; with"
            f" norms {peaks['with norms']:,}, {off[1] / peaks['with norms']:+.1%}"
        )
        # At stage 2 the share of a micro-batch comes when its activations are half gone; it is
        # counted beside all of them.
        most = 0.1 if stage == 2 else 0.06
        assert -0.03 < off[0] / peaks["peak"] < most, case
        # a GPU and its host are fullest at different times; here both are one
        if "offload_optimizer" not in zero:
            assert -0.03 < off[1] / peaks["with norms"] < most, case
        if accumulation > 1:
            kept = plain.weights + plain.gradients + plain.optimizer + plain.host
            assert 0.98 * kept < peaks["between"] < 1.02 * (kept + plain.buckets), case
        # no rank holds the whole model at any time: its part of each tensor, and one that is whole
        if stage == 3:
            own = 4 * config.model.parameters() / ranks
            assert (
                0.9 * own
                < peaks["placed"]
                < 1.1 * own + 3 * 4 * config.model.h_dim * config.model.mlp_dim
            )


SMALL_SHAPE = {
    "vocab_size": 16384,
    "seq_len": 512,
    "last_n": 128,
    "n_layers": None,
    "h_dim": None,
    "mlp_dim": None,
    "n_heads": None,
    "head_dim": None,
}


def test_the_table_counts_buckets_and_the_steps_that_find_norms():
    def row(name, **gpt):
        config = resolve(
            tiny_run(gpt={"preset": "small", **SMALL_SHAPE, **gpt}),
            "tiny",
        )
        line = next(
            line for line in report(config, None).splitlines() if line.split()[:1] == [name]
        )
        return [float(value) for value in line.split()[1:]]

    # 5e7 elements of 4 bytes, and a share
    assert row("buckets") == pytest.approx([0, 0.19, 0.19 + 0.41, 0.19], abs=0.01)
    # 110,615,040 parameters, of which each has 4 bytes more in such a step
    assert row("update", log_grads_every=1) == pytest.approx(
        [value + 0.41 for value in row("update")], abs=0.011
    )


def test_a_graph_keeps_the_memory_of_its_passes():
    """Beside the buckets and copies of the reduction, and the update, which otherwise come when the
    activations have gone."""

    def rows(on):
        gpt = {"cuda_graph": on, "max_train_steps": 6}
        tree = tiny_run(gpt={**gpt, "preset": "small", **SMALL_SHAPE}, bf16={"enabled": True})
        lines = report(resolve(tree, "tiny"), None).splitlines()
        assert any("as one CUDA graph (experimental)" in line for line in lines) == on
        # of ZeRO stages 1 to 3
        table = {line[:36].strip(): line[36:].split() for line in lines if line.startswith("  ")}
        names = "weights gradients optimizer activations logits buckets reduction update".split()
        return {name: float(table[name][0]) for name in [*names, "most at once"]}, table

    usual, usual_table = rows(False)
    graphed, table = rows(True)
    kept = sum(graphed[name] for name in ("weights optimizer activations logits gradients").split())
    after = max(graphed["buckets"] + graphed["reduction"], graphed["update"])
    assert graphed["most at once"] == pytest.approx(kept + after, abs=0.04)
    assert graphed["most at once"] > usual["most at once"]
    assert table["most at once"][1:] == usual_table["most at once"][1:]


def test_memory_of_the_zero_paper():
    """Rajbhandari et al., figure 1: 7.5 B parameters on 64 GPUs in fp16 hold 120, 31.4, 16.6 and
    1.9 GB."""
    model = ModelConfig(
        n_layers=36,
        h_dim=4096,
        mlp_dim=16384,
        n_heads=32,
        head_dim=128,
        vocab_size=32000,
        seq_len=1024,
    )
    scale = 7.5e9 / model.parameters()
    by_stage = [memory(GPTCosts(model), 1, 64, stage, "fp16", False, 1) for stage in range(4)]
    held = [(m.weights + m.gradients + m.optimizer) * scale / 1e9 for m in by_stage]
    assert held == pytest.approx([120, 31.4, 16.6, 1.9], rel=0.02)


def test_size_of_a_checkpoint_is_what_a_run_writes(sample, tmp_path, run_command):
    config = write_run(tmp_path, gpt={"data_root": str(sample), "h_dim": 128, "max_train_steps": 1})
    done = run_command([sys.executable, TRAIN, "--ds_config", config], tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/tiny/checkpoints/global_step1"
    written = sum(path.stat().st_size for path in folder.glob("*.pt"))
    assert written == pytest.approx(
        checkpoint_bytes(load(config).model.parameters(), 1, "fp32"), rel=0.1
    )


def test_24h_is_told_without_torch_or_data(tmp_path, run_command):
    command = [
        sys.executable,
        "-X",
        "importtime",
        TRAIN,
        "--ds_config",
        ROOT / "ds_configs/24h.json",
        "--dry_run",
        "--world_size",
        "64",
    ]
    done = run_command([*command, "--gradient_accumulation_steps", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "deepspeed", "wandb"}
    for words in (
        "110,615,040 parameters",
        "micro batch 4 x accumulation 1 x 64 rank(s)",
        "4,787,929,088 tokens, 43.3 per",
        "24.00 hours at 55,416 tokens/s",
        "24h 36,529",
        "data/books is not there yet",
        "4 checkpoint(s) of 1.55 GB",
        "ZeRO 1*",
        "200 steps of warm-up",
        "evaluation     75 times 8,000 windows",
        "               1 time over the whole split 'test'",
    ):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_constant_learning_rate_and_a_run_without_steps():
    tree = tiny_run(scheduler=None, optimizer={"type": "Adam", "params": {"lr": 1e-3}})
    tree["gpt"] |= {"max_train_steps": 0, "eval_every": 2}
    text = report(resolve(tree, "tiny"), None)
    assert "learning rate  0.001, constant" in text
    (evaluation,) = [line for line in text.splitlines() if line.startswith("evaluation")]
    assert evaluation.endswith("32 windows of 32 tokens")
    assert "time           unknown without tokens_per_second, which tools/throughput.py" in text


@pytest.mark.parametrize(
    "share, words",
    [
        (0.5, "constant until step 3, straight line to 6e-06 at step 6"),
        (0, "constant"),
    ],
)
def test_a_cooldown_is_told(share, words):
    params = {"max_lr": 3e-3, "warmup_steps": 2, "decay_steps": 6, "cooldown_share": share}
    tree = tiny_run(scheduler={"type": "LinearCooldownLR", "params": params})
    told = report(resolve(tree, "tiny"), None)
    assert f"learning rate  2 steps of warm-up to 0.003, {words}\n" in told


def test_a_scheduler_of_deepspeeds_is_named_and_fp16_is_that_of_a_gpu():
    params = {"warmup_max_lr": 1e-3, "warmup_num_steps": 2}
    scheduler = {"type": "WarmupLR", "params": params}
    text = report(resolve(tiny_run(scheduler=scheduler, fp16={"enabled": True}), "tiny"), None)
    assert "learning rate  by DeepSpeed's WarmupLR" in text
    assert text.startswith(
        "tiny on 1 rank(s), fp16 as on a GPU (a machine without one trains in fp32), ZeRO stage 1"
    )


def test_what_is_told_stands_in_one_column():
    lines = report(load(ROOT / "ds_configs/24h.json"), None).splitlines()
    labels = ["model", "batch", "training", "compute", "learning rate", "data", "disk", "time"]
    for label in [*labels, "evaluation", "host"]:
        (line,) = [line for line in lines if line.startswith(f"{label} ")]
        assert line[:15] == f"{label:15s}" and line[15] != " "


def test_data_is_counted_where_it_is(sample):
    config = resolve(
        tiny_run(gpt={"max_train_steps": 13004, "eval_every": 13004, "max_eval_steps": -1}), "tiny"
    )
    text = report(config, Dataset(sample))
    assert "3,328,914 tokens in 240 documents to train on, read 1.00 times" in text
    # 1 + ceil((108,605 - 32) / 16) windows, twice, against 13,004 steps of 256 tokens at three
    # times the cost
    assert "2 times 6,787 windows of 32 tokens: 4.3% of the training's FLOPs" in text


def test_the_last_evaluation_of_the_whole_split_is_counted_apart(sample):
    gpt = {"max_train_steps": 13004, "eval_every": 13004, "final_eval": True}
    text = report(resolve(tiny_run(gpt=gpt), "tiny"), Dataset(sample))
    assert (
        "evaluation     2 times 32 windows of 32 tokens: 0.0% of the training's FLOPs\n"
        "               1 time 6,787 windows of 32 tokens: 2.2% of the training's FLOPs\n" in text
    )


def test_every_value_tells_its_source(tmp_path):
    path = write_run(tmp_path, gpt={"preset": "nano", "n_layers": 2, "h_dim": None})
    lines = {line.split()[0]: line for line in explain(load(path, 2, {"gpt.seed": 7})).splitlines()}
    assert lines["gpt.seed"].split()[1:] == ["7", "command", "line"]
    assert lines["gpt.h_dim"].split()[1:] == ["128", "preset", "nano"]
    assert lines["gpt.n_layers"].split()[1:] == ["2", "tiny.json:1"]
    assert lines["gpt.log_metrics_every"].split()[1:] == ["1", "default"]
    assert lines["train_micro_batch_size_per_gpu"].split()[1:] == [
        "2",
        "derived:",
        "from",
        "train_batch_size",
        "and",
        "gradient_accumulation_steps,",
        "2",
        "rank(s)",
    ]
    lines = explain(load(ROOT / "ds_configs/24h.json", 64)).splitlines()
    shipped = dict(line.split(maxsplit=1) for line in lines)
    assert shipped["train_micro_batch_size_per_gpu"].split(maxsplit=1) == [
        "4",
        "derived: at most 32 asked for (24h.json:3), of the 4 a step that each of 64 rank(s) has",
    ]
    assert shipped["gradient_accumulation_steps"].split(maxsplit=1) == [
        "1",
        "derived: from train_batch_size and train_micro_batch_size_per_gpu, 64 rank(s)",
    ]
    number = (ROOT / "ds_configs/24h.json").read_text().splitlines().index(
        '    "preset": "small",'
    ) + 1
    assert shipped["gpt.preset"].endswith(f"24h.json:{number}")


def test_a_runs_config_yaml_runs_it_again(sample, tmp_path, run_command):
    config = write_run(
        tmp_path, gpt={"data_root": str(sample), "max_train_steps": 2}, gradient_clipping=0.5
    )
    first = run_command([sys.executable, TRAIN, "--ds_config", config, "--seed", 5], tmp_path)
    saved = tmp_path / "runs/tiny/config.yaml"
    again = run_command(
        [sys.executable, TRAIN, "--ds_config", saved, "--run_dir", "runs/again"], tmp_path
    )
    assert first.returncode == again.returncode == 0, again.stderr
    losses = [
        [event["loss"] for event in read_metrics(tmp_path / run, "train")]
        for run in ("runs/tiny", "runs/again")
    ]
    assert losses[0] == losses[1]
    as_begun, as_saved = load(config, 1, {"gpt.seed": 5}), load(saved)
    assert (as_begun.model, as_begun.batch, as_begun.schedule, as_begun.deepspeed) == (
        as_saved.model,
        as_saved.batch,
        as_saved.schedule,
        as_saved.deepspeed,
    )
    assert (
        "gpt.seed: command line" in saved.read_text()
        and "gradient_clipping: tiny.json:1" in saved.read_text()
    )


MODEL_FILE = """
from torch import nn

class Model(nn.Module):
    output_layer = "head"

    def __init__(self, shape, depth):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.h_dim)
        self.layers = nn.Sequential(*(nn.Linear(shape.h_dim, shape.h_dim) for _ in range(depth)))
        self.head = nn.Linear(shape.h_dim, shape.vocab_size, bias=False)

    def forward(self, tokens):
        return self.layers(self.embed(tokens))

def build(shape, depth=1):
    return Model(shape, depth)
"""


@pytest.fixture
def own_config(tmp_path):
    """own_config(text of a model file) -> the configuration of a tiny run of it"""

    def make(text, **gpt):
        (tmp_path / "own.py").write_text(text)
        code = {"model_file": str(tmp_path / "own.py"), "run_dir": str(tmp_path / "run")}
        return resolve(tiny_run(gpt={**code, **gpt}), "own")

    return make


def test_the_model_of_a_file_is_told_by_its_own_sizes(own_config):
    config = own_config(MODEL_FILE, model_options={"depth": 5})
    text = report(config, None)
    parameters = 2 * 2048 * 32 + 5 * (32 * 32 + 32)
    per_token = 6 * (2048 * 32 + 5 * 32 * 32)
    tokens = 6 * 8 * 32
    assert f"{parameters:,} parameters of {config.model_code}, build(shape, depth=5) for: " in text
    assert f"{tokens * per_token:.3e} FLOPs in matrix products ({per_token:,} per token)" in text
    assert f"{tokens / parameters:.1f} per parameter" in text
    assert "its time for a micro-batch is not estimated for a model file" in text
    # weights, two moments and their fp32 copy
    assert checkpoint_bytes(parameters, 1, "fp32") == 16 * parameters
    # there is no list of blocks
    assert "with activation checkpointing" not in text


@pytest.mark.parametrize(
    "line, words",
    [
        ("self.flops_per_token = 10**9", ", declared; 399,360 counted)"),
        (
            "self.flops_per_token, self.layers[0].forward = 10**9, lambda x: x.numpy() + None",
            ", declared and not counted)",
        ),
    ],
)
def test_flops_that_a_file_declares(own_config, line, words):
    begin = "        self.head = "
    config = own_config(MODEL_FILE.replace(begin, f"        {line}\n{begin}"))
    text = report(config, None)
    assert f"(1,000,000,000 per token{words}" in text
    is_unknown = "without activations, which are known on no device but a GPU" in text
    assert is_unknown == ("not counted" in words)


def test_a_model_file_that_does_not_work_is_told_before_anything_else(own_config):
    config = own_config(MODEL_FILE.replace("return self.layers(", "return self.nothing("))
    with pytest.raises(UserError, match=r"own.py:14: forward fails \(Attr"):
        report(config, None)


OPTIMIZER_FILE = """
import torch

def build(named_parameters, momentum=0.9):
    return torch.optim.SGD([p for _, p in named_parameters], lr=1e-3, momentum=momentum)
"""


def test_an_optimizer_file_is_named_and_tried(tmp_path, load_tool, monkeypatch, capsys):
    train = load_tool("train", "gpt")
    (tmp_path / "mine.py").write_text(OPTIMIZER_FILE)
    config = write_run(tmp_path, gpt={"optimizer_file": str(tmp_path / "mine.py")})
    start = ("--ds_config", config, "--run_dir", tmp_path / "run", "--dry_run")
    momentum = ("--optimizer_options.momentum", "0.5")
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, (*start, *momentum))])
    train.main()
    code = load(config).optimizer_code
    line = f"optimizer      of mine.py {code.hash}, build(named_parameters, momentum=0.5)\n"
    assert line in capsys.readouterr().out
    assert train.mistake(*start, "--optimizer_options.momentun", "0.5") == (
        f"{tmp_path}/mine.py: build takes no option 'momentun' (did you mean 'momentum'?): change"
        " --optimizer_options.momentun (it takes momentum)"
    )
    (tmp_path / "mine.py").write_text(
        OPTIMIZER_FILE.replace("SGD(", "Adafactor(").replace("momentum=momentum", "")
    )
    assert "the optimizer needs whole matrices" in train.mistake(*start)
