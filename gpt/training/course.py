"""Where a run is, and which batches led there."""

from dataclasses import dataclass, field

from gpt.checkpoint.manifest import Manifest
from gpt.data.streams import batch_index
from gpt.training.spikes import SpikeDetector


@dataclass
class Course:
    """How far a run has come: what a checkpoint keeps of it beside the weights."""

    step: int = 0  # optimiser steps completed
    evaluated_step: int | None = None  # the step of the last evaluation
    left_out: list[int] = field(default_factory=list)  # batches that nothing was learnt from
    spikes: SpikeDetector = field(default_factory=SpikeDetector)

    @property
    def next_batch(self) -> int:
        """Index of the batch that the next step is made from."""
        return batch_index(self.step, self.left_out)

    def leave_out(self, batches: list[int]) -> None:
        # a new list: a checkpoint that is being written holds the one before
        self.left_out = sorted({*self.left_out, *batches})

    def go_on_from(self, manifest: Manifest) -> None:
        """Take up the course of a checkpoint. What was left out since stays so."""
        self.step = manifest.step
        self.evaluated_step = manifest.evaluated_step
        self.leave_out(manifest.left_out)
        self.spikes = SpikeDetector(manifest.losses)
