"""What can be known before a GPU is held: `train.py --dry_run` and `--explain`. Imports no
deepspeed, and torch for a model file alone."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gpt.compute import classes, host_time
from gpt.compute.costs import Costs, costs_of
from gpt.compute.memory import checkpoint_bytes
from gpt.compute.stage_tables import memory_table, scaling_table
from gpt.config.batch import BatchPlan, divisors
from gpt.config.run_config import Config
from gpt.config.schedule import CosineSchedule
from gpt.data.datasets import Dataset
from gpt.data.windows import windows
from gpt.files import free_space
from gpt.kernels.processor import advice_on_bf16
from gpt.wording import duration, plural


def explain(config: Config) -> str:
    """Every resolved value with its source, a line each."""
    rows = []
    for path, value, source in config.values():
        text = repr(value) if isinstance(value, str) else str(value)
        rows.append((path, text, source))
    path_width = max(len(path) for path, _, _ in rows)
    text_width = max(len(text) for _, text, _ in rows)
    return "\n".join(
        f"{path:{path_width}}  {text:{text_width}}  {source}" for path, text, source in rows
    )


def report(config: Config, dataset: Dataset | None, interconnect: float | None = None) -> str:
    """The run's size, memory, disk and time. dataset: None where it is not there yet.

    interconnect: GB/s of the slowest link between the GPUs, for what more of them would bring.
    """
    sections = [_model(config)]
    notices = [*config.notices, *costs_of(config).notices]
    if notices:
        sections.append([f"notice         {text}" for text in notices])
    sections += [
        _data(config, dataset),
        memory_table(config),
        _disk(config),
        _time(config) + _evaluation(config, dataset),
        _host(config),
    ]
    if interconnect is not None:
        sections.append(scaling_table(config, interconnect))
    return "\n\n".join("\n".join(section) for section in sections)


def _tokens_per_step(config: Config) -> int:
    return config.batch.train_batch_size * config.model.seq_len


def _tokens(config: Config) -> int:
    """Of the whole training."""
    return config.options.max_train_steps * _tokens_per_step(config)


def _model(config: Config) -> list[str]:
    model = config.model
    batch = config.batch
    tokens = _tokens(config)
    costs = costs_of(config)
    limit = ""
    if batch.micro_limit is not None and batch.micro_size < batch.micro_limit:
        limit = f" (at most {batch.micro_limit} asked for)"
    return [
        (
            f"{config.name} on {batch.world_size} rank(s), {_precision(config)}, ZeRO stage"
            f" {config.zero_stage}"
        ),
        (
            f"model          {costs.parameters:,} parameters{_of_file(config)}: {model.n_layers}"
            f" layers, h_dim {model.h_dim}, mlp_dim {model.mlp_dim}, {model.n_heads} x"
            f" {model.head_dim} heads, vocabulary {model.vocab_size:,}"
        ),
        (
            f"batch          {batch.train_batch_size} x {model.seq_len} ="
            f" {_tokens_per_step(config):,} tokens a step: micro batch {batch.micro_size}{limit} x"
            f" accumulation {batch.accumulation} x {batch.world_size} rank(s)"
        ),
        (
            f"training       {config.options.max_train_steps:,} steps, {tokens:,} tokens,"
            f" {tokens / costs.parameters:.1f} per parameter"
        ),
        (
            f"compute        {tokens * costs.flops_per_token:.3e} FLOPs in matrix products"
            f" ({costs.flops_per_token:,} per token{_known_from(costs)})"
        ),
        *_optimizer(config),
        _learning_rate(config),
        *_on_a_cpu(config),
    ]


def _of_file(config: Config) -> str:
    """Of a model file: what its `build` gets beside the shape, which is told after it."""
    if config.model_code is None:
        return ""
    call = _call_of_build("shape", config.options.model_options)
    return f" of {config.model_code}, {call} for"


def _optimizer(config: Config) -> Iterator[str]:
    """A line on an optimizer file."""
    if config.optimizer_code is not None:
        call = _call_of_build("named_parameters", config.options.optimizer_options)
        yield f"optimizer      of {config.optimizer_code}, {call}"


def _call_of_build(first: str, options: Mapping[str, Any] | None) -> str:
    """How a run calls the `build` of a file. first: its argument before the options."""
    settings = [f"{name}={value!r}" for name, value in (options or {}).items()]
    return f"build({', '.join([first, *settings])})"


def _known_from(costs: Costs) -> str:
    counted = costs.flops_counted
    if counted is None:
        return ", declared and not counted"
    return f", declared; {counted:,} counted" if counted != costs.flops_per_token else ""


def _precision(config: Config) -> str:
    if config.precision == "fp16":
        return "fp16 as on a GPU (a machine without one trains in fp32)"
    return config.precision


def _on_a_cpu(config: Config) -> Iterator[str]:
    advice = advice_on_bf16(config.precision)
    if advice is not None:
        yield f"on a CPU       {advice}"


def _learning_rate(config: Config) -> str:
    schedule = config.schedule
    if schedule is None:
        scheduler = config.deepspeed.get("scheduler")
        if scheduler is None and config.optimizer_code is not None:
            return "learning rate  as the optimizer is built, constant"
        if scheduler is None:
            return f"learning rate  {config.deepspeed['optimizer']['params']['lr']:g}, constant"
        return f"learning rate  by DeepSpeed's {scheduler['type']}"
    warmup = f"learning rate  {schedule.warmup_steps:,} steps of warm-up to {schedule.max_lr:g},"
    end = f"to {schedule.min_lr:g} at step {schedule.decay_steps:,}"
    if isinstance(schedule, CosineSchedule):
        return f"{warmup} cosine {end}"
    if schedule.cooldown_share == 0:
        return f"{warmup} constant"
    return f"{warmup} constant until step {schedule.cooldown_start:,}, straight line {end}"


def _data(config: Config, dataset: Dataset | None) -> list[str]:
    if dataset is None:
        return [f"data           {config.options.data_root} is not there yet"]
    train = dataset.manifest["splits"]["train"]
    epochs = _tokens(config) / train["tokens"]
    return [
        f"data           {dataset.root}: {train['tokens']:,} tokens in {train['documents']:,}"
        f" documents to train on, read {epochs:.2f} times"
    ]


def _disk(config: Config) -> list[str]:
    parameters = costs_of(config).parameters
    size = checkpoint_bytes(parameters, config.zero_stage, config.precision, config.moments)
    count = _checkpoints(config)
    free, _ = free_space(config.run_dir)
    short = " - NOT ENOUGH: keep fewer with keep_last" if count * size > free else ""
    return [
        f"disk           {count} checkpoint(s) of {size / 1e9:.2f} GB: {count * size / 1e9:.1f} GB"
        f" in {config.run_dir}, {free / 1e9:.1f} GB free{short}"
    ]


def _checkpoints(config: Config) -> int:
    """The most that lie in the run's folder at once."""
    options = config.options
    count = 1
    if options.log_ckpt_every > 0:
        count = math.ceil(options.max_train_steps / options.log_ckpt_every)
    forever = len(options.keep_steps or ())
    count += forever
    if not 0 < options.keep_last < count:
        return count
    if options.keep_every > 0:
        forever += options.max_train_steps // options.keep_every
    # one more while it is being written
    return min(count, options.keep_last + 1 + forever)


def _time(config: Config) -> list[str]:
    speed = config.options.tokens_per_second
    if not speed:
        return [
            "time           unknown without tokens_per_second, which tools/throughput.py measures"
        ]
    hours = _tokens(config) / speed / 3600
    per_step = _tokens_per_step(config)
    steps_of_classes = [
        f"{hours_of_class}h {classes.steps_of(hours_of_class, speed, per_step):,}"
        for hours_of_class in classes.HOURS
    ]
    return [
        (
            f"time           {hours:.2f} hours at {speed:,.0f} tokens/s ({duration(hours * 3600)}),"
            " on one GPU of that rate; steps per class:"
        ),
        "               " + ", ".join(steps_of_classes),
    ]


def _evaluation(config: Config, dataset: Dataset | None) -> list[str]:
    options = config.options
    whole = None  # windows of the split
    if dataset is not None:
        tokens = dataset.manifest["splits"][options.eval_data_split]["tokens"]
        assert options.last_n is not None, "a resolved configuration has it"
        whole = windows(tokens, config.model.seq_len, options.last_n)
    count = whole
    if options.max_eval_steps >= 0:
        most = options.max_eval_steps * options.eval_batch_size
        count = most if whole is None else min(most, whole)
    rows = []
    if options.eval_every > 0:
        # before the first step, and after the last
        times = math.ceil(options.max_train_steps / options.eval_every) + 1
        rows.append(_cost_of_evaluations(config, times, count))
    if options.final_eval:
        rows.append(_cost_of_evaluations(config, 1, whole))
    heads = ["evaluation"] + [""] * len(rows)
    return [f"{head:14} {row}" for head, row in zip(heads, rows)]


def _cost_of_evaluations(config: Config, times: int, count: int | None) -> str:
    """count: windows of each; None: the whole split, whose size is not known."""
    often = plural(times, "time")
    if count is None:
        return f"{often} over the whole split {config.options.eval_data_split!r}"
    seq_len = config.model.seq_len
    size = f"{often} {count:,} windows of {seq_len} tokens"
    if not _tokens(config):
        return size
    # a forward pass alone costs a third
    cost = times * count * seq_len / 3 / _tokens(config)
    return f"{size}: {cost:.1%} of the training's FLOPs"


def _host(config: Config) -> list[str]:
    """Whether a GPU would wait for its host."""
    if config.options.cuda_graph:
        graph = "launches a micro-batch as one CUDA graph (experimental)"
        return [f"host           {graph}: its time is not estimated"]
    batch = config.batch
    seq_len = config.model.seq_len
    speed = config.options.tokens_per_second
    launching = host_time.launching(config, config.zero_stage)
    if launching is None:
        reason = "under torch.compile" if config.model_code is None else "for a model file"
        return [f"host           its time for a micro-batch is not estimated {reason}"]
    about = 1000 * launching
    low = about / host_time.RANGE
    high = about * host_time.RANGE
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


def _waiting(batch: BatchPlan, seq_len: int, speed: float, launching: float) -> str:
    """What a host's `launching` seconds per micro-batch mean for a GPU of `speed` tokens/s."""
    computing = batch.micro_size * seq_len / speed
    digits = 1 if computing < 0.01 else 0
    pace = f"a GPU of {speed:,.0f} tokens/s computes it in {1000 * computing:,.{digits}f} ms"
    if launching <= computing:
        times = computing / launching
        return f"{pace}; one about {times:.2g} times as fast would wait for its host"

    enough = math.ceil(launching * speed / seq_len)
    total = batch.train_batch_size
    bound = f"{pace} and is host-bound: give each GPU at least {enough} sequences per pass"
    if enough > total:
        return f"{bound}, more than train_batch_size {total}"
    if enough > batch.share:
        ranks = max(count for count in divisors(total) if total // count >= enough)
        return f"{bound}; train_batch_size {total} has them for {ranks} GPU(s)"
    fitting = min(size for size in divisors(batch.share) if size >= enough)
    return f"{bound}, --train_micro_batch_size_per_gpu {fitting} or more"
