"""What a run shows on the terminal."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from gpt import standard_streams
from gpt.config.run_config import Config
from gpt.kernels.processor import advice_on_bf16
from gpt.wording import duration


def say_line(text: str, stream: TextIO) -> None:
    # a log on a full disk, a reader that has gone: no reason to end a run
    with suppress(OSError):
        print(text, file=stream, flush=True)


class Progress:
    """What a person watching rank 0 sees: a bar on a terminal, plain lines in a log. The other
    ranks get an object that shows nothing. Before `start` there is no bar."""

    def __init__(self, last_step: int, active: bool):
        self._active = active
        self._last_step = last_step
        self._bar: tqdm | None = None

    def start(self, step: int) -> None:
        """The run goes on after `step`."""
        if self._active and sys.stderr.isatty():
            self._bar = tqdm(
                file=standard_streams.obeyed(sys.stderr),
                total=self._last_step,
                initial=step,
                unit="step",
                dynamic_ncols=True,
                leave=True,
            )

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def rewind(self, step: int) -> None:
        """The run went back to an earlier step."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)
        elif self._active:
            say_line(text, sys.stdout)

    def report(
        self, step: int, loss: float, lr: float, tokens_per_second: float, seconds_left: float
    ) -> None:
        text = f"loss {loss:.4f}  lr {lr:.2e}  {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        width = len(str(self._last_step))
        remaining = duration(seconds_left)
        self.say(f"step {step:>{width}}/{self._last_step}  {text}  ETA {remaining}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def announcement(
    config: Config,
    parameters: int,
    device: str,
    data_root: Path | str,
    kernels: tuple[str, str],
    attention: str,
) -> str:
    """What is about to run. parameters: the module's. device: cpu or cuda. kernels: which, and why.
    attention: its backend."""
    model = config.model
    batch = config.batch
    which_kernels, why = kernels
    engine = f"{config.precision}, ZeRO stage {config.zero_stage}, {batch.world_size} x {device}"
    micro = f"micro batch {batch.micro_size}, accumulation {batch.accumulation}"
    tokens = f"{batch.train_batch_size} x {model.seq_len} tokens a step ({micro}) from {data_root}"
    compiled = f"compile: {config.options.compile}"
    if config.options.cuda_graph:
        compiled += ", cuda_graph: experimental"
    whose = f" of {config.model_code}" if config.model_code else ""
    if config.optimizer_code:
        engine += f", optimizer of {config.optimizer_code}"
    advice = advice_on_bf16(config.precision) if device == "cpu" else None
    remark = f"; {advice}" if advice else ""
    return (
        f"{config.run_dir}: {parameters:,} parameters{whose}, {engine}; {tokens};"
        f" kernels: {which_kernels} ({why}), attention: {attention}, {compiled}{remark}"
    )


def evaluation_line(step: int, split: str, of_tokens: int, scores: dict, first_weights: str) -> str:
    """of_tokens: those that the whole split would score. scores: of gpt.evaluation.summary.
    first_weights: what those of step 0 are."""
    weights = "" if step else f" ({first_weights})"
    scored = f"{scores['tokens']:,} of {of_tokens:,} tokens"
    if scores["tokens"] == of_tokens:
        scored = f"all {of_tokens:,} tokens"
    loss = f"loss {scores['loss']:.4f}"
    perplexity = f"normalised perplexity {scores['normalised_ppl']:.4f}"
    bits = f"bits per byte {scores['bits_per_byte']:.4f}"
    return f"eval after step {step}{weights} on {split} ({scored}): {loss}  {perplexity}  {bits}"
