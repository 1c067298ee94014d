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

import csv
import io
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.compute import classes
from gpt.compute.costs import costs_of
from gpt.config.command_line import parse_command_line
from gpt.config.run_file import read_file
from gpt.escaping import csv_cell
from gpt.files import require_place_for, write_atomically, write_output
from gpt.training import throughput

GIB = 2**30
COLUMNS = (
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


def main():
    args, train_args = parse()
    of_train = ["--ds_config", str(args.ds_config), *train_args]
    train_options = parse_command_line(of_train, tool_options=vars(args))
    overrides = train_options.overrides
    check(args, train_args, train_options)
    tree, name = (None, None) if args.from_reference else read_run(args, overrides)
    for option, file in (("--json", args.json), ("--csv", args.csv)):
        if file:
            require_place_for(option, file)
    if args.write_config:
        refuse_to_overwrite(Path(args.write_config), args.hours)
    if args.from_reference:
        print_reference(args.from_reference, args.hours)
        trees = reference_trees(args.from_reference, args.hours)
    else:
        own_batch = bool(args.ds_config) or "train_batch_size" in overrides
        trees = measure(args, tree, name, own_batch)
    if args.write_config:
        write_classes(Path(args.write_config), trees)


def parse():
    """(own options, what stands beside them: options of train.py)."""
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
    return parser.parse_known_args()


def check(args, train_args, train_options):
    """Raise UserError for options that make no sense, alone or together."""
    for_train_only = (
        train_options.dry_run,
        train_options.explain,
        train_options.world_size,
        train_options.allow_change,
        train_options.resume != "auto",
    )
    if any(for_train_only):
        raise UserError(
            "command line: --dry_run, --explain, --world_size, --resume and --allow_change are for"
            " train.py"
        )
    for_measuring_only = (
        train_args,
        args.sweep,
        args.ds_config,
        args.micro_batch,
        args.precision,
        args.json,
        args.csv,
    )
    if args.from_reference and any(for_measuring_only):
        raise UserError(
            "command line: --from_reference tells the published figures of the shipped classes"
            " and measures nothing",
            mend="beside it only --hours and --write_config have a meaning",
        )
    overrides = train_options.overrides
    has_run = args.ds_config or overrides.get("gpt.preset")
    if not args.from_reference and not has_run:
        raise UserError(
            "command line: what is to be measured? give --preset NAME or --ds_config FILE.json"
        )
    if args.sweep and args.micro_batch:
        raise UserError(
            "command line: --sweep finds the micro batches by itself",
            mend="leave out --micro_batch, or --sweep",
        )
    if args.precision and {"fp16", "bf16", "fp16.enabled", "bf16.enabled"} & overrides.keys():
        raise UserError(
            "command line: --precision sets fp16.enabled and bf16.enabled",
            mend="leave out --precision, or the options --fp16… and --bf16…",
        )
    micro = "train_micro_batch_size_per_gpu"
    if (args.sweep or args.micro_batch) and micro in overrides:
        raise UserError(
            f"command line: --sweep and --micro_batch measure other micro batches than --{micro}",
            mend="give one of them",
        )
    if args.steps < 1 or args.warmup < 1 or min(args.micro_batch or [1]) < 1:
        raise UserError("command line: --steps, --warmup and --micro_batch must be at least 1")
    if not all(0 < hours < 1e6 for hours in args.hours):
        raise UserError("command line: --hours must be above 0, and below a million")
    names = [classes.name_of(hours) for hours in args.hours]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"command line: --hours names the class {name} more than once",
                mend="give each class once",
            )
    if args.memory_limit is not None and not args.memory_limit > 0:
        raise UserError("command line: --memory_limit must be above 0")


def read_run(args, overrides):
    """(the run's JSON with what the command line changes, its name)."""
    if args.ds_config:
        tree, name, _ = read_file(args.ds_config, overrides)
    else:
        name = overrides["gpt.preset"]
        tree = classes.shipped_tree(name, classes.batch_of(0))
    if args.precision:
        halves = {f"{half}.enabled": half == args.precision for half in ("fp16", "bf16")}
        overrides = {**overrides, **halves}
    return throughput.changed(tree, name, overrides), name


def refuse_to_overwrite(folder, hours):
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--write_config {folder} is a file", mend="name a folder")
    for value in hours:
        path = folder / f"{classes.name_of(value)}.json"
        if path.exists():
            raise UserError(
                f"{path} is there already", mend="name another folder with --write_config"
            )


def measure(args, tree, name, own_batch) -> dict:
    """Measure, print as it goes, and write the results; returns {hours: a class's JSON}, empty
    without --write_config."""
    plan = throughput.plan(tree, name, args.sweep, args.micro_batch)
    if args.write_config:
        throughput.require_classes(plan, args.hours, own_batch)
    print_head(plan, args)
    limit = args.memory_limit * GIB if args.memory_limit else None
    results = []
    for result in throughput.measure_all(plan, args.steps, args.warmup, limit):
        print_row(result)
        results.append(result)
    report = throughput.report(plan, results)
    print(
        f"best: micro batch {report['best_micro_batch']},"
        f" {report['tokens_per_second']:,.0f} tokens/s in {report['precision']} on"
        f" {report['device']}, kernels: {report['kernels']}"
    )
    report["classes"] = throughput.classes_here(report, args.hours, own_batch)
    print_classes(report)
    write_results(args, report)
    return throughput.class_trees(plan.tree, report) if args.write_config else {}


def print_head(plan, args):
    config = plan.config
    parameters = costs_of(config).parameters
    of_file = f" of {config.model_code}" if config.model_code is not None else ""
    batch = plan.config.batch.train_batch_size
    least = throughput.MINIMUM_SECONDS
    print(
        f"{plan.name}: {parameters:,} parameters{of_file}, {batch} x {config.model.seq_len}"
        f" tokens a step; at least {args.steps} steps and {least:g} s, after {args.warmup} steps"
    )
    print_columns("micro batch", "accumulation", "tokens/s", "quartiles", "memory", "MFU")


def print_row(result):
    sizes = (result["micro_batch"], result["accumulation"])
    if result["status"] != "ok":
        print(f"{sizes[0]:>11d} {sizes[1]:>12d} {result['status']}", flush=True)
        return
    speed = f"{result['tokens_per_second']:,.0f}"
    quartiles = f"{result['lower_quartile']:,.0f} to {result['upper_quartile']:,.0f}"
    memory = f"{result['peak_memory'] / GIB:.2f} GiB"
    mfu = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
    print_columns(*sizes, speed, quartiles, memory, mfu)


def print_columns(micro_batch, accumulation, speed, quartiles, memory, mfu):
    print(
        f"{micro_batch:>11} {accumulation:>12} {speed:>10} {quartiles:>21} {memory:>10} {mfu:>6}",
        flush=True,
    )


def print_classes(report):
    speed = throughput.rounded(report["tokens_per_second"])
    print(f"\n{'class':>7s} {'batch':>6s} {'steps':>12s} {'tokens':>18s} at {speed:,} tokens/s")
    for name, facts in report["classes"].items():
        batch = facts["train_batch_size"]
        steps = facts["steps"]
        tokens = steps * batch * report["seq_len"]
        print(f"{name:>7s} {batch:>6d} {steps:>12,} {tokens:>18,}")


def print_reference(gpu, hours):
    """The steps of classes at the published throughput of a GPU."""
    speeds = classes.REFERENCE[gpu]
    print(
        f"steps at the published throughput of the {gpu} (fp16, arXiv 2309.11197), batches of 512"
        " tokens"
    )
    presets = [f"{preset} {speed:,}/s" for preset, speed in speeds.items()]
    print(f"{'class':>7s} {'batch':>6s}" + "".join(f"{preset:>20s}" for preset in presets))
    for value in hours:
        batch = classes.batch_of(value)
        steps = [classes.steps_of(value, speed, batch * 512) for speed in speeds.values()]
        row = f"{classes.name_of(value):>7s} {batch:>6d}"
        print(row + "".join(f"{count:>20,}" for count in steps))


def reference_trees(gpu, hours) -> dict:
    """{hours: a class's JSON}, of the shipped classes."""
    shipped = [value for value in hours if value in classes.SHIPPED]
    return {value: classes.reference_class(value, gpu) for value in shipped}


def write_classes(folder, trees):
    """trees: {hours: a class's JSON}."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for hours, tree in trees.items():
        name = f"{classes.name_of(hours)}.json"
        write_atomically(folder / name, classes.text_of(tree))
        names.append(name)
    print(f"wrote {', '.join(names)} to {folder}")


def write_results(args, report):
    if args.json:
        write_output("--json", args.json, json.dumps(report, indent=1) + "\n")
    if args.csv:
        write_output("--csv", args.csv, as_csv(report))


def as_csv(report) -> str:
    """A row per micro batch."""
    facts = {key: value for key, value in report.items() if not isinstance(value, (list, dict))}
    columns = [*COLUMNS, *(key for key in facts if key not in COLUMNS)]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    for result in report["results"]:
        row = {**facts, **{key: result.get(key) for key in COLUMNS}}
        writer.writerow([csv_cell(row[column]) for column in columns])
    return out.getvalue()


if __name__ == "__main__":
    command(main)
