"""What can be known before a GPU is held: `train.py --dry_run` and `--explain`. Imports neither
torch nor deepspeed."""

import math

from gpt.compute import classes, host_time, many_gpus
from gpt.compute.memory import Memory, checkpoint_bytes, memory
from gpt.config.batch import divisors
from gpt.config.run_config import Config
from gpt.data.windows import windows
from gpt.files import free_space
from gpt.kernels.chunks import CHUNK_ELEMENTS
from gpt.wording import duration

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


def explain(config: Config) -> str:
    """Every resolved value with its source, a line each."""
    rows = [
        (path, repr(value) if isinstance(value, str) else str(value), source)
        for path, value, source in config.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"{path:{widths[0]}}  {value:{widths[1]}}  {source}" for path, value, source in rows
    )


def report(config: Config, dataset, interconnect: float | None = None) -> str:
    """The run's size, memory, disk and time. dataset: gpt.data.datasets.Dataset, or None where it
    is not there yet.

    interconnect: GB/s of the slowest link between the GPUs, for what more of them would bring.
    """
    notices = [[f"notice         {text}" for text in config.notices]] if config.notices else []
    sections = [
        _model(config),
        *notices,
        _data(config, dataset),
        _memory(config),
        _disk(config),
        _time(config, dataset),
        _host(config),
    ]
    if interconnect is not None:
        sections.append(_scaling(config, interconnect))
    return "\n\n".join("\n".join(section) for section in sections)


def _model(config):
    model = config.model
    batch = config.batch
    options = config.options
    tokens = options.max_train_steps * batch.train_batch_size * model.seq_len
    flops = tokens * model.matmul_flops_per_token()
    smaller = batch.micro_limit is not None and batch.micro_size < batch.micro_limit
    limit = f" (at most {batch.micro_limit} asked for)" if smaller else ""
    schedule = config.schedule
    rate = (
        f"learning rate  {schedule.warmup_steps:,} steps of warm-up to {schedule.max_lr:g}, cosine"
        f" to {schedule.min_lr:g} at step {schedule.decay_steps:,}"
        if schedule
        else "learning rate  by DeepSpeed's own scheduler"
    )
    return [
        (
            f"{config.name} on {batch.world_size} rank(s), {config.precision}, ZeRO stage"
            f" {config.zero_stage}"
        ),
        (
            f"model          {model.parameters():,} parameters: {model.n_layers} layers, h_dim"
            f" {model.h_dim}, mlp_dim {model.mlp_dim}, {model.n_heads} x {model.head_dim} heads,"
            f" vocabulary {model.vocab_size:,}"
        ),
        (
            f"batch          {batch.train_batch_size} x {model.seq_len} ="
            f" {batch.train_batch_size * model.seq_len:,} tokens a step: micro batch"
            f" {batch.micro_size}{limit} x accumulation {batch.accumulation} x {batch.world_size}"
            " rank(s)"
        ),
        (
            f"training       {options.max_train_steps:,} steps, {tokens:,} tokens,"
            f" {tokens / model.parameters():.1f} per parameter"
        ),
        (
            f"compute        {flops:.3e} FLOPs in matrix products"
            f" ({model.matmul_flops_per_token():,} per token)"
        ),
        rate,
    ]


def _data(config, dataset):
    options = config.options
    if dataset is None:
        return [f"data           {options.data_root} is not there yet"]
    splits = dataset.manifest["splits"]
    tokens = options.max_train_steps * config.batch.train_batch_size * config.model.seq_len
    train = splits["train"]
    return [
        f"data           {dataset.root}: {train['tokens']:,} tokens in {train['documents']:,}"
        f" documents to train on, read {tokens / train['tokens']:.2f} times"
    ]


def _stages(config):
    """The ZeRO stages that the run could choose from: in 16 bits DeepSpeed's stage 0 computes
    something else."""
    return range(0 if config.precision == "fp32" else 1, 4)


def memory_at(config: Config, stage: int, checkpointing: bool) -> Memory:
    """What a rank of the run would need on a GPU at a ZeRO stage, with or without activation
    checkpointing."""
    options = config.options
    return memory(
        config.model,
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
    )


def _memory(config):
    zero = config.deepspeed["zero_optimization"]
    stage = zero["stage"]
    off, weights_off = (
        zero.get(f"offload_{what}", {}).get("device", "none") != "none"
        for what in ("optimizer", "param")
    )
    chosen = config.options.activation_checkpointing

    stages = _stages(config)
    rows = [[getattr(memory_at(config, at, chosen), part) for at in stages] for part in PARTS]
    rows.append([memory_at(config, at, chosen).total for at in stages])
    rows.append([memory_at(config, at, not chosen).total for at in stages])
    other = "without" if chosen else "with"
    names = [*PARTS, "most at once", f"{other} activation checkpointing"]
    if off or weights_off:
        names.append("in host memory")
        rows.append([memory_at(config, at, chosen).host for at in stages])
    lines = [
        "memory per rank in GiB"
        + " " * 14
        + "".join(f"{'ZeRO ' + str(at) + ('*' if at == stage else ' '):>10s}" for at in stages)
    ]
    lines += [
        f"  {name:34s}" + "".join(f"{value / 2**30:>9.2f} " for value in row)
        for name, row in zip(names, rows)
    ]
    lines.append(
        "  most at once: weights, optimizer, and the largest of a micro-batch's activations,"
        " logits, gathered, buckets and gradients\n  (which below ZeRO 2, without accumulation,"
        " take the place of the first two), of gradients and reduction, and of update"
    )
    moved = " and ".join(["optimizer states"] * off + ["weights"] * weights_off)
    lines.append(
        f"  * this run, {'with' if chosen else 'without'} activation checkpointing"
        + (f", {moved} in host memory" if moved else "")
    )
    return lines


def _disk(config):
    options = config.options
    size = checkpoint_bytes(config.model, config.zero_stage, config.precision, config.moments)
    every = options.log_ckpt_every
    count = math.ceil(options.max_train_steps / every) if every > 0 else 1
    if 0 < options.keep_last < count:
        forever = options.max_train_steps // options.keep_every if options.keep_every > 0 else 0
        # one more while it is being written
        count = min(count, options.keep_last + 1 + forever)
    free, _ = free_space(config.run_dir)
    short = " - NOT ENOUGH: keep fewer with keep_last" if count * size > free else ""
    return [
        f"disk           {count} checkpoint(s) of {size / 1e9:.2f} GB: {count * size / 1e9:.1f} GB"
        f" in {config.run_dir}, {free / 1e9:.1f} GB free{short}"
    ]


def _time(config, dataset):
    options, model = config.options, config.model
    per_step = config.batch.train_batch_size * model.seq_len
    lines = []
    if options.tokens_per_second:
        hours = options.max_train_steps * per_step / options.tokens_per_second / 3600
        lines.append(
            f"time         {hours:.2f} hours at {options.tokens_per_second:,.0f} tokens/s "
            f"({duration(hours * 3600)}), on one GPU of that rate; steps per class:"
        )
        lines.append(
            "               "
            + ", ".join(
                f"{h}h {classes.steps_of(h, options.tokens_per_second, per_step):,}"
                for h in classes.HOURS
            )
        )
    else:
        lines.append("time         unknown: set tokens_per_second to the GPU's measured throughput")
    if options.eval_every > 0:
        windows_each = (
            options.max_eval_steps * options.eval_batch_size
            if options.max_eval_steps >= 0
            else None
        )
        if dataset is not None:
            tokens = dataset.manifest["splits"][options.eval_data_split]["tokens"]
            most = windows(tokens, model.seq_len, options.last_n)
            windows_each = most if windows_each is None else min(most, windows_each)
        # before the first step, and after the last
        times = math.ceil(options.max_train_steps / options.eval_every) + 1
        if windows_each is None:
            lines.append(
                f"evaluation     {times} times over the whole split {options.eval_data_split!r}"
            )
        else:
            cost = (
                times
                * windows_each
                * model.seq_len
                / 3
                / max(1, options.max_train_steps * per_step)
            )
            lines.append(
                f"evaluation     {times} times {windows_each:,} windows of {model.seq_len} tokens:"
                f" {cost:.1%} of the training's FLOPs"
            )
    return lines


def _launching(config, stage):
    """Seconds that the host needs to launch a micro-batch; None where that is not known."""
    if config.options.compile != "none":
        return None
    return host_time.launches(config.model, stage, config.options.activation_checkpointing).seconds


def _host(config):
    """Whether a GPU would wait for its host."""
    batch = config.batch
    seq_len = config.model.seq_len
    speed = config.options.tokens_per_second
    launching = _launching(config, config.zero_stage)
    if launching is None:
        return ["host           its time for a micro-batch is not estimated under torch.compile"]
    about = 1000 * launching
    low, high = about / host_time.RANGE, about * host_time.RANGE
    lines = [
        (
            f"host           needs about {about:.0f} ms ({low:.0f} to {high:.0f}) to launch a "
            f"micro-batch of {batch.micro_size} x {seq_len} tokens on a GPU:"
        ),
        "               on paper, not measured; gpt/compute/host_time.py has the model",
    ]
    if speed:
        lines.append(f"               {_waiting(batch, seq_len, speed, launching)}")
    return lines


def _waiting(batch, seq_len, speed, launching):
    """What a host's `launching` seconds per micro-batch mean for a GPU of `speed` tokens/s."""
    computing = batch.micro_size * seq_len / speed
    enough = math.ceil(launching * speed / seq_len)
    digits = 1 if computing < 0.01 else 0
    told = f"a GPU of {speed:,.0f} tokens/s computes it in {1000 * computing:,.{digits}f} ms"
    if launching <= computing:
        times = computing / launching
        return f"{told}; one about {times:.2g} times as fast would wait for its host"
    told += f" and is host-bound: give each GPU at least {enough} sequences per pass"
    if enough > batch.train_batch_size:
        return f"{told}, more than train_batch_size {batch.train_batch_size}"
    if enough > batch.share:
        ranks = max(
            n for n in divisors(batch.train_batch_size) if batch.train_batch_size // n >= enough
        )
        return f"{told}; train_batch_size {batch.train_batch_size} has them for {ranks} GPU(s)"
    fitting = min(size for size in divisors(batch.share) if size >= enough)
    return f"{told}, --train_micro_batch_size_per_gpu {fitting} or more"


def _scaling(config, interconnect):
    options = config.options
    stages = _stages(config)
    own = config.zero_stage
    if not options.tokens_per_second:
        return ["scaling        unknown: set tokens_per_second to the GPU's measured throughput"]

    def steps(batch):
        return [
            many_gpus.step(
                config.model,
                batch,
                stage,
                config.precision,
                options.tokens_per_second,
                interconnect * 1e9,
                config.deepspeed["zero_optimization"],
                _launching(config, stage) or 0.0,
            )
            for stage in stages
        ]

    def milliseconds(part):
        seconds = [getattr(found, part) for found in now]
        return [f"{1000 * value:,.1f}" if value else "-" for value in seconds]

    now = steps(config.batch)
    head = "".join(
        f"{'ZeRO ' + str(stage) + ('*' if stage == own else ' '):>10s}" for stage in stages
    )
    rows = (
        ("computing, ms a step", milliseconds("computing")),
        ("launching meanwhile, ms a step", milliseconds("launching")),
        ("communicating, ms a step", milliseconds("communicating")),
        ("communication's share", [f"{found.share:.1%}" for found in now]),
        (
            "hours of the whole training",
            [f"{options.max_train_steps * found.seconds / 3600:,.2f}" for found in now],
        ),
        (
            "hours if all of it overlaps",
            [f"{options.max_train_steps * found.overlapped / 3600:,.2f}" for found in now],
        ),
    )
    lines = [
        f"{f'on {config.batch.world_size} rank(s), {interconnect:g} GB/s between them':36s}{head}"
    ]
    lines += [
        f"  {name:34s}" + "".join(f"{value:>9s} " for value in values) for name, values in rows
    ]
    lines.append("scaling efficiency at this batch")
    for ranks in many_gpus.RANKS:
        batch = many_gpus.on_ranks(config.batch, ranks)
        if batch is None:
            lines.append(
                f"  {ranks:5,} ranks: train_batch_size {config.batch.train_batch_size} is not"
                " shared out evenly to so many"
            )
            break
        name = f"{ranks:5,} rank(s), {batch.micro_size} x {batch.accumulation} each"
        lines.append(
            f"  {name:34s}" + "".join(f"{found.efficiency:>9.1%} " for found in steps(batch))
        )
    lines.append(
        f"  on paper: rings, {1e6 * many_gpus.HOP_SECONDS:g} us a hop, no overlap, every GPU at"
        f" {options.tokens_per_second:,.0f} tokens/s; gpt/compute/many_gpus.py has the model"
    )
    return lines
