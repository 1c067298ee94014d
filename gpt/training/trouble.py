"""What a run does when the numbers go wrong: it warns, tries again, leaves batches out, goes back
to a checkpoint, or gives up with all that helps to find out why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from gpt.checkpoint import folders
from gpt.checkpoint.saver import Saver
from gpt.config.run_config import Config
from gpt.data.streams import Streams
from gpt.errors import AgreedError, UserError, in_brief
from gpt.escaping import in_one_line
from gpt.metrics import events
from gpt.metrics.meter import Meter
from gpt.metrics.sinks import Metrics
from gpt.metrics.terminal import Progress
from gpt.training.course import Course
from gpt.wording import first_of

if TYPE_CHECKING:  # it loads DeepSpeed
    from gpt.engine.boundary import Engine
    from gpt.engine.step import StepResult

# fp16 overflows in a row on one batch; a loss scale halves from 2^32 to 1 in 32
MAX_OVERFLOWS = 100
# batches refused in a row, or returns to the same checkpoint, before the run gives up
MAX_LEFT_OUT = 10
DOCUMENTS_SHOWN = 4


@dataclass(frozen=True)
class Attempt:
    """An optimiser step that was tried."""

    number: int  # the step that it is, if it counts
    index: int  # of its batch
    batch: np.ndarray  # this rank's part of that: int64 (accumulation, micro batch, seq_len + 1)
    result: "StepResult"
    loss: float  # mean over the global batch, nats per token
    score: float  # of the loss among those before it: SpikeDetector.score


class Trouble:
    """The policy for losses that leap and gradients that are not finite, of one run. All ranks call
    its methods together.

    load(tag): brings the engine and `course` back to a checkpoint. metrics, progress: where it
    tells what it does.
    """

    def __init__(
        self,
        config: Config,
        course: Course,
        streams: Streams,
        engine: "Engine",
        saver: Saver,
        load: Callable[[str], object],
        meter: Meter,
        metrics: Metrics,
        progress: Progress,
    ):
        self._config = config
        self._policy = config.options.spike_policy
        self._course = course
        self._streams = streams
        self._engine = engine
        self._saver = saver
        self._load = load
        self._meter = meter
        self._metrics = metrics
        self._progress = progress
        self._overflows = 0  # tries of one batch in a row
        self._refused = 0  # batches in a row
        self._returns: dict[str, int] = {}  # {tag: how often the run went back to it}

    @property
    def accept(self) -> Callable[[float], bool] | None:
        """What the engine asks before an update, where the policy is to refuse batches: whether a
        batch may be learnt from, by its mean loss."""
        return self._is_ordinary if self._policy == "skip" else None

    def _is_ordinary(self, loss: float) -> bool:
        return not self._is_spike(self._course.spikes.score(loss))

    def _is_spike(self, score: float) -> bool:
        return score > self._config.options.spike_zscore

    def counts(self, attempt: Attempt) -> bool:
        """Deal with whatever went wrong in a step; returns whether the step counts. If it does not,
        the next one may be the same step again, or an earlier one. Raises AgreedError where the run
        gives up."""
        if not attempt.result.applied:
            self._not_applied(attempt)
            return False
        if self._is_spike(attempt.score):
            if self._policy == "rewind" and self._rewind(attempt):
                return False
            self._warn(attempt)
        self._overflows = 0
        self._refused = 0
        return True

    def _not_applied(self, attempt: Attempt) -> None:
        """The weights were not updated: try again, leave the batch out, go back, or give up."""
        if attempt.result.refused:
            self._leave_out(attempt)
        elif self._config.precision == "fp16":
            self._overflow(attempt)
        elif self._policy == "skip":
            self._leave_out(attempt)
        elif self._policy == "warn" or not self._rewind(attempt):
            self._fail(attempt, f"the gradient is not finite in {self._config.precision}")

    def _overflow(self, attempt: Attempt) -> None:
        """The loss scale was too high: it sinks, and the same batch is tried again."""
        self._overflows += 1
        scale = self._engine.loss_scale
        self._metrics.write(
            {
                "event": events.OVERFLOW,
                "step": attempt.number,
                "loss_scale": scale,
                "in_a_row": self._overflows,
            }
        )
        is_fixed = bool(self._config.deepspeed["fp16"]["loss_scale"])
        if attempt.result.exhausted or is_fixed or self._overflows >= MAX_OVERFLOWS:
            self._fail(
                attempt,
                f"the fp16 gradient overflowed {self._overflows} time(s) in a row, the last time at"
                f" loss scale {scale:g}",
            )

    def _leave_out(self, attempt: Attempt) -> None:
        """Policy skip: the same step again, from the next batch."""
        self._course.left_out = [*self._course.left_out, attempt.index]
        self._refused += 1
        self._write_spike(events.SKIP, attempt)
        self._progress.say(
            f"SPIKE: the loss of batch {attempt.index} is {attempt.loss:.4f} ({attempt.score:.1f}"
            f" deviations from the median): left out of step {attempt.number}"
        )
        if self._refused >= MAX_LEFT_OUT:
            self._fail(attempt, f"{self._refused} batches in a row were left out")

    def _warn(self, attempt: Attempt) -> None:
        self._write_spike(events.SPIKE, attempt)
        self._progress.say(
            f"SPIKE: the loss of step {attempt.number} is {attempt.loss:.4f}, {attempt.score:.1f}"
            " deviations above the median of the last steps"
        )

    def _write_spike(self, kind: str, attempt: Attempt) -> None:
        self._metrics.write(
            {
                "event": kind,
                "step": attempt.number,
                "loss": attempt.loss,
                "zscore": attempt.score,
                "batch": attempt.index,
                "documents": self._documents(attempt.index),
            }
        )

    def _documents(self, index: int) -> list[str]:
        """Names of the documents of a batch; none where they cannot be read any more, which is no
        reason to end a run."""
        try:
            return self._streams.documents(index)
        except UserError as error:
            reason = str(error)
        except OSError as error:
            reason = in_brief(error)
        self._progress.say(
            f"WARNING: which documents batch {index} is made from cannot be told ({reason})"
        )
        return []

    def _rewind(self, attempt: Attempt) -> bool:
        """Policy rewind: load the checkpoint before the batches that led here, and leave them out.
        Returns False where there is no checkpoint yet."""
        course = self._course
        first = attempt.index - self._config.options.rewind_batches + 1
        with self._meter.paused("checkpoint"):
            self._saver.finish()
            tag = self._saver.before(first)
            if tag is None:
                return False
            self._returns[tag] = self._returns.get(tag, 0) + 1
            if self._returns[tag] > MAX_LEFT_OUT:
                self._fail(
                    attempt, f"the run went back to {tag} {MAX_LEFT_OUT} times", search=False
                )
            self._load(tag)
        # those before the next batch have been learnt from, and stay so
        batches = list(range(max(first, course.next_batch), attempt.index + 1))
        course.leave_out(batches)
        if self._engine.world.rank == 0:
            self._go_back(tag)
        self._metrics.write(
            {
                "event": events.REWIND,
                "step": attempt.number,
                "to": course.step,
                "loss": attempt.loss,
                "zscore": attempt.score,
                "batches": batches,
                "documents": [self._documents(index) for index in batches],
            }
        )
        self._metrics.go_back({"step": course.step, **self._meter.axes(course.step)})
        self._progress.rewind(course.step)
        self._progress.say(
            f"SPIKE: the loss of step {attempt.number} is {attempt.loss:.4f} ({attempt.score:.1f}"
            f" deviations from the median): back to step {course.step}, leaving out the batches"
            f" {batches[0]} to {attempt.index}"
        )
        self._overflows = 0
        self._meter.begin_stretch(course.step)
        return True

    def _go_back(self, tag: str) -> None:
        """Have a run that ends now go on from this checkpoint."""
        try:
            folders.go_back(self._saver.folder, tag)
        except OSError as error:  # the next checkpoint takes its place
            self._progress.say(
                f"WARNING: {in_brief(error)}: until the next checkpoint a restart would go on from"
                " where the loss leapt"
            )

    def _fail(self, attempt: Attempt, what: str, search: bool = True) -> NoReturn:
        """Give up. search: whether to look for the first value that is not finite."""
        self._saver.finish()
        place = self._first_nonfinite(attempt.batch if search else None)
        documents = self._documents(attempt.index)
        clauses = [f"step {attempt.number}: {what}"]
        if place:
            clauses.append(f"the first value that is not finite is in {place}")
        if documents:
            names = first_of([*map(in_one_line, documents)], shown=DOCUMENTS_SHOWN)
            made_from = f"{len(documents)} documents ({names})"
            clauses.append(f"batch {attempt.index} is made from {made_from}")
        reason = "; ".join(clauses)
        self._metrics.write(
            {
                "event": events.FAILED,
                "step": self._course.step,
                "reason": reason,
                "documents": documents,
            }
        )
        self._metrics.close()
        self._progress.close()
        latest = "none yet"
        if self._saver.saved_step is not None:
            latest = str(self._saver.folder / folders.tag_of(self._saver.saved_step))
        raise AgreedError(
            f"{reason}; nothing was updated, the latest checkpoint is {latest}: lower max_lr, set"
            " gradient_clipping, or leave batches out with --spike_policy skip or rewind"
        )

    def _first_nonfinite(self, batch: np.ndarray | None) -> str | None:
        """Where the first value that is not finite arises, and on which rank."""
        own = None if batch is None else self._engine.first_nonfinite(batch)
        for rank, place in enumerate(self._engine.world.gather(own)):
            if place:
                return f"{place} on rank {rank}"
        return None
