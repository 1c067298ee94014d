"""How many tokens per second a configuration trains at on this device, and the steps that compute
classes allow for it.

    python tools/throughput.py --preset small --sweep       every micro batch, until memory ends
    python tools/throughput.py --preset small --sweep --write_config my_classes
                                                            and my_classes/3h.json … 384h.json
    python tools/throughput.py --ds_config ds_configs/quickstart.json --micro_batch 16 32
    python tools/throughput.py --from_reference --write_config published
                                                            the published figures instead

Options of train.py are taken as well. Each micro batch is measured in a process of its own: whole
optimiser steps of gpt.engine.boundary.Engine on one device, from random tokens to updated weights,
on the clock until their loss is known.
"""

import copy
import csv
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from gpt.compute import classes
from gpt.errors import Parser, UserError, command
from gpt.files import require_place_for

POLL_SECONDS = 0.1
# steps of a tenth of a second that are disturbed once a second need some seconds
MINIMUM_SECONDS = 3.0
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "MemoryError")


def main():
    if sys.argv[1:] == ["--child"]:
        print("\n" + json.dumps(measure(json.loads(sys.stdin.read()))))
        return
    args, tree, overrides, name = parse()
    for option, file in (("--json", args.json), ("--csv", args.csv)):
        if file:
            require_place_for(option, file)
    if args.write_config:
        refuse_to_overwrite(Path(args.write_config), args.hours)
    if args.from_reference:
        print(reference_table(args.from_reference, args.hours))
        found = {
            hours: classes.reference_class(hours, args.from_reference)
            for hours in args.hours
            if hours in classes.SHIPPED
        }
    else:
        report = measure_all(args, tree, name)
        report["classes"] = classes_here(
            report, args.hours, bool(args.ds_config) or "train_batch_size" in overrides
        )
        print_classes(report)
        write_results(args, report)
        found = class_trees(tree, report) if args.write_config else {}
    if args.write_config:
        write_classes(Path(args.write_config), found)


def parse():
    """(own options, the run's JSON with what the command line changes, {dotted path: value} of
    that, the run's name)."""
    from gpt.config.command_line import parse_command_line
    from gpt.config.resolve import read_file

    parser = Parser(__doc__, prog="throughput.py")
    parser.add_argument(
        "--ds_config",
        metavar="FILE.json",
        help="the run's config; default: the shipped classes' for --preset",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="instead of the config's"
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="measure every micro batch that divides the batch, smallest first",
    )
    parser.add_argument(
        "--micro_batch",
        type=int,
        nargs="+",
        metavar="N",
        help="measure these; default: the config's own",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="steps that are timed, or more until 3 s have passed (default 10)",
    )
    parser.add_argument(
        "--warmup", type=int, default=3, help="steps before them that are not (default 3)"
    )
    parser.add_argument(
        "--memory_limit",
        type=float,
        metavar="GIB",
        help="host memory that a measurement may take; default: most of what is free",
    )
    parser.add_argument(
        "--hours",
        type=float,
        nargs="+",
        default=list(classes.HOURS),
        help="compute classes to tell the steps of (default 3 6 12 … 384)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything here")
    parser.add_argument("--csv", metavar="FILE", help="write a row per micro batch here")
    parser.add_argument(
        "--write_config", metavar="FOLDER", help="write FOLDER/<hours>h.json for this device"
    )
    parser.add_argument(
        "--from_reference",
        nargs="?",
        const="3090",
        choices=tuple(classes.REFERENCE),
        metavar="GPU",
        help="measure nothing, take the published throughput of a 3090 (default), 4090 or A100",
    )
    args, rest = parser.parse_known_args()
    parsed = parse_command_line(["--ds_config", str(args.ds_config), *rest])
    overrides = parsed.overrides
    check(args, parsed, rest)
    if args.from_reference:
        return args, None, None, None
    tree, name, _ = (
        read_file(args.ds_config)
        if args.ds_config
        else (
            classes.shipped_tree(overrides["gpt.preset"], classes.batch_of(0)),
            overrides["gpt.preset"],
            {},
        )
    )
    if args.precision:
        overrides |= {f"{name}.enabled": name == args.precision for name in ("fp16", "bf16")}
    return args, changed(tree, overrides), overrides, name


def check(args, parsed, rest):
    """Raise UserError for options that make no sense, alone or together."""
    if (
        parsed.dry_run
        or parsed.explain
        or parsed.world_size
        or parsed.allow_change
        or parsed.resume != "auto"
    ):
        raise UserError(
            "command line: --dry_run, --explain, --world_size, --resume and --allow_change are for"
            " train.py"
        )
    if args.from_reference:
        if (
            rest
            or args.sweep
            or args.ds_config
            or args.micro_batch
            or args.precision
            or args.json
            or args.csv
        ):
            raise UserError(
                "command line: --from_reference tells the published figures of the shipped classes"
                " and measures nothing: beside it only --hours and --write_config have a meaning"
            )
    elif not args.ds_config and "gpt.preset" not in parsed.overrides:
        raise UserError(
            "command line: what is to be measured? give --preset NAME or --ds_config FILE.json"
        )
    if args.sweep and args.micro_batch:
        raise UserError(
            "command line: --sweep finds the micro batches by itself: leave out --micro_batch, or"
            " --sweep"
        )
    if args.steps < 1 or args.warmup < 1 or min(args.micro_batch or [1]) < 1:
        raise UserError("command line: --steps, --warmup and --micro_batch must be at least 1")
    if not all(0 < hours < 1e6 for hours in args.hours):
        raise UserError("command line: --hours must be above 0, and below a million")
    if args.memory_limit is not None and not args.memory_limit > 0:
        raise UserError("command line: --memory_limit must be above 0")


def changed(tree, overrides):
    """A run's JSON with the values of the command line in it."""
    from gpt.config.resolve import replace_batch

    tree = copy.deepcopy(tree)
    if isinstance(tree, dict):  # where it is not, the check of the whole tree says so
        replace_batch(tree, overrides)
    for path, value in overrides.items():
        block, (*parents, last) = tree, path.split(".")
        for parent in parents:
            block = block.setdefault(parent, {}) if isinstance(block, dict) else None
        if isinstance(block, dict):
            block[last] = value
    return tree


def resolved(tree, name, micro_size=None):
    """The Config that a child measures: of one rank, at exactly this micro batch."""
    from gpt.config.resolve import ACCUMULATION, BATCH, MICRO, resolve

    if micro_size is not None:
        tree = {**tree, MICRO: micro_size, ACCUMULATION: max(1, tree[BATCH] // micro_size)}
    return resolve(tree, name)


def measure_all(args, tree, name) -> dict:
    """Measure every micro batch that was asked for, each in a child, until memory ends; prints as
    it goes."""
    import psutil

    from gpt.config.batch import divisors
    from gpt.config.resolve import ACCUMULATION, BATCH, MICRO

    if (args.sweep or args.micro_batch) and isinstance(tree, dict):
        tree.pop(ACCUMULATION, None)
    config = resolved(tree, name)
    batch, model = config.batch.train_batch_size, config.model
    tree[BATCH] = batch
    sizes = (
        divisors(batch)
        if args.sweep
        else sorted(set(args.micro_batch or [config.batch.micro_size]))
    )
    configs = {size: resolved(tree, name, size) for size in sizes}
    print(
        f"{name}: {model.parameters():,} parameters, {batch} x {model.seq_len} tokens a step; at"
        f" least {args.steps} steps and {MINIMUM_SECONDS:g} s, after {args.warmup}"
        f" steps\n{'micro batch':>11s} {'accumulation':>12s} {'tokens/s':>10s} {'quartiles':>21s}"
        f" {'memory':>10s} {'MFU':>6s}"
    )
    report = {
        "config": name,
        "config_hash": None,
        "train_batch_size": batch,
        "seq_len": model.seq_len,
        "parameters": model.parameters(),
        "flops_per_token": model.matmul_flops_per_token(),
        "results": [],
    }
    for size, at_size in configs.items():
        free = psutil.virtual_memory().available
        result = in_child(
            {"tree": at_size.tree(), "name": name, "steps": args.steps, "warmup": args.warmup},
            args.memory_limit * 2**30 if args.memory_limit else 0.95 * free,
        )
        report |= result.pop("machine", {})
        report["results"].append({"micro_batch": size, "accumulation": batch // size, **result})
        print(row(report["results"][-1]), flush=True)
        if result["status"] == "out of memory":
            break
    content = config.tree()
    del content[MICRO], content[ACCUMULATION]
    report["config_hash"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    measured = [result for result in report["results"] if result["status"] == "ok"]
    if not measured:
        raise UserError(
            f"{name}: no micro batch could be measured ({report['results'][-1]['status']}): give a"
            " smaller --micro_batch, or a larger --memory_limit"
        )
    best = max(measured, key=lambda result: result["tokens_per_second"])
    report["best_micro_batch"], report["tokens_per_second"] = (
        best["micro_batch"],
        best["tokens_per_second"],
    )
    print(
        f"best: micro batch {best['micro_batch']}, {best['tokens_per_second']:,.0f} tokens/s in"
        f" {report['precision']} on {report['device']}, kernels: {report['kernels']}"
    )
    return report


def row(result) -> str:
    start = f"{result['micro_batch']:>11d} {result['accumulation']:>12d} "
    if result["status"] != "ok":
        return start + result["status"]
    utilisation = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
    quartiles = f"{result['lower_quartile']:,.0f} to {result['upper_quartile']:,.0f}"
    return (
        start + f"{result['tokens_per_second']:>10,.0f} {quartiles:>21s} "
        f"{result['peak_memory'] / 2**30:>6.2f} GiB {utilisation:>6s}"
    )


def in_child(task, memory_limit) -> dict:
    """Measure in a process of its own, whose death is a result as well. memory_limit: bytes of host
    memory."""
    launched = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    env = {key: value for key, value in os.environ.items() if key not in launched}
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as child:
        given, output = json.dumps(task), None
        while output is None:
            try:
                output, errors = child.communicate(given, timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                given = None
                # before the system looks for something to kill
                if resident(child.pid) > memory_limit:
                    child.kill()
    if child.returncode == 0:
        return json.loads(output.splitlines()[-1])
    if child.returncode == -signal.SIGKILL or any(words in errors for words in NO_MEMORY):
        return {"status": "out of memory"}
    said = [line for line in errors.splitlines() if line.strip()] or [
        f"exit code {child.returncode}"
    ]
    return {"status": f"failed: {said[-1].removeprefix('error: ')}"}


def measure(task) -> dict:
    """In the child: whole optimiser steps of the engine that train.py trains with."""
    import torch

    from gpt.compute import hardware
    from gpt.config.resolve import resolve
    from gpt.engine import boundary
    from gpt.kernels.choice import choose
    from gpt.model import build

    config = resolve(task["tree"], task["name"])
    if config.precision == "fp16" and not boundary.has_fp16():
        config = config.without_fp16("no GPU that computes in fp16")
    world = boundary.connect()
    kernels, _ = choose(
        config.options.kernels, world.device, config.model, hardware.DTYPES[config.precision]
    )
    model = build(config, kernels)
    made = boundary.Engine(model, config, world, model.initial_weights(config.options.seed))
    shape = (config.batch.accumulation, config.batch.micro_size, config.model.seq_len + 1)
    tokens = torch.randint(
        config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0)
    ).numpy()
    seconds, tries = [], 0
    while (
        len(seconds) < task["warmup"] + task["steps"]
        or sum(seconds[task["warmup"] :]) < MINIMUM_SECONDS
    ):
        began = time.perf_counter()
        result = made.step(tokens)
        result.loss.item()  # as in training, where the ranks agree on it after every step
        tries += 1
        if result.applied:  # an fp16 overflow is no whole step
            seconds.append(time.perf_counter() - began)
        elif tries - len(seconds) > 100:
            raise SystemExit("the gradient overflows again and again")
    seconds = seconds[task["warmup"] :]
    per_step = config.batch.train_batch_size * config.model.seq_len
    # Over all steps, as training counts: what disturbs one in ten steps costs there too.
    speed = per_step * len(seconds) / sum(seconds)
    device = hardware.device_name(world.device)
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    peak = hardware.peak_flops(device, config.precision)
    found = {
        "status": "ok",
        "tokens_per_second": speed,
        "lower_quartile": per_step / quarters[2],
        "median": per_step / quarters[1],
        "upper_quartile": per_step / quarters[0],
        "step_seconds": seconds,
        "peak_memory": hardware.peak_memory(world.device),
        "mfu": speed * config.model.matmul_flops_per_token() / peak if peak else None,
        "machine": {
            "device": device,
            "precision": config.precision,
            "kernels": kernels,
            "peak_flops": peak,
            "versions": hardware.versions(),
        },
    }
    boundary.disconnect()
    return found


def resident(pid) -> int:
    """Bytes of host memory that a process occupies."""
    import psutil

    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def classes_here(report, hours, own_batch) -> dict:
    """{class: its hours, batch and steps} at the measured throughput; the shipped classes' batches
    unless own_batch."""
    found = {}
    for value in hours:
        batch = report["train_batch_size"] if own_batch else classes.batch_of(value)
        steps = classes.steps_of(
            value, rounded(report["tokens_per_second"]), batch * report["seq_len"]
        )
        found[classes.name_of(value)] = {"hours": value, "train_batch_size": batch, "steps": steps}
    return found


def print_classes(report):
    print(
        f"\n{'class':>7s} {'batch':>6s} {'steps':>12s} {'tokens':>18s} at"
        f" {rounded(report['tokens_per_second']):,} tokens/s"
    )
    for name, facts in report["classes"].items():
        tokens = facts["steps"] * facts["train_batch_size"] * report["seq_len"]
        print(f"{name:>7s} {facts['train_batch_size']:>6d} {facts['steps']:>12,} {tokens:>18,}")


def rounded(speed):
    """A throughput as a class's JSON states it."""
    return round(speed) if speed >= 100 else round(speed, 2)


def class_trees(tree, report) -> dict:
    """{hours: the JSON of a class at the measured throughput}, each checked as train.py will check
    it."""
    found = {}
    for name, facts in report["classes"].items():
        batch = {"train_batch_size": facts["train_batch_size"]}
        found[facts["hours"]] = classes.class_tree(
            {**tree, **batch},
            facts["hours"],
            rounded(report["tokens_per_second"]),
            report["best_micro_batch"],
            report["seq_len"],
        )
        resolved(found[facts["hours"]], name)
    return found


def reference_table(gpu, hours) -> str:
    lines = [
        (
            f"steps at the published throughput of the {gpu} (fp16, arXiv 2309.11197), batches of"
            " 512 tokens"
        ),
        f"{'class':>7s} {'batch':>6s}"
        + "".join(
            f"{f'{name} {speed:,}/s':>20s}" for name, speed in classes.REFERENCE[gpu].items()
        ),
    ]
    for value in hours:
        batch = classes.batch_of(value)
        steps = [
            classes.steps_of(value, speed, batch * 512) for speed in classes.REFERENCE[gpu].values()
        ]
        lines.append(
            f"{classes.name_of(value):>7s} {batch:>6d}"
            + "".join(f"{count:>20,}" for count in steps)
        )
    return "\n".join(lines)


def refuse_to_overwrite(folder, hours):
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--write_config {folder} is a file: name a folder")
    for value in hours:
        if (folder / f"{classes.name_of(value)}.json").exists():
            raise UserError(
                f"{folder / classes.name_of(value)}.json is there already: name another folder with"
                " --write_config"
            )


def write_classes(folder, found):
    folder.mkdir(parents=True, exist_ok=True)
    for hours, tree in found.items():
        (folder / f"{classes.name_of(hours)}.json").write_text(
            classes.text_of(tree), encoding="utf-8"
        )
    print(f"wrote {', '.join(f'{classes.name_of(hours)}.json' for hours in found)} to {folder}")


def write_results(args, report):
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.csv:
        common = {
            key: value for key, value in report.items() if not isinstance(value, (list, dict))
        }
        columns = (
            "micro_batch",
            "accumulation",
            "status",
            "tokens_per_second",
            "lower_quartile",
            "median",
            "upper_quartile",
            "peak_memory",
            "mfu",
        )
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, [*columns, *(key for key in common if key not in columns)], restval=""
            )
            writer.writeheader()
            for result in report["results"]:
                writer.writerow({**common, **{key: result.get(key) for key in columns}})


if __name__ == "__main__":
    command(main)
