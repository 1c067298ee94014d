"""The tables of keys against the installed DeepSpeed, and the reference that is written
from them."""

import subprocess
import sys

import pytest
from conftest import ROOT, tiny_run

from gpt.config.deepspeed_keys import TOP_KEYS
from gpt.config.keys import REQUIRED
from gpt.config.optimizer_keys import OWN_SCHEDULERS, SCHEDULERS
from gpt.config.refused_keys import REFUSED, REMOVED
from gpt.config.resolve import load, resolve

PYDANTIC = {  # block -> keys that DeepSpeed's own model of it has; aliases are what users write
    "zero_optimization": "deepspeed.runtime.zero.config.DeepSpeedZeroConfig",
    "zero_optimization.offload_optimizer": (
        "deepspeed.runtime.zero.offload_config.DeepSpeedZeroOffloadOptimizerConfig"
    ),
    "zero_optimization.offload_param": (
        "deepspeed.runtime.zero.offload_config.DeepSpeedZeroOffloadParamConfig"
    ),
    "fp16": "deepspeed.runtime.precision_config.DeepSpeedFP16Config",
    "bf16": "deepspeed.runtime.precision_config.DeepSpeedBF16Config",
    "comms_logger": "deepspeed.comm.config.CommsLoggerConfig",
    "tensorboard": "deepspeed.monitor.config.TensorBoardConfig",
    "csv_monitor": "deepspeed.monitor.config.CSVConfig",
    "wandb": "deepspeed.monitor.config.WandbConfig",
    "comet": "deepspeed.monitor.config.CometConfig",
}


class Recorder(dict):
    """A block that notes every key that is asked for, at any depth."""

    def __init__(self, block, path, reads):
        super().__init__(
            {
                key: Recorder(v, (*path, key), reads) if isinstance(v, dict) else v
                for key, v in block.items()
            }
        )
        self.path = path
        self.reads = reads

    def get(self, key, default=None):
        self.reads.add(".".join((*self.path, str(key))))
        return super().get(key, default)

    def __contains__(self, key):
        self.reads.add(".".join((*self.path, str(key))))
        return super().__contains__(key)

    def __getitem__(self, key):
        self.reads.add(".".join((*self.path, str(key))))
        return super().__getitem__(key)

    def keys(self):
        recorder = self

        class Keys:
            def __contains__(self, key):
                return key in recorder

            def __iter__(self):
                return dict.__iter__(recorder)

            def __len__(self):
                return len(recorder)

        return Keys()

    def __copy__(self):
        return self


def keys_below(block):
    keys = TOP_KEYS
    for name in block.split("."):
        keys = keys[name]
    refused = {path.rpartition(".")[2] for path in REFUSED if path.rpartition(".")[0] == block}
    return set(keys) | refused


def test_top_level_keys_are_those_that_deepspeed_reads():
    from deepspeed.runtime.config import DeepSpeedConfig

    reads = set()
    blocks = (
        "fp16",
        "bf16",
        "flops_profiler",
        "comms_logger",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "aio",
        "data_types",
        "timers",
    )
    DeepSpeedConfig(
        Recorder(
            {"train_batch_size": 8, "zero_optimization": {"stage": 1}, **{b: {} for b in blocks}},
            (),
            reads,
        )
    )
    top = {path for path in reads if "." not in path}
    ours = (set(TOP_KEYS) | {path for path in REFUSED if "." not in path}) - {"gpt"}
    assert top == ours
    for block in ("flops_profiler", "aio", "data_types"):
        inner = {path.split(".", 1)[1] for path in reads if path.startswith(f"{block}.")}
        assert inner == keys_below(block)


@pytest.mark.parametrize("block", PYDANTIC)
def test_keys_of_a_block_are_those_of_deepspeeds_model(block):
    import importlib

    module, _, name = PYDANTIC[block].rpartition(".")
    model = getattr(importlib.import_module(module), name)
    real = {field.alias or key for key, field in model.model_fields.items()}
    removed = {path.rpartition(".")[2] for path in REMOVED if path.startswith(f"{block}.")}
    assert keys_below(block) - removed == real


def test_removed_keys_are_those_that_deepspeed_removed():
    from deepspeed.runtime import config

    removed = set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    removed |= {f"zero_optimization.{key}" for key in config._REMOVED_ZERO_CONFIG_KEYS}
    assert set(REMOVED) == removed


def test_refused_keys_are_known_to_deepspeed_or_removed():
    """Those of the top level and of pydantic's blocks are compared above."""
    compared = {"", *PYDANTIC, "data_types"}
    others = {path for path in REFUSED if path.rpartition(".")[0] not in compared}
    assert others == {"optimizer.legacy_fusion"}


@pytest.mark.parametrize("kind", [name for name in SCHEDULERS if name not in OWN_SCHEDULERS])
def test_parameters_of_deepspeeds_schedulers(kind):
    import inspect

    from deepspeed.runtime import lr_schedules

    signature = inspect.signature(getattr(lr_schedules, kind).__init__).parameters
    real = set(signature) - {"self", "optimizer", "last_batch_iteration"}
    assert set(SCHEDULERS[kind]) == real
    required = {n for n in real if signature[n].default is inspect.Parameter.empty}
    assert {n for n, key in SCHEDULERS[kind].items() if key.default is REQUIRED} == required


def test_the_reference_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/config_reference.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_key_of_the_reference_has_a_meaning():
    lines = (ROOT / "ds_configs/README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    keys = [row for row in rows if row and row[0].startswith("`")]
    assert len(keys) > 150 and all(len(row) == 4 for row in keys)
    assert [name for name, _, _, meaning in keys if not meaning] == []


def test_no_other_module_imports_deepspeed():
    for path in [*(ROOT / "gpt").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        if path != ROOT / "gpt/engine/boundary.py":
            assert not [
                line
                for line in path.read_text().splitlines()
                if line.strip().startswith(("import deepspeed", "from deepspeed"))
            ], path


@pytest.mark.parametrize(
    "name, stage, offload",
    [("large_zero2", 2, None), ("xl_zero3", 3, None), ("xl_zero3_offload", 3, "cpu")],
)
def test_configs_of_the_largest_models(name, stage, offload):
    config = load(ROOT / "ds_configs" / f"{name}.json", 8)
    zero = config.deepspeed["zero_optimization"]
    assert zero["stage"] == stage and (zero.get("offload_optimizer") or {}).get("device") == offload
    assert config.options.activation_checkpointing == (stage == 3)


@pytest.mark.parametrize(
    "kind, params",
    [
        ("WarmupLR", {"warmup_num_steps": 1, "warmup_max_lr": 1e-3}),
        (
            "WarmupDecayLR",
            {"warmup_num_steps": 1, "total_num_steps": 3, "warmup_max_lr": 1e-3},
        ),
        ("WarmupCosineLR", {"warmup_num_steps": 2, "total_num_steps": 3}),
        (
            "OneCycle",
            {
                "cycle_min_lr": 1e-4,
                "cycle_max_lr": 1e-3,
                "cycle_first_step_size": 1,
                "cycle_second_step_size": 0,
                "cycle_momentum": False,
            },
        ),
        ("LRRangeTest", {"lr_range_test_step_size": 1}),
    ],
)
def test_the_shortest_schedules_that_are_allowed_run_in_deepspeed(kind, params):
    import torch
    from deepspeed.runtime import lr_schedules

    tree = tiny_run(
        scheduler={"type": kind, "params": params},
        optimizer={"type": "Adam", "params": {"lr": 1e-3}},
    )
    taken = resolve(tree, "tiny").deepspeed["scheduler"]["params"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = getattr(lr_schedules, kind)(optimizer, **taken)
    for _ in range(6):
        scheduler.step()
        assert 0 <= optimizer.param_groups[0]["lr"] <= 7e-3
