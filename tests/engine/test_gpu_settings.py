"""What a rank sets up for its GPU, and for its cores, as far as that can be seen without one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_run
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from forked import fork_ranks

from gpt.cluster.world import World, to_device
from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.engine.device import prepare_gpu
from gpt.model import GPT


@pytest.fixture
def gpus(monkeypatch):
    """DeepSpeed's accelerator for CUDA, as where NVML is installed; what it was told to take."""
    accelerator, taken = CUDA_Accelerator(), []
    monkeypatch.setattr("deepspeed.accelerator.cuda_accelerator.pynvml", object())
    monkeypatch.setattr(accelerator, "set_device", taken.append)
    monkeypatch.setattr(boundary.deepspeed.accelerator, "get_accelerator", lambda: accelerator)
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )
    yield accelerator, taken
    matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = (
        before
    )


@pytest.mark.parametrize("visible", ["GPU-5f9a8c1e-8c3b-4c1f", "MIG-GPU-5f9a8c1e/1/0", "0,1,2,3"])
def test_a_gpu_may_be_named_by_its_uuid(visible, gpus, monkeypatch):
    accelerator, taken = gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=None: (7, 80))
    prepare_gpu(accelerator, 2)
    assert taken == [2]
    # DeepSpeed's own asks NVML for the number "GPU-…"
    assert accelerator.available_memory() == 7


def test_sums_cut_up_by_cublas_stay_fp32(gpus):
    prepare_gpu(gpus[0], 0)
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_a_rank_computes_on_the_gpu_that_its_local_rank_names(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert boundary.local_device() == torch.device("cuda", 3)


def python(code, **env):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH_")}
    done = subprocess.run(
        command, env={**clean, **env}, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2]


def test_deepspeeds_word_on_the_accelerator_counts_everywhere():
    device = python(
        "import torch\ntorch.cuda.is_available = lambda: True\n"
        "from gpt.engine.boundary import local_device\nprint(local_device())",
        DS_ACCELERATOR="cpu",
    )
    assert device == "cpu"


SEGMENTS = """
import os
import gpt.config.command_line, gpt.config.resolve, gpt.cluster.launch
import gpt.data.datasets, gpt.prepare.pipeline
assert "torch" not in sys.modules  # which reads the variable when it is imported
import gpt.engine.boundary
print(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"), os.environ.get("PYTORCH_ALLOC_CONF"))
"""


@pytest.mark.parametrize(
    "environment, segments",
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native None"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "None backend:native"),
    ],
)
def test_the_allocators_segments_grow_unless_the_environment_says_otherwise(environment, segments):
    assert python(SEGMENTS, **environment) == segments


THREADS = [  # (environment, whether two ranks share the ten cores)
    ({}, True),
    # torchrun's word, not the user's
    ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, True),
    ({"OMP_NUM_THREADS": "1"}, False),
    ({"OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "none"}, False),
]


def test_ranks_with_offloaded_optimizers_share_the_hosts_cores(monkeypatch, capfd):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(10))
    zero = {"stage": 1, "offload_optimizer": {"device": "cpu"}}

    def work():
        world = boundary.connect()
        config = resolve(tiny_run(zero_optimization=zero), "test", world.size)
        for env, shared in THREADS:
            for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
                os.environ.pop(name, None)
            os.environ.update(env)
            asked = []
            with torch.device("meta"):
                model = GPT(config.model, None)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "set_num_threads", asked.append)
                boundary.Engine(model, config, world, model.initial_weights(0))
            assert asked == ([5] if shared else []), env
        boundary.disconnect()

    ends = fork_ranks(2, work)
    assert [code for code, _ in ends] == [0, 0], capfd.readouterr().err


def test_nothing_waits_for_a_copy_to_a_gpu(monkeypatch):
    copies = []
    pinned = torch.ones(3)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *args, **how: copies.append((self is pinned, how)) or self
    )
    gpu = torch.device("cuda", 1)
    to_device(np.ones(3), gpu)
    World(0, 1, gpu).tensor([1.0, True])
    assert copies == [(True, {"non_blocking": True})] * 2
