"""What a run tells of its way: events for its metrics, lines for a person."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.compute import hardware
from gpt.config.identity import ARGUMENTS_OF, changes_of, code_in_words, digest
from gpt.config.run_config import Config
from gpt.kernels import attention
from gpt.metrics import events
from gpt.metrics.meter import Meter
from gpt.metrics.sinks import Metrics
from gpt.metrics.terminal import Progress, announcement, evaluation_line
from gpt.training.course import Course, is_due
from gpt.training.signals import LAUNCHER_SECONDS

if TYPE_CHECKING:  # it loads DeepSpeed
    from gpt.engine.boundary import Engine


class Reports:
    """Tells of one run that is on `course`. All ranks call its methods, and rank 0's are heard."""

    def __init__(
        self,
        config: Config,
        course: Course,
        engine: "Engine",
        meter: Meter,
        metrics: Metrics,
        progress: Progress,
    ):
        self._config = config
        self._course = course
        self._engine = engine
        self._world = engine.world
        self._meter = meter
        self._metrics = metrics
        self._progress = progress

    def open(self, saved_config: dict, resumes: bool) -> None:
        """From now on events are written. saved_config: what config.yaml holds."""
        step = self._course.step
        kept = {"step": step, **self._meter.axes(step)} if resumes else None
        self._metrics.open(self._config.run_dir, self._config, saved_config, kept)
        self._train_tokens = saved_config["dataset"]["train"]["tokens"]

    def close(self) -> None:
        self._progress.close()
        self._metrics.close()

    def begin(
        self,
        notices: Sequence[str],
        kernels: tuple[str, str],
        saved_config: Mapping[str, Any],
        resumes: bool,
    ) -> None:
        """What is about to run. kernels: which, and why. saved_config: what config.yaml holds."""
        config = self._config
        step = self._course.step
        for notice in notices:
            self._progress.say(f"notice: {notice}")
        if resumes:
            self._progress.say(f"resuming {config.run_dir} after step {step}")
            changed = [entry for entry in changes_of(saved_config) if entry["step"] == step]
            facts = {**_who(saved_config), "changed": changed}
            self._metrics.write({"event": events.RESUME, "step": step, **facts})
        environment = {**_who(saved_config), **self._environment(saved_config)}
        self._metrics.write({"event": events.START, "step": step, **environment})
        device = self._world.device.type
        backend = self._attention_backend()
        root = saved_config["dataset"]["root"]
        parameters = saved_config["parameters"]
        self._progress.say(announcement(config, parameters, device, root, kernels, backend))

    def _environment(self, saved_config: Mapping[str, Any]) -> dict:
        """What runs where, for whoever reads the metrics."""
        config = self._config
        meter = self._meter
        return {
            "parameters": saved_config["parameters"],
            "tokens_per_step": meter.tokens_per_step,
            "flops_per_token": meter.flops_per_token,
            "max_train_steps": config.options.max_train_steps,
            "ranks": self._world.size,
            "precision": config.precision,
            "zero_stage": config.zero_stage,
            "device": meter.device,
            "processor": hardware.processor(),
            "peak_flops": meter.peak_flops,
            "kernels": saved_config["kernels"],
            "command": shlex.join(sys.argv),
            "host": platform.node(),
            "versions": hardware.versions(),
        }

    def _attention_backend(self) -> str:
        """The one that torch takes here."""
        model = self._config.model
        shape = (self._config.batch.micro_size, model.n_heads, model.seq_len, model.head_dim)
        dtype = hardware.DTYPES[self._config.precision]
        return attention.backend(shape, dtype, self._world.device)

    def advance(self, norms: dict | None, activations: dict | None) -> None:
        """The run is a step further. norms, activations: where they were measured."""
        step = self._course.step
        self._progress.advance()
        if norms is not None:
            self._metrics.write({"event": events.NORMS, "step": step, **norms})
        if activations is not None:
            self._metrics.write({"event": events.ACTIVATIONS, "step": step, **activations})

    def train(self, loss: float, lr: float, grad_norm: float) -> None:
        """The step that was just made: a line of metrics and one on the terminal, where due."""
        options = self._config.options
        meter = self._meter
        step = self._course.step
        speed = meter.tokens_per_second(step)
        if is_due(step, options.log_metrics_every):
            self._metrics.write(
                {
                    "event": events.TRAIN,
                    "step": step,
                    **meter.axes(step),
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "loss_scale": self._engine.loss_scale,
                    "tokens": meter.tokens_until(step),
                    **meter.costs(speed),
                }
            )
        if is_due(step, options.log_terminal_every, options.max_train_steps):
            steps_left = options.max_train_steps - step
            seconds_left = steps_left * meter.tokens_per_step / speed
            self._progress.report(step, loss, lr, speed, seconds_left)
            meter.begin_stretch(step)

    def evaluation(self, kind: str, scores: dict, of_tokens: int, seconds: float) -> None:
        """kind: events.EVAL or FINAL_EVAL. scores: of gpt.evaluation.summary. of_tokens: those that
        the whole split would score."""
        options = self._config.options
        step = self._course.step
        split = options.eval_data_split
        self._metrics.write(
            {
                "event": kind,
                "step": step,
                "split": split,
                **self._meter.axes(step),
                **scores,
                "of_tokens": of_tokens,
                "passes": self._meter.tokens_until(step) / self._train_tokens,
                "seconds": seconds,
            }
        )
        first_weights = "as given" if options.init_from else "untrained"
        self._progress.say(evaluation_line(step, split, of_tokens, scores, first_weights))

    def suspended(self, seconds: float) -> None:
        """This process stood still for so long."""
        step = self._course.step
        self._metrics.write({"event": events.SUSPENDED, "step": step, "seconds": seconds})
        self._progress.say(
            f"notice: this process was suspended for {seconds:.0f} s until step {step}, which the"
            " hours of training leave out"
        )

    def lost_folder(self, what: str) -> None:
        """what: became of the run's folder, in words."""
        self._progress.say(
            f"WARNING: {what}; move it back, for nothing more can be saved until it has its name"
        )

    def data_repeats(self) -> None:
        """The step that was just made is the first one with tokens that were trained on before."""
        self._progress.say(
            f"notice: training data repeat from step {self._course.step} on: the shortest of"
            f" {self._config.batch.train_batch_size} streams begins again"
        )

    def nothing_to_do(self) -> None:
        self._progress.close()
        self._progress.say(
            f"{self._config.run_dir} is at step {self._course.step} already, and max_train_steps is"
            f" {self._config.options.max_train_steps}: nothing to do"
        )

    def failed(self, reason: str, diverged: bool) -> None:
        """The run is at its end, and it is no good one. diverged: its weights, or what they give,
        are no numbers any more."""
        self._metrics.write(
            {
                "event": events.FAILED,
                "step": self._course.step,
                "reason": reason,
                "diverged": diverged,
            }
        )
        self.close()

    def done(self, checkpoint: Path) -> None:
        self.close()
        self._progress.say(f"done: {self._course.step} steps, checkpoint {checkpoint}")

    def stopped(self, reason: str, seconds: float | None, launchers_part: str | None) -> None:
        """The run ends before its last step. seconds: since this process was asked to stop.
        launchers_part: what its launcher may add, in a sentence."""
        step = self._course.step
        self._progress.close()
        self._metrics.write(
            {"event": events.STOPPED, "step": step, "reason": reason, "seconds": seconds}
        )
        self._metrics.close()
        by = f"by {reason}" if reason.startswith("SIG") else f"since {reason},"
        steps = f"{step} of {self._config.options.max_train_steps}"
        line = f"stopped {by} and saved after step {steps}: the same command goes on"
        if seconds is not None and seconds >= LAUNCHER_SECONDS / 2:
            launchers = f"launchers wait {LAUNCHER_SECONDS} s before they kill"
            line += f"; NOTE: that took {seconds:.0f} s, and {launchers}"
        self._progress.say(line)
        if launchers_part:
            self._progress.say(f"notice: {launchers_part}")


def _who(saved_config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the run from others: the same in the events of its seeds, but for the seed."""
    code = saved_config["code"]
    return {
        "identity": digest(saved_config),
        "variant": saved_config["run"]["gpt"].get("variant"),
        "seed": saved_config["run"]["gpt"]["seed"],
        "code": {name: code[name] for name in ("hash", "commit", "dirty")},
        **{file: code_in_words(saved_config.get(file)) for file in ARGUMENTS_OF},
    }
