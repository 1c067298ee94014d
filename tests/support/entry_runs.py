"""Entries of tiny runs, trained and evaluated in the test's own process, as the command does it but
for DeepSpeed and child processes."""

import json
import sys
from argparse import Namespace
from contextlib import contextmanager
from functools import cache
from unittest import mock

from conftest import load_command, write_run
from own_code_run import KeepingEngine
from plain_run import train_config
from small_corpora import BOOKS, build, write_texts

from gpt.errors import AgreedError
from gpt.referee import final_evaluation, new, runs
from gpt.training import start
from gpt.training.sweep import SweptRun

STEPS = 4
VOCAB = 300


def small_dataset(folder):
    """Eleven documents to train on and three held out, of 400 tokens each; returns its folder."""
    texts = write_texts(folder / "texts", BOOKS)
    return build(texts, folder / "books", VOCAB, test_every=4)


class NoStop:
    """No signal is heard."""

    reason = None


def train_here(run, launcher, train_args, stop):
    """In place of SweptRun.train."""
    try:
        train_config(run.config, engine=KeepingEngine)
        run.exit_code = 0
    except AgreedError:
        run.exit_code = 1
    run.look()


def evaluate_here(command, stop):
    """In place of a child process of gpt/eval.py."""
    with mock.patch.object(sys, "argv", command[1:]):
        return load_command("eval", "gpt").main() or 0


@contextmanager
def in_this_process():
    """Inside, `gpt.referee.runs.train` starts no process, and the code is hashed once."""
    with (
        mock.patch.object(start, "code_of", cache(start.code_of)),
        mock.patch.object(SweptRun, "train", train_here),
        mock.patch.object(final_evaluation, "_run", evaluate_here),
        mock.patch.object(runs, "Stop", NoStop),
    ):
        yield


def new_entry(folder, dataset, *options, baseline=None, **args):
    """A new entry over tokens in folder/entry. baseline: {key of gpt: value} beside tiny_run's.
    options: of train.py, for the contender. args: of `referee.py new`."""
    gpt = {
        "data_root": str(dataset),
        "vocab_size": VOCAB,
        "max_train_steps": STEPS,
        "eval_every": STEPS,
        "final_eval": True,
        **(baseline or {}),
    }
    schedule = {"max_lr": 3e-3, "warmup_steps": 2, "decay_steps": STEPS}
    source = write_run(
        folder,
        gpt=gpt,
        zero_optimization={"stage": 0},
        scheduler={"type": "LanguiniCosineLR", "params": schedule},
    )
    defaults = {
        "entry": folder / "entry",
        "source": str(source),
        "name": None,
        "author": "",
        "class_name": None,
        "over": "tokens",
        "direction": "better",
        "seeds": [0, 1],
        "factors": [1.0],
        "tuning_seed": 1000,
        "model_file": None,
        "optimizer_file": None,
    }
    return new.create(Namespace(**{**defaults, **args}), [str(word) for word in options])


def lines_of(entry):
    return [json.loads(line) for line in entry.starts.read_text().splitlines()]
