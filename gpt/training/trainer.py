"""A run of training: what of it can be checked before the ranks connect, and how it ends."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gpt.cluster.failures import Failures
from gpt.cluster.watchdog import Watchdog
from gpt.cluster.world import World
from gpt.compute.costs import costs_of
from gpt.config.identity import CHANGES
from gpt.config.run_config import Config
from gpt.data.datasets import Dataset
from gpt.data.streams import Ahead, Streams
from gpt.errors import AgreedError, AgreedUserError
from gpt.evaluation import Evaluator
from gpt.metrics.running_time import RunningTime
from gpt.metrics.sinks import require_loggers
from gpt.metrics.terminal import say_line
from gpt.training.course import Course
from gpt.training.loop import Loop
from gpt.training.signals import StopRequest
from gpt.training.start import claim, config_to_save, look_at_model

if TYPE_CHECKING:  # it loads DeepSpeed
    from gpt.engine.boundary import Engine


class Trainer:
    """One run of `config` on `dataset`, kept in `config.run_dir`, as one of `world_size` ranks sees
    it.

    Making one checks everything that can be checked before the ranks connect, and writes nothing
    but the run's folder with its lock. Rank 0 alone looks for a checkpoint, so that all go on from
    the same one. Raises UserError.

    kernels: as gpt.kernels.choice.choose found them: which, and why.
    resume: auto, must, never or a checkpoint's tag. allowed: settings that may differ from the
    checkpoint's.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        rank: int,
        world_size: int,
        kernels: tuple[str, str],
        resume: str = "auto",
        allowed: Sequence[str] = (),
    ):
        options = config.options
        batch = config.batch
        seq_len = config.model.seq_len
        self.config = config
        self.kernels = kernels
        self.dataset = dataset
        self.streams = Streams(dataset.split("train"), batch.train_batch_size, seq_len)
        self.batches = Ahead(self.streams, self.streams.rows_of(rank, world_size))
        assert options.last_n is not None, "derived from seq_len where it was not given"
        evaluator_of = partial(
            Evaluator,
            dataset.split(options.eval_data_split),
            dataset.vocab,
            seq_len,
            options.last_n,
            options.eval_batch_size,
            rank=rank,
            world_size=world_size,
            micro_size=batch.micro_size,
        )
        self.evaluator = evaluator_of(max_batches=options.max_eval_steps)
        whole = -1 if options.final_eval else options.max_eval_steps
        self.final_evaluator = evaluator_of(max_batches=whole)
        self.course = Course()
        self.saved_config = config_to_save(config, dataset, kernels[0])
        self.notices = list(config.notices)
        self.start_tag = None
        self.trunk = None
        self.lock = None
        is_finished = False
        if rank == 0:
            require_loggers(options)
            self.notices += costs_of(config).notices
            look_at_model(config, self.notices)
            claimed = claim(config, self.saved_config, resume, allowed, self.notices)
            self.start_tag, self.trunk, began_from, changes, self.lock, is_finished = claimed
            self.saved_config |= {CHANGES: changes}
            passes = (
                batch.train_batch_size * seq_len * options.max_train_steps / self.streams.tokens
            )
            if passes > 1:
                self.notices.append(
                    f"the training data are read {passes:.2f} times: they have"
                    f" {self.streams.tokens:,} tokens"
                )
            if began_from:
                self.saved_config |= {"began_from": began_from}

        self._is_finished = is_finished
        # heard until the process ends; to be closed where that goes on
        self.stop_request: StopRequest | None = None

    def train(self, make_engine: Callable[..., "Engine"], world: World) -> None:
        """Train, evaluate and save until the last step or a request to stop. All ranks call it
        together.

        make_engine: gpt.engine.boundary.Engine. Raises AgreedError where the run cannot go on.
        """
        if world.gather(self._is_finished)[0]:
            self._say_finished(world)
            return
        stop_request = self.stop_request = StopRequest()
        running_time = RunningTime()
        watchdog = Watchdog(world, self.config.options.step_timeout)
        failures = Failures(world, watchdog, self.config.run_dir)
        try:
            Loop(self, make_engine, world, watchdog, stop_request, running_time).run()
        except (AgreedError, AgreedUserError):
            raise
        except Exception as error:
            raise failures.end(error, self.course.step) from error
        finally:
            failures.close()
            watchdog.close()
            running_time.close()
            stop_request.run_is_over()
            self.batches.close()

    def _say_finished(self, world: World) -> None:
        """Of a run whose checkpoints were removed once it was finished."""
        self.batches.close()
        if world.rank == 0:
            say_line(
                f"{self.config.run_dir} was finished at step"
                f" {self.config.options.max_train_steps}, and its checkpoints were removed since:"
                " nothing to do",
                sys.stdout,
            )
