"""Tables of a dry run with a column for each ZeRO stage: memory, and what more GPUs would bring.
Imports no torch."""

from collections.abc import Callable, Iterable

from gpt.compute import host_time, many_gpus
from gpt.compute.costs import costs_of
from gpt.compute.memory import Memory, is_offloaded, memory
from gpt.config.batch import BatchPlan
from gpt.config.run_config import Config
from gpt.kernels.sizes import CHUNK_ELEMENTS

# Rows of the table of memory, which are fields of gpt.compute.memory.Memory.
PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "gathered",
    "buckets",
    "reduction",
    "update",
)

# A row of a table: its name, and a text for each ZeRO stage.
Row = tuple[str, Iterable[str]]


def _stages(config: Config) -> range:
    """The ZeRO stages that the run could choose from: in 16 bits DeepSpeed's stage 0 computes
    something else."""
    return range(0 if config.precision == "fp32" else 1, 4)


def _table(title: str, config: Config, rows: Iterable[Row]) -> list[str]:
    """A head with the ZeRO stages, the run's own marked, and the rows."""
    head = f"{title:36s}"
    for stage in _stages(config):
        mark = "*" if stage == config.zero_stage else " "
        head += f"{f'ZeRO {stage}{mark}':>10s}"
    return [head, *(_line(row) for row in rows)]


def _line(row: Row) -> str:
    name, cells = row
    return f"  {name:34s}" + "".join(f"{cell:>9s} " for cell in cells)


def memory_at(config: Config, stage: int, checkpointing: bool) -> Memory:
    """What a rank of the run would need on a GPU at a ZeRO stage, with or without activation
    checkpointing."""
    options = config.options
    return memory(
        costs_of(config),
        config.batch.micro_size,
        config.batch.world_size,
        stage,
        config.precision,
        checkpointing,
        CHUNK_ELEMENTS["default"],
        config.moments,
        accumulation=config.batch.accumulation,
        fp32_sums=config.fp32_sums,
        norms=options.log_grads_every > 0,
        zero=config.deepspeed["zero_optimization"],
        kernels="torch" if options.kernels == "torch" else "triton",
        graphed=options.cuda_graph and stage == 1,
    )


def memory_table(config: Config) -> list[str]:
    zero = config.deepspeed["zero_optimization"]
    in_host_memory = []
    if is_offloaded(zero, "offload_optimizer"):
        in_host_memory.append("optimizer states")
    if is_offloaded(zero, "offload_param"):
        in_host_memory.append("weights")
    checkpointing = config.options.activation_checkpointing
    this_run, other = ("with", "without") if checkpointing else ("without", "with")

    stages = _stages(config)
    by_stage = [memory_at(config, stage, checkpointing) for stage in stages]
    by_stage_other = [memory_at(config, stage, not checkpointing) for stage in stages]
    rows = [(part, _gib(getattr(each, part) for each in by_stage)) for part in PARTS]
    rows.append(("most at once", _gib(each.total for each in by_stage)))
    name = f"{other} activation checkpointing"
    if by_stage_other[0].is_whole:
        rows.append((name, _gib(each.total for each in by_stage_other)))
    if in_host_memory:
        rows.append(("in host memory", _gib(each.host for each in by_stage)))

    own = f"  * this run, {this_run} activation checkpointing"
    if in_host_memory:
        own += f", {' and '.join(in_host_memory)} in host memory"
    return [
        *_table("memory per rank in GiB", config, rows),
        (
            "  most at once: weights, optimizer, and the largest of a micro-batch's activations,"
            " logits, gathered, buckets and gradients"
        ),
        (
            "  (which below ZeRO 2, without accumulation, take the place of the first two), of"
            " gradients and reduction, and of update"
        ),
        own,
        *_unknown_activations(by_stage[0]),
    ]


def _unknown_activations(memory_of_run: Memory) -> list[str]:
    if memory_of_run.is_whole:
        return []
    return ["  without activations, which are known on no device but a GPU"]


def _gib(sizes: Iterable[int]) -> list[str]:
    """sizes: in bytes."""
    return [f"{size / 2**30:.2f}" for size in sizes]


def scaling_table(config: Config, interconnect: float) -> list[str]:
    """Time and efficiency of a step, on the run's ranks and on others. interconnect: GB/s of the
    slowest link between the GPUs."""
    speed = config.options.tokens_per_second
    if not speed:
        return ["scaling        unknown: set tokens_per_second to the GPU's measured throughput"]

    def steps(batch: BatchPlan) -> list[many_gpus.Step]:
        """Of each ZeRO stage."""
        return [_step(config, batch, stage, speed, interconnect) for stage in _stages(config)]

    return [
        *_step_table(config, steps(config.batch), interconnect),
        "scaling efficiency at this batch",
        *_efficiencies(config, steps),
        (
            f"  on paper: rings, {1e6 * many_gpus.HOP_SECONDS:g} us a hop, no overlap, every GPU at"
            f" {speed:,.0f} tokens/s; gpt/compute/many_gpus.py has the model"
        ),
    ]


def _step(
    config: Config, batch: BatchPlan, stage: int, speed: float, interconnect: float
) -> many_gpus.Step:
    return many_gpus.step(
        costs_of(config),
        batch,
        stage,
        config.precision,
        speed,
        interconnect * 1e9,
        config.deepspeed["zero_optimization"],
        host_time.launching(config, stage) or 0.0,
    )


def _step_table(config: Config, steps: list[many_gpus.Step], interconnect: float) -> list[str]:
    """steps: of each ZeRO stage, on the run's own ranks."""
    count = config.options.max_train_steps
    title = f"on {config.batch.world_size} rank(s), {interconnect:g} GB/s between them"
    rows = [
        ("computing, ms a step", [_milliseconds(step.computing) for step in steps]),
        ("launching meanwhile, ms a step", [_milliseconds(step.launching) for step in steps]),
        ("communicating, ms a step", [_milliseconds(step.communicating) for step in steps]),
        ("communication's share", [f"{step.share:.1%}" for step in steps]),
        ("hours of the whole training", [_hours(count * step.seconds) for step in steps]),
        ("hours if all of it overlaps", [_hours(count * step.overlapped) for step in steps]),
    ]
    return _table(title, config, rows)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds else "-"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def _efficiencies(
    config: Config, steps: Callable[[BatchPlan], list[many_gpus.Step]]
) -> Iterable[str]:
    for ranks in many_gpus.RANKS:
        batch = many_gpus.on_ranks(config.batch, ranks)
        if batch is None:
            yield (
                f"  {ranks:5,} ranks: train_batch_size {config.batch.train_batch_size} is not"
                " shared out evenly to so many"
            )
            return
        name = f"{ranks:5,} rank(s), {batch.micro_size} x {batch.accumulation} each"
        yield _line((name, [f"{step.efficiency:.1%}" for step in steps(batch)]))
