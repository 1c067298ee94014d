"""A training run with a fault planted in it: `python planted.py FAULT[,FAULT…] TRAIN-OPTIONS`,
under any launcher.

spike=N        batch N is made of random tokens
without=N+M    the run never sees the batches N and M: those after them move up
nan=N          the second block's MLP gives NaN on batch N
overflow=N     a gradient of batch N overflows fp16, whatever the loss scale
fp16           this CPU is taken for one that is fast in fp16
hang=R@N       rank R sleeps before step N
stop=R@N       rank R is suspended before step N, as by SIGSTOP
bug=R@N        rank R raises a ValueError before step N
memory=R@N     rank R is out of memory before step N
exit=R@N       rank R's process ends before step N, with exit code 0
vanish=R@N     rank R is killed before step N, and the others wait in C from then on, as under NCCL
slow=S         every evaluation batch takes S seconds
unhashed=R@N   rank R raises a ValueError where it hashes its files of the N-th checkpoint
uncommitted=N  rank 0 raises a ValueError in the middle of the N-th commit
unremoved=TAG  the checkpoint TAG cannot be removed
kill=K         all ranks are killed at the K-th file operation in which a checkpoint takes part
"""

import os
import signal
import sys
import time
from pathlib import Path

from forked import wait_in_c

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import numpy as np
import torch

from gpt import evaluation, files, model, train
from gpt.checkpoint import folders
from gpt.data.streams import Ahead, Streams, batch_index
from gpt.engine import boundary
from gpt.errors import command


class Plant:
    def __init__(self, faults):
        self.index = None  # of the batch that is being trained on
        for fault in faults.split(","):
            name, _, value = fault.partition("=")
            getattr(self, name)(value)

    def _on_batch(self, change):
        """Have `change(index, batch)` see every training batch."""
        read = Ahead.batch

        def batch(batches, index):
            self.index = index
            return change(index, read(batches, index))

        Ahead.batch = batch

    def spike(self, value):
        def change(index, batch):
            return (
                batch
                if index != int(value)
                else np.random.default_rng(index).integers(259, 2048, batch.shape)
            )

        self._on_batch(change)

    def without(self, value):
        read = Streams.batch
        absent = [int(number) for number in value.split("+")]
        Streams.batch = lambda streams, index, rows=None: read(
            streams, batch_index(index, absent), rows
        )

    def nan(self, value):
        forward = model.MLP.forward
        self._on_batch(lambda index, batch: batch)
        model.MLP.forward = lambda mlp, x: forward(mlp, x) * self._factor(mlp, value, float("nan"))

    def overflow(self, value):
        forward = model.MLP.forward
        self._on_batch(lambda index, batch: batch)

        class Overflow(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                return gradient * float("inf")

        def changed(mlp, x):
            y = forward(mlp, x)
            return Overflow.apply(y) if self._factor(mlp, value, 0) == 0 else y

        model.MLP.forward = changed

    def _factor(self, mlp, value, factor):
        mine = mlp.c_fc.weight.shape and torch.is_grad_enabled() and self.index == int(value)
        return factor if mine and getattr(mlp, "planted", None) == 1 else 1

    def fp16(self, value):
        type(boundary.deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda self: True

    def hang(self, value):
        self._at(value, lambda: time.sleep(10_000))

    def stop(self, value):
        self._at(value, lambda: os.kill(os.getpid(), signal.SIGSTOP))

    def bug(self, value):
        self._at(value, lambda: int("a planted fault"))

    def memory(self, value):
        self._at(value, lambda: torch.empty(1 << 60, dtype=torch.uint8))

    def exit(self, value):
        self._at(value, lambda: os._exit(0))

    def vanish(self, value):
        rank, number = map(int, value.split("@"))

        def change(index, batch):
            if index + 1 == number:
                if rank == int(os.environ["RANK"]):
                    os.kill(os.getpid(), signal.SIGKILL)
                wait_in_c()
            return batch

        self._on_batch(change)

    def _at(self, value, action):
        rank, number = map(int, value.split("@"))
        self._on_batch(
            lambda index, batch: (
                action() or batch
                if (rank, number) == (int(os.environ["RANK"]), index + 1)
                else batch
            )
        )

    def slow(self, value):
        add = evaluation.Evaluator._add
        evaluation.Evaluator._add = lambda *args: time.sleep(float(value)) or add(*args)

    def unhashed(self, value):
        rank, number = map(int, value.split("@"))
        hash_files, left = folders.own_files, [number]

        def hashing(folder, own_rank):
            left[0] -= own_rank == rank
            return (
                int("a planted fault")
                if (left[0], own_rank) == (0, rank)
                else hash_files(folder, own_rank)
            )

        folders.own_files = hashing

    def uncommitted(self, value):
        """Where the new checkpoint has its manifest, and takes its place."""
        write = folders.write_manifest
        rename = os.rename
        left = [int(value)]

        def renaming(source, target):
            (
                int("a planted fault")
                if left[0] == 0 and str(source).endswith(".staging")
                else rename(source, target)
            )

        def counting(*args):
            left[0] -= 1
            write(*args)

        folders.write_manifest = counting
        os.rename = renaming

    def unremoved(self, value):
        rename = os.rename

        def renaming(source, target):
            rename(source if Path(source).name != value else f"{source}, a planted fault", target)

        os.rename = renaming

    def kill(self, value):
        left = [int(value)]

        def counting(module, name):
            original = getattr(module, name)

            def counted(*args, **kwargs):
                if any("global_step" in str(arg) or "latest" in str(arg) for arg in args):
                    left[0] -= 1
                    if left[0] == 0:
                        os.killpg(0, signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(module, name, counted)

        for module, name in (
            (os, "rename"),
            (os, "replace"),
            (torch, "save"),
            (folders, "sync"),
            (files, "sync"),
            (folders, "hash_file"),
            (folders, "write_atomically"),
            (folders.shutil, "rmtree"),
        ):
            counting(module, name)


def mark_modules():
    """Number the MLPs, so that a fault can sit in one."""
    made = model.MLP.__init__
    count = []

    def init(mlp, *args):
        made(mlp, *args)
        mlp.planted = len(count)
        count.append(mlp)

    model.MLP.__init__ = init


if __name__ == "__main__":
    # the launcher adds one
    faults = sys.argv.pop(
        next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
    )
    mark_modules()
    Plant(faults)
    command(train.main)
