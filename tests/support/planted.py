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
compile=S      the first micro-batch of training takes S seconds more

A fault whose target is not there is refused, and a run that ends well although a fault of its rank
never struck exits with code 1: a test that plants a fault cannot pass without it.
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
from gpt.checkpoint import checkpoint, folders, manifest
from gpt.cluster.launch import launched
from gpt.data.streams import Ahead, Streams, batch_index
from gpt.engine import boundary
from gpt.errors import command


class Plant:
    """Plants the faults that a command line names, and knows which of them have struck.

    index: of the batch that is being trained on.
    """

    def __init__(self, faults: str):
        self.index = None
        self._rank = launched().rank
        self._waiting = set()  # names of faults that have yet to strike on this rank
        for fault in faults.split(","):
            name, _, value = fault.partition("=")
            self._waiting.add(name)
            getattr(self, name)(value)

    def require_all_struck(self):
        """For a run that has ended well."""
        if self._waiting:
            names = ", ".join(sorted(self._waiting))
            sys.exit(f"rank {self._rank}: planted, and never struck: {names}")

    def _struck(self, name):
        self._waiting.discard(name)

    def _only_on(self, name, rank):
        """Whether the fault `name` is this rank's; another rank's need not strike here."""
        if rank != self._rank:
            self._struck(name)
        return rank == self._rank

    def _on_batch(self, change):
        """Have `change(index, batch)` see every training batch."""
        read = Ahead.batch

        def batch(batches, index):
            self.index = index
            return change(index, read(batches, index))

        replace(Ahead, "batch", batch)

    def spike(self, value):
        def change(index, batch):
            if index != int(value):
                return batch
            self._struck("spike")
            return np.random.default_rng(index).integers(259, 2048, batch.shape)

        self._on_batch(change)

    def without(self, value):
        read = Streams.batch
        absent = [int(number) for number in value.split("+")]

        def batch(streams, index, rows=None):
            shifted = batch_index(index, absent)
            if shifted != index:
                self._struck("without")
            return read(streams, shifted, rows)

        replace(Streams, "batch", batch)

    def nan(self, value):
        forward = model.MLP.forward
        self._on_batch(lambda index, batch: batch)

        def changed(mlp, x):
            y, bias = forward(mlp, x)
            if self._is_target(mlp, value):
                self._struck("nan")
                y = y * float("nan")
            return y, bias

        replace(model.MLP, "forward", changed)

    def overflow(self, value):
        forward = model.MLP.forward
        self._on_batch(lambda index, batch: batch)

        class Overflow(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                self._struck("overflow")
                return gradient * float("inf")

        def changed(mlp, x):
            y, bias = forward(mlp, x)
            return (Overflow.apply(y) if self._is_target(mlp, value) else y), bias

        replace(model.MLP, "forward", changed)

    def _is_target(self, mlp, value):
        """Whether this is the second block's MLP in training on batch `value`."""
        return torch.is_grad_enabled() and self.index == int(value) and mlp.planted == 1

    def fp16(self, value):
        def supported(accelerator):
            self._struck("fp16")
            return True

        accelerator = boundary.deepspeed.accelerator.get_accelerator()
        replace(type(accelerator), "is_fp16_supported", supported)

    def hang(self, value):
        self._at("hang", value, lambda: time.sleep(10_000))

    def stop(self, value):
        self._at("stop", value, lambda: os.kill(os.getpid(), signal.SIGSTOP))

    def bug(self, value):
        self._at("bug", value, lambda: int("a planted fault"))

    def memory(self, value):
        self._at("memory", value, lambda: torch.empty(1 << 60, dtype=torch.uint8))

    def exit(self, value):
        self._at("exit", value, lambda: os._exit(0))

    def vanish(self, value):
        rank, number = map(int, value.split("@"))

        def change(index, batch):
            if index + 1 == number:
                self._struck("vanish")
                if rank == self._rank:
                    os.kill(os.getpid(), signal.SIGKILL)
                wait_in_c()
            return batch

        self._on_batch(change)

    def _at(self, name, value, action):
        rank, number = map(int, value.split("@"))
        if not self._only_on(name, rank):
            return

        def change(index, batch):
            if index + 1 == number:
                self._struck(name)
                action()
            return batch

        self._on_batch(change)

    def slow(self, value):
        add = evaluation.Evaluator._add

        def slowed(*args):
            self._struck("slow")
            time.sleep(float(value))
            return add(*args)

        replace(evaluation.Evaluator, "_add", slowed)

    def compile(self, value):
        self._on_batch(lambda index, batch: batch)
        forward = model.GPT.forward

        def compiling(gpt, *args):
            if "compile" in self._waiting and self.index is not None:
                self._struck("compile")
                time.sleep(float(value))
            return forward(gpt, *args)

        replace(model.GPT, "forward", compiling)

    def unhashed(self, value):
        rank, number = map(int, value.split("@"))
        if not self._only_on("unhashed", rank):
            return
        hash_files = folders.own_files
        left = [number]

        def hashing(folder, own_rank):
            left[0] -= 1
            if left[0] == 0:
                self._struck("unhashed")
                int("a planted fault")
            return hash_files(folder, own_rank)

        replace(folders, "own_files", hashing)

    def uncommitted(self, value):
        """Where the new checkpoint has its manifest, and takes its place."""
        if not self._only_on("uncommitted", 0):
            return
        write = manifest.Manifest.write
        rename = os.rename
        left = [int(value)]

        def renaming(source, target):
            if left[0] == 0 and str(source).endswith(".staging"):
                self._struck("uncommitted")
                int("a planted fault")
            rename(source, target)

        def counting(*args):
            left[0] -= 1
            write(*args)

        replace(manifest.Manifest, "write", counting)
        replace(os, "rename", renaming)

    def unremoved(self, value):
        if not self._only_on("unremoved", 0):
            return
        rename = os.rename

        def renaming(source, target):
            if Path(source).name == value:
                self._struck("unremoved")
                source = f"{source}, a planted fault"
            rename(source, target)

        replace(os, "rename", renaming)

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

            replace(module, name, counted)

        for module, name in (
            (os, "rename"),
            (os, "replace"),
            (torch, "save"),
            (folders, "sync"),
            (files, "sync"),
            (folders, "hash_file"),
            (checkpoint, "hash_file"),
            (manifest, "write_atomically"),
            (folders, "write_atomically"),
            (folders.shutil, "rmtree"),
        ):
            counting(module, name)


def replace(owner, name, new):
    """Put `new` in the place of what is there; a target that has moved is refused."""
    assert hasattr(owner, name), f"planted.py: {owner} has no {name} any more"
    setattr(owner, name, new)


def mark_modules():
    """Number the MLPs of every model, so that a fault can sit in one."""
    init = model.GPT.__init__

    def numbering(gpt, *args, **kwargs):
        init(gpt, *args, **kwargs)
        for number, block in enumerate(gpt.blocks):
            block.mlp.planted = number

    replace(model.GPT, "__init__", numbering)


def train_with(faults: str):
    """The training command, with faults planted in it."""
    mark_modules()
    plant = Plant(faults)

    def main():
        train.main()
        plant.require_all_struck()

    command(main, is_rank=True)


if __name__ == "__main__":
    # the launcher adds an option before the faults
    first = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
    train_with(sys.argv.pop(first))
