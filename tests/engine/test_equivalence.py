"""The same curve on any number of ranks, at every ZeRO stage and accumulation: the engine's runs
against plain torch.

`python -m pytest tests/engine/test_equivalence.py -m slow -s` runs the whole matrix and prints what
it finds.
"""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT, tiny_run, write_run
from plain_torch import plain_torch

STEPS, RANKS = 12, (1, 2, 4)
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def tree(stage, accumulation, zero=(), gpt=(), **options):
    schedule = {
        "type": "LanguiniCosineLR",
        "params": {"max_lr": 3e-3, "warmup_steps": 5, "decay_steps": STEPS},
    }
    return tiny_run(
        train_batch_size=16,
        gradient_accumulation_steps=accumulation,
        scheduler=schedule,
        zero_optimization={"stage": stage, **dict(zero)},
        gpt={"max_train_steps": STEPS, **dict(gpt)},
        **options,
    )


RECOMPUTED = {"activation_checkpointing": True}
QUICK = {
    "stage 0": [(2,), tree(0, 2)],
    "stage 1": [(1, 4), tree(1, 4)],
    "stage 2": [(2,), tree(2, 2)],
    "stage 3, optimizer in host memory, blocks computed again": [
        (4,),
        tree(3, 2, OFFLOAD, RECOMPUTED),
    ],
}
SLOW = {
    f"stage {stage}, accumulation {accumulation}": [RANKS, tree(stage, accumulation)]
    for stage in range(4)
    for accumulation in (1, 2, 4)
}
SLOW |= {
    f"stage {stage}, optimizer in host memory": [RANKS, tree(stage, 2, OFFLOAD)]
    for stage in (1, 2, 3)
}
SLOW |= {
    f"stage {stage}, blocks computed again": [RANKS, tree(stage, 2, gpt=RECOMPUTED)]
    for stage in range(4)
}
UNIT_ROUNDOFF = {"fp16": 2**-11, "bf16": 2**-8}


def half(*stages):
    return {
        f"{precision} {stage}": [
            (2,),
            tree(stage, 2, gpt={"max_train_steps": 3}, **{precision: {"enabled": True}}),
        ]
        for precision in UNIT_ROUNDOFF
        for stage in stages
    }


def run(runs, sample, folder, run_command, *flags):
    """{ranks: {name: figures}}"""
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [
        sys.executable,
        ROOT / "tests/support/equivalence_run.py",
        folder / "runs.json",
        folder,
        sample,
        *flags,
    ]
    done = run_command(command, folder, timeout=900, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        ranks: json.loads((folder / f"{ranks}.json").read_text())
        for ranks in RANKS
        if (folder / f"{ranks}.json").exists()
    }


@pytest.fixture(scope="module")
def reference(sample, tmp_path_factory, one_thread):
    config = write_run(tmp_path_factory.mktemp("reference"), **tree(1, 1))
    return plain_torch(config, sample)


@pytest.fixture(
    scope="module",
    params=[
        "quick",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("all", "as_on_cuda")),
    ],
)
def sweep(request, sample, tmp_path_factory, run_command):
    """[(ranks, name, figures)] of all runs; as_on_cuda: on the branches that DeepSpeed takes on a
    GPU."""
    runs, flags = {**SLOW, **half(1, 2, 3)}, []
    if request.param == "quick":
        runs = {**QUICK, **half(2)}
    elif request.param == "as_on_cuda":
        flags = ["as_on_cuda"]
        on_cuda = {f"stage {stage}, as on CUDA": [(1, 2), tree(stage, 2)] for stage in range(4)}
        overlapping = {"overlap_comm": True, "reduce_bucket_size": 20_000}
        on_cuda |= {
            f"stage {stage}, overlapping": [(2,), tree(stage, 2, overlapping)]
            for stage in (1, 2, 3)
        }
        on_cuda |= {
            f"stage {stage}, offloaded": [(1, 2), tree(stage, 2, OFFLOAD)] for stage in (1, 2, 3)
        }
        runs = on_cuda | {name: [(1, 2), made] for name, (_, made) in half(1, 2, 3).items()}
    results = run(runs, sample, tmp_path_factory.mktemp("runs"), run_command, *flags)
    return [(ranks, name, figures) for ranks in results for name, figures in results[ranks].items()]


def test_ranks_stages_and_accumulation_make_no_difference(sweep, reference):
    losses, norms, by_module, _ = reference
    runs = [
        (f"{name}, {ranks} rank(s)", figures)
        for ranks, name, figures in sweep
        if name.startswith("stage")
    ]
    worst = np.zeros(5)
    for name, figures in runs:
        assert figures["skipped"] == 0
        assert figures["loss"] == pytest.approx(losses, abs=1e-5), name
        assert figures["grad_norm"] == pytest.approx(norms, rel=1e-5), name
        by_kind = []
        for kind, tolerance in (("weight", 1e-5), ("gradient", 1e-4), ("update", 1e-3)):
            for mine, theirs in zip(figures["norms"], by_module, strict=True):
                assert mine[kind] == pytest.approx(theirs[kind], rel=tolerance), (name, kind)
            by_kind.append(
                max(
                    abs(mine[kind][module] / theirs[kind][module] - 1)
                    for mine, theirs in zip(figures["norms"], by_module)
                    for module in mine[kind]
                )
            )
        worst = np.maximum(
            worst,
            [
                np.abs(np.subtract(figures["loss"], losses)).max(),
                np.abs(np.divide(figures["grad_norm"], norms) - 1).max(),
                *by_kind,
            ],
        )
    print(
        f"\n{len(runs)} runs; largest differences from plain torch: loss {worst[0]:.1e}; relative:"
        f" gradient norm {worst[1]:.1e}; by module, weight {worst[2]:.1e}, gradient {worst[3]:.1e},"
        f" update {worst[4]:.1e}"
    )


def test_evaluations_agree(sweep):
    first, last = next(figures["eval"] for _, name, figures in sweep if name.startswith("stage"))
    for _, name, figures in sweep:
        before, after = figures["eval"]
        assert all(before[key] == after[key] == first[key] for key in ("tokens", "bytes"))
        if name.startswith("stage"):
            assert (before["top1"], before["top10"]) == (first["top1"], first["top10"])
            # of the same weights
            assert before["total_loss"] == pytest.approx(first["total_loss"], rel=1e-8)
            assert after["total_loss"] == pytest.approx(last["total_loss"], rel=1e-6)


def test_half_precision_learns_the_same(sweep, reference):
    losses, norms, _, _ = reference
    runs = [
        (name, UNIT_ROUNDOFF[name.split()[0]], figures)
        for _, name, figures in sweep
        if not name.startswith("stage")
    ]
    assert len(runs) >= 2
    for name, step, figures in runs:
        assert figures["skipped"] == 0
        assert figures["loss"] == pytest.approx(losses[:3], abs=4 * step), name
        assert figures["grad_norm"] == pytest.approx(norms[:3], rel=16 * step), name
        # fp32, without the loss scale
        for whole, groups in zip(figures["grad_norm"], figures["norms"], strict=True):
            assert np.sqrt(sum(norm**2 for norm in groups["gradient"].values())) == pytest.approx(
                whole, rel=1e-3
            ), name
