"""What is known of a run before its ranks connect."""

from pathlib import Path
from typing import Protocol

from gpt.config.run_config import Config
from gpt.data.datasets import Dataset
from gpt.data.streams import Ahead, Streams
from gpt.evaluation import Evaluator
from gpt.locking import FolderLock
from gpt.training.course import Course


class Prepared(Protocol):
    """The facts and parts of a run: a gpt.training.trainer.Trainer has them."""

    config: Config
    kernels: tuple[str, str]  # which, and why
    saved_config: dict  # what config.yaml holds
    dataset: Dataset
    streams: Streams
    batches: Ahead
    evaluator: Evaluator
    final_evaluator: Evaluator  # of the last step
    course: Course
    notices: list[str]
    start_tag: str | None  # of the checkpoint to go on from, on rank 0
    trunk: Path | None  # the checkpoint of another run to branch off from, on rank 0
    lock: FolderLock | None  # of the run's folder, on rank 0
