"""Where a run is, and which batches led there."""

from dataclasses import dataclass, field

from gpt.checkpoint.manifest import Manifest
from gpt.config.options import Options
from gpt.data.streams import batch_index
from gpt.training.spikes import SpikeDetector


@dataclass
class Course:
    """How far a run has come: what a checkpoint keeps of it beside the weights."""

    step: int = 0  # optimiser steps completed
    evaluated_step: int | None = None  # the step of the last evaluation
    evaluated_whole: bool = False  # whether that scored the whole split
    left_out: list[int] = field(default_factory=list)  # batches that nothing was learnt from
    spikes: SpikeDetector = field(default_factory=SpikeDetector)

    @property
    def next_batch(self) -> int:
        """Index of the batch that the next step is made from."""
        return batch_index(self.step, self.left_out)

    def is_final_evaluation(self, options: Options) -> bool:
        """Whether an evaluation of the present weights is the one that scores the whole split."""
        return options.final_eval and self.step == options.max_train_steps

    def owes_evaluation(self, options: Options) -> bool:
        """Whether the present weights shall be evaluated, and have not been."""
        is_evaluated = self.evaluated_step == self.step
        if self.is_final_evaluation(options):
            return not (is_evaluated and self.evaluated_whole)
        return self.owes_part(options)

    def is_finished(self, options: Options) -> bool:
        """Whether nothing of the run is left to do."""
        return self.step >= options.max_train_steps and not self.owes_evaluation(options)

    def owes_part(self, options: Options) -> bool:
        """Whether they shall be evaluated as on the way, and have not been."""
        is_evaluated = self.evaluated_step == self.step
        return is_due(self.step, options.eval_every, options.max_train_steps) and not is_evaluated

    def leave_out(self, batches: list[int]) -> None:
        # a new list: a checkpoint that is being written holds the one before
        self.left_out = sorted({*self.left_out, *batches})

    def manifest(self, seconds: float, tokens: int) -> Manifest:
        """What a checkpoint tells of this course, which took so many seconds and tokens."""
        return Manifest(
            step=self.step,
            evaluated_step=self.evaluated_step,
            evaluated_whole=self.evaluated_whole,
            left_out=self.left_out,
            losses=self.spikes.losses,
            seconds=seconds,
            tokens=tokens,
        )

    def go_on_from(self, manifest: Manifest) -> None:
        """Take up the course of a checkpoint. What was left out since stays so."""
        self.step = manifest.step
        self.evaluated_step = manifest.evaluated_step
        self.evaluated_whole = manifest.evaluated_whole
        self.leave_out(manifest.left_out)
        self.spikes = SpikeDetector(manifest.losses)


def is_due(step: int, every: int, last_step: int | None = None) -> bool:
    """Whether something is done after `step`: at every `every`-th, and at the last; never where
    `every` is 0 or less."""
    return every > 0 and (step % every == 0 or step == last_step)
