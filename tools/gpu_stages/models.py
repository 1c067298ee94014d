"""How fast are training steps without DeepSpeed, beside the same model written by others?"""

import gc
import math
import statistics
import time

import torch

from gpt import model as gpt_model
from gpt.model import GPT
from tools.benchmarks.plain_gpt import UsualGPT
from tools.gpu_stages.profiled import profiled

ACCUMULATION = 2
APART = 0.2  # nats between the losses of models in bf16
WARM_UP_SECONDS = 120  # after which no further model is compiled
SWEEP = {"small": (8, 16, 32, 64, 128), "medium": (8, 16, 32, 64, 128)}


class Steps:
    """A model with its optimizer in bf16; a call is one step of ACCUMULATION micro-batches."""

    def __init__(self, lab, model, shape, rows):
        self.model = model.to(lab.device, torch.bfloat16)
        self.batch = lab.tokens(ACCUMULATION, rows, shape.seq_len + 1, vocab_size=shape.vocab_size)
        self.tokens = ACCUMULATION * rows * shape.seq_len
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.loss = None

    def __call__(self):
        for micro in self.batch:
            self.loss = self.model(micro[:, :-1], micro[:, 1:])
            (self.loss / ACCUMULATION).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _makers(lab, shape):
    """(name, how to make the model), those first that tell most."""
    backend = {"backend": "aot_eager"} if lab.dry else {}  # compiling for a CPU takes minutes
    if lab.dry:
        gpt_model.COMPILE_OPTIONS = {"default": backend}
    yield "ours, eager", lambda: GPT(shape, 0, kernels=lab.kernels)
    yield (
        "written plainly, whole model under torch.compile",
        lambda: torch.compile(UsualGPT(GPT(shape)), **backend),
    )
    yield "written plainly, eager", lambda: UsualGPT(GPT(shape))
    yield (
        "ours, blocks under torch.compile",
        lambda: GPT(shape, 0, kernels=lab.kernels, compile="default"),
    )
    yield "ours, eager, plain torch kernels", lambda: GPT(shape, 0, kernels="torch")
    yield "transformers' GPT2, eager", lambda: _transformers(shape)


def _transformers(shape):
    from tools.benchmarks.step import transformers_gpt2

    return transformers_gpt2(shape, torch.device("cpu"), torch.bfloat16)


def whole_steps(lab):
    """In turn, in one process, so that whatever else happens on the machine happens to all."""
    shape, rows = lab.shape("small"), lab.rows("small")
    made = {}
    for name, make in _makers(lab, shape):
        began = lab.seconds()
        with lab.attempt("models", must=name.startswith("ours, eager"), model=name):
            if "torch.compile" in name and began > WARM_UP_SECONDS:
                raise TimeoutError("no time was left to compile it")
            steps = Steps(lab, make(), shape, rows)
            steps(), steps()
            lab.wait()
            made[name] = steps, lab.seconds() - began
        gc.collect()
        lab.forget_peak()
    lab.until_free()
    times = _in_turn(lab, {name: steps for name, (steps, _) in made.items()})
    for name, (steps, ready) in made.items():
        seconds = statistics.median(times[name])
        rate = steps.tokens / seconds
        lab.row(
            "models",
            model=name,
            micro_batch=rows,
            ms=1e3 * seconds,
            tokens_per_second=rate,
            mfu=lab.mfu(rate, shape),
            tokens_on_paper=(
                lab.tokens_on_paper(shape, rows, ACCUMULATION) if name == "ours, eager" else None
            ),
            **_cost(lab, steps, seconds),
            ready_seconds=ready,
            rounds_ms=[round(1e3 * t, 3) for t in times[name]],
        )
    losses = {
        name: steps.loss.item() for name, (steps, _) in made.items() if "transformers" not in name
    }
    lab.check("models in turn", "", *compared(losses))


def compared(losses):
    """(faults, what was seen) of models' losses after the same steps."""
    if not losses:
        return ["no model made a step"], ""
    finite = all(map(math.isfinite, losses.values()))  # max and min would pass over a NaN
    apart = max(losses.values()) - min(losses.values()) if finite else math.nan
    near = apart < APART
    faults = [] if near else [f"{name}: loss {loss:.4f}" for name, loss in losses.items()]
    return faults, f"losses after the same steps {apart:.4f} nats apart"


def _in_turn(lab, models):
    times = {name: [] for name in models}
    for round_ in range(2 if lab.dry else 5):
        for name, steps in list(models.items())[:: 1 if round_ % 2 else -1]:
            steps()
            times[name].append(lab.wall_seconds(steps, 1 if lab.dry else 4))
    return times


def _cost(lab, steps, seconds):
    """Of a step: peak memory beside what lasts, launches, the share in which the device idles."""
    found = {"peak_bytes": None, "launches": None, "idle": None}
    if not lab.dry:
        lab.forget_peak()
        held = torch.cuda.memory_allocated()
        steps()
        lab.wait()
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - held
    seen = profiled(lab, steps)
    return found | {
        "launches": seen.launches,
        "idle": None if lab.dry else max(0.0, 1 - seen.busy_ms / 1e3 / seconds),
    }


def sweep(lab):
    """Steps of two shapes by the sequences of a micro-batch, until memory ends."""
    for preset, sizes in SWEEP.items():
        shape = lab.shape(preset)
        for rows in (1, 2) if lab.dry else sizes:
            began = time.monotonic()
            gc.collect()
            lab.forget_peak()
            with lab.attempt("sweep", must=True, preset=preset, micro_batch=rows):
                steps = Steps(lab, GPT(shape, 0, kernels=lab.kernels), shape, rows)
                steps(), steps()
                rate = steps.tokens / lab.wall_seconds(steps, 1 if lab.dry else 5)
                peak = None if lab.dry else torch.cuda.max_memory_allocated()
                lab.row(
                    "sweep",
                    preset=preset,
                    micro_batch=rows,
                    tokens_per_second=rate,
                    mfu=lab.mfu(rate, shape),
                    tokens_on_paper=lab.tokens_on_paper(shape, rows, ACCUMULATION),
                    peak_bytes=peak,
                    seconds=time.monotonic() - began,
                )
            steps = None
