"""Families of tries: what each of them damages, and the commands that meet it."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from . import command_lines, damage, hostile, material, seals, settings
from .material import OF_TEXTS, WEIGHTS
from .server import Command
from .workspace import Workspace

Family = Callable[[random.Random, Workspace], Command]

DRY_RUN = Command("gpt/train.py", ["--ds_config", "n.json", "--dry_run"])
EXPLAIN = Command("gpt/train.py", ["--ds_config", "n.json", "--explain"])
OF_BATCH = ("--train_batch_size", "4", "--seq_len", "16")
EVAL = ("--checkpoint_file", WEIGHTS)
TOKENIZER = ("--tokenizer", "data/tokenizer.model")
SHARDS = ("half.shard-1-of-2", "half.shard-2-of-2")
BOOKS = ("--root", "languini", "--vocab", "books_300")


def prepare(*argv: str) -> Command:
    """With its work done in its own process."""
    return Command("tools/prepare_data.py", [*argv, "--workers", "1"], ("out", "out.*"))


OF_DATASET = (
    Command("tools/verify_data.py", ["data"]),
    Command("tools/verify_data.py", ["data", "--source", "texts"]),
    Command("tools/show_data.py", ["data"]),
    Command("tools/show_data.py", ["data", "--documents"]),
    Command("tools/show_data.py", ["data", "--document", "book 8.txt", "--json"]),
    Command("tools/show_data.py", ["data", "--histogram"]),
    Command("tools/show_data.py", ["data", "--batch", "1", *OF_BATCH]),
    Command("gpt/eval.py", [*EVAL, "--data_root", "data", "--eval_data_split", "all"]),
    DRY_RUN,
    prepare("--input", "texts", "--test_every", "4", *TOKENIZER, "--out", "out"),
)
OF_CHECKPOINT = (
    Command("tools/verify_checkpoint.py", ["runs/a/checkpoints"]),
    Command("tools/zero_to_fp32.py", ["runs/a/checkpoints", "out"], ("out",)),
    Command("tools/zero_to_fp32.py", ["runs/a/checkpoints", "out", "--average", "2"], ("out",)),
    Command("gpt/eval.py", ["--checkpoints", "runs/a", "--json", "out.json"], ("out.json",)),
)
OF_EXPORT = (
    Command("tools/verify_checkpoint.py", ["export"]),
    Command("gpt/eval.py", [*EVAL, "--markdown", "out.md"], ("out.md",)),
    Command(
        "gpt/eval.py",
        [*EVAL, "--text", "texts/book 0.txt", "--per_document", "out.jsonl"],
        ("out.jsonl",),
    ),
    Command("gpt/eval.py", [*EVAL, "--join", "runs/a"], ("runs/a/evaluations",)),
    Command("tools/sample.py", [*EVAL, "--tokens", "3"]),
    replace(DRY_RUN, argv=[*DRY_RUN.argv, "--init_from", "export"]),
)
OF_RUNS = (
    Command("tools/compare.py", ["runs/a", "runs/b", "--json", "out.json"], ("out.json",)),
    Command("tools/compare.py", ["runs", "--over", "flops"]),
    Command("tools/report.py", ["runs", "--out", "out.html"], ("out.html",)),
    Command("tools/plot.py", ["runs", "--out", "out", "--format", "svg"], ("out",)),
    Command("gpt/train.py", ["--ds_config", "runs/a/config.yaml", "--dry_run"]),
    Command("gpt/train.py", ["--ds_config", "runs/a/config.yaml", "--explain"]),
)
ROWS = ("rows/a.jsonl", "rows/b.jsonl.gz", "rows/c.parquet", "rows/d.jsonl.zst")
TO_OUT = ("--vocab_size", "300", "--out", "out")
OF_INPUTS = (
    prepare("--input", "texts", "--test_every", "3", *TO_OUT),
    prepare("--input", "rows", "--test_every", "3", "--id_field", "none", *TO_OUT),
    *(prepare("--input", place, "--test_every", "3", *TO_OUT) for place in ROWS),
    *(
        prepare("--input", place, "--split_list", "test=rows/held_out.txt", *TO_OUT)
        for place in ROWS
    ),
)
OF_PREPARING = (
    Command("tools/prepare_data.py", ["--merge", *SHARDS, "--out", "out"], ("out", "out.*")),
    replace(prepare(*OF_TEXTS, "--out", "half", "--shard", "1/2"), changes=("half*",)),
)
OF_LANGUINI = (
    Command("tools/import_languini.py", ["data", *BOOKS, *TOKENIZER, "--out", "out"], ("out",)),
    Command(
        "tools/import_languini.py",
        ["checkpoint", "--file", "model.pt", "--head_dim", "8", *TOKENIZER, "--out", "out"],
        ("out",),
    ),
)
OF_HF = (
    Command("tools/export_hf.py", ["--back", "hf", "out"], ("out",)),
    Command("tools/export_hf.py", ["--back", "hf", "out", *TOKENIZER], ("out",)),
)
OF_SWEEP = (
    Command(
        "tools/sweep.py",
        ["--classes", "n.json", "--out", "swept", "--launcher", "false"],
        ("swept", "swept/*"),
    ),
)
OF_MEASURED = (Command("tools/referee.py", ["check", "measured", "--skip_runs"]),)
OF_HOSTFILE = (
    Command("tools/preflight.py", ["--hostfile", "hostfile", "--timeout", "2", "--json"]),
)
OF_THROUGHPUT = (
    Command(
        "tools/throughput.py",
        ["--from_reference", "--write_config", "out"],
        ("out",),
    ),
)
# the code that came with a pack is run by nobody
OF_PACK = (
    Command("tools/referee.py", ["verify", "pack"]),
    Command("tools/referee.py", ["board", "pack", "--html", "out.html"], ("out.html",)),
    Command("tools/referee.py", ["judge", "pack", "--json", "out.json"], ("out.json",)),
)
OF_TRAINED_ENTRY = (
    Command("tools/referee.py", ["judge", "trained", "--json", "out.json"], ("out.json",)),
    Command("tools/referee.py", ["pack", "trained", "--out", "out"], ("out",)),
)
OF_SETTINGS = (DRY_RUN, DRY_RUN, EXPLAIN)
# inputs that every command line finds
ALL_INPUTS = (
    "data",
    "texts",
    "rows",
    "runs",
    "export",
    "n.json",
    "measured",
    "hostfile",
    "languini",
    "model.pt",
    *SHARDS,
)
COMMANDS = (
    *OF_DATASET,
    *OF_CHECKPOINT,
    *OF_EXPORT,
    *OF_RUNS,
    *OF_INPUTS[:1],
    *OF_PREPARING,
    *OF_LANGUINI,
    *OF_SWEEP,
    *OF_MEASURED,
    *OF_HOSTFILE,
    *OF_THROUGHPUT,
)


def of_files(damaged: Sequence[str], beside: Sequence[str], commands: Sequence[Command]) -> Family:
    """Damage one or two files of the inputs `damaged`, and run one of the commands that read
    them."""

    def family(rng: random.Random, space: Workspace) -> Command:
        space.add(*damaged, *beside)
        paths = space.files(*damaged)
        for path in rng.sample(paths, min(len(paths), rng.choice((1, 1, 1, 2)))):
            damage.damage_file(rng, path)
            if rng.random() < 0.5:
                seals.renew(space.folder, path)
        return rng.choice(commands)

    return family


def of_settings(rng: random.Random, space: Workspace) -> Command:
    """A run's JSON, each of whose keys may hold anything."""
    space.add("data", "n.json")
    text = hostile.as_json(settings.damaged(rng))
    (space.folder / "n.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    return rng.choice(OF_SETTINGS)


def of_training(rng: random.Random, space: Workspace) -> Command:
    """Two steps of a run, or going on with one, with keys that may hold anything or a checkpoint
    that is damaged."""
    space.add("data", "n.json")
    argv = ["--ds_config", "n.json", "--run_dir", "runs/a"]
    if rng.random() < 0.5:
        space.add("runs")
        argv += ["--max_train_steps", "5"]
        if rng.random() < 0.7:
            damage.damage_file(rng, rng.choice(space.files("runs/a")))
            return Command("gpt/train.py", argv, ("runs/a/*", "runs/a"))
    text = hostile.as_json(settings.without_compiling(settings.damaged(rng)))
    (space.folder / "n.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    return Command("gpt/train.py", argv, ("runs", "runs/*", "wandb*"))


def of_command_line(rng: random.Random, space: Workspace) -> Command:
    """Options of a command, as its own parser knows them."""
    space.add(*ALL_INPUTS)
    command = rng.choice(COMMANDS)
    damaged = command_lines.damaged(rng, command, STAYING.get(command.tool, ()))
    # whatever may be an output's name
    return replace(damaged, changes=("*[!m]", "out*"))


# options that would have a command train, measure for minutes, or wait for ever
STAYING = {
    "gpt/train.py": ("--dry_run", "--explain"),
    "tools/report.py": ("--watch",),
    "tools/throughput.py": ("--from_reference", "--sweep", "--micro_batch"),
    "tools/sweep.py": ("--launcher",),
    "tools/referee.py": ("--skip_runs",),
    "tools/prepare_data.py": ("--sample", "--workers"),
}


def of_names(rng: random.Random, space: Workspace) -> Command:
    """Inputs and outputs of any name."""
    space.add("data", "n.json", "export", "runs", "texts")
    old = rng.choice(("data", "export", "runs/a", "texts/book 0.txt", "texts/b"))
    name = hostile.file_name(rng)
    new = os.path.join(os.path.dirname(old), name)
    if not os.path.lexists(space.folder / new):
        os.rename(space.folder / old, space.folder / new)
    command = rng.choice(COMMANDS_BY_INPUT[old])
    out = hostile.file_name(rng) if rng.random() < 0.5 else "out"
    argv = [_renamed(word, {old: new, "out": out}) for word in command.argv]
    patterns = tuple(f"*{pattern[3:]}" for pattern in command.changes)
    return replace(command, argv=argv, changes=patterns)


def _renamed(word: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if word == old or word.startswith((f"{old}/", f"{old}.")):
            return new + word.removeprefix(old)
    return word


COMMANDS_BY_INPUT = {
    "data": OF_DATASET[:8],
    "export": OF_EXPORT[:5],
    "runs/a": (*OF_RUNS, *OF_CHECKPOINT),
    "texts/book 0.txt": (OF_INPUTS[0],),
    "texts/b": (OF_INPUTS[0],),
}
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_NODELIST",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PMI_RANK",
    "PMI_SIZE",
    "TORCHELASTIC_RESTART_COUNT",
    "CUDA_VISIBLE_DEVICES",
    "COLUMNS",
    "TERM",
    "NO_COLOR",
    "HOME",
    "TMPDIR",
    "LANG",
    "TZ",
    "WANDB_MODE",
    "DS_ACCELERATOR",
    "GLOO_SOCKET_IFNAME",
    "SOURCE_DATE_EPOCH",
)


def of_environment(rng: random.Random, space: Workspace) -> Command:
    """Variables of the environment that something reads."""
    space.add(*ALL_INPUTS)
    chosen = rng.sample(VARIABLES, rng.choice((1, 1, 2, 3)))
    environment = {name: hostile.argument(rng)[:1000] for name in chosen}
    return replace(rng.choice(COMMANDS), environment=environment)


# whose inputs are slow to make, and are made where they are asked for: {name: what makes them}
SLOW = {"hf": material.make_hf, "pack": material.make_pack, "trained": material.make_pack}
FAMILIES: dict[str, Family] = {
    "dataset": of_files(["data"], ["n.json", "export", "texts"], OF_DATASET),
    "checkpoint": of_files(["runs/a/checkpoints"], ["runs", "data"], OF_CHECKPOINT),
    "export": of_files(["export"], ["runs", "data", "texts", "n.json"], OF_EXPORT),
    "runs": of_files(
        [
            "runs/a/config.yaml",
            "runs/a/metrics.jsonl",
            "runs/a/evaluations",
            "runs/a/documents.json",
        ],
        ["runs", "data"],
        OF_RUNS,
    ),
    "inputs": of_files(["texts", "rows"], [], OF_INPUTS),
    "preparing": of_files(SHARDS, ["texts"], OF_PREPARING),
    "split list": of_files(["rows/held_out.txt"], ["rows"], OF_INPUTS[-4:]),
    "languini": of_files(["languini", "model.pt"], ["data"], OF_LANGUINI),
    "hf": of_files(["hf"], ["data"], OF_HF),
    "pack": of_files(["pack"], ["of_entries"], OF_PACK),
    "trained": of_files(["trained"], ["of_entries"], OF_TRAINED_ENTRY),
    "tokenizer": of_files(
        ["data/tokenizer.model"],
        ["data", "texts", "languini", "model.pt", "export", "n.json"],
        (*OF_DATASET, *OF_LANGUINI),
    ),
    "sweep": of_files(["swept/sweep.json", "n.json"], ["swept", "data"], OF_SWEEP),
    "measured": of_files(
        [
            "measured/entry.json",
            "measured/baseline.json",
            "measured/contender.json",
            "measured/measured.json",
        ],
        ["measured", "data"],
        OF_MEASURED,
    ),
    "hostfile": of_files(["hostfile"], ["data"], OF_HOSTFILE),
    "json": of_files(["n.json"], ["data"], OF_SETTINGS),
    "settings": of_settings,
    "training": of_training,
    "command line": of_command_line,
    "names": of_names,
    "environment": of_environment,
}
