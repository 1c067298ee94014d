"""The training loop: load, step, evaluate, save, stop."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from gpt.architecture.architecture import Architecture, build
from gpt.architecture.language_model import LanguageModel
from gpt.checkpoint import folders, warm_start
from gpt.checkpoint.code_files import keep_code
from gpt.checkpoint.saver import Saver
from gpt.cluster.watchdog import Watchdog
from gpt.cluster.world import World
from gpt.config.identity import CHANGES
from gpt.config.saved import CONFIG, write_config
from gpt.errors import AgreedError, AgreedUserError, UserError, in_brief
from gpt.evaluation import Evaluator, Tally, summary
from gpt.locking import is_locked_by
from gpt.metrics import events
from gpt.metrics.activations import ActivationStatistics
from gpt.metrics.meter import Meter
from gpt.metrics.running_time import RunningTime
from gpt.metrics.sinks import Metrics
from gpt.metrics.terminal import Progress
from gpt.training import run_documents
from gpt.training.course import is_due
from gpt.training.prepared import Prepared
from gpt.training.reports import Reports
from gpt.training.run_folder import where_it_went
from gpt.training.signals import StopRequest
from gpt.training.start import require_on_all_hosts, require_one_folder, require_same_constants
from gpt.training.trouble import Attempt, Trouble

if TYPE_CHECKING:  # it loads DeepSpeed
    from gpt.engine.boundary import Engine
    from gpt.engine.step import StepResult

# of batch 0, whose loss is kept with every checkpoint
PROBE_ROWS = 2
PROBE_TOKENS = 32


class Loop:
    """The steps of a run whose ranks are connected.

    Making one makes the engine, and loads the checkpoint that rank 0 found.
    """

    def __init__(
        self,
        prepared: Prepared,
        make_engine: Callable[..., "Engine"],
        world: World,
        watchdog: Watchdog,
        stop_request: StopRequest,
        running_time: RunningTime,
    ):
        config = prepared.config
        options = config.options
        token = prepared.lock and prepared.lock.token
        start = prepared.start_tag, prepared.trunk, token
        self._start_tag, trunk, token = world.gather(start)[0]
        require_one_folder(config.run_dir, token, world)
        self._config = config
        self._saved_config = prepared.saved_config
        self._course = prepared.course
        self._batches = prepared.batches
        self._evaluator = prepared.evaluator
        self._final_evaluator = prepared.final_evaluator
        self._dataset = prepared.dataset
        self._first_repeat = prepared.streams.first_repeat
        self._notices = prepared.notices
        self._world = world
        self._kernels = prepared.kernels
        self._watchdog = watchdog
        self._stop_request = stop_request  # of this process
        self._stop_reason: str | None = None  # what the ranks agreed to stop for
        self._lock = prepared.lock
        self._is_unscored = False  # whether the last evaluation gave no finite loss

        model = build(config, prepared.kernels[0])
        if isinstance(model, LanguageModel):
            require_same_constants(model, world)
        self._engine = make_engine(model, config, world, model.initial_weights(options.seed))
        self._notices += self._engine.notices
        metrics = Metrics(active=world.rank == 0)
        progress = Progress(options.max_train_steps, active=world.rank == 0)
        self._saver = Saver(
            config,
            prepared.saved_config,
            prepared.dataset,
            self._engine,
            world,
            lambda: self._lock.holds if self._lock else is_locked_by(config.run_dir, token),
            metrics.write,
            progress.say,
        )
        probe_rows = range(min(PROBE_ROWS, config.batch.train_batch_size))
        self._probe = prepared.streams.batch(0, probe_rows)[:, : PROBE_TOKENS + 1]
        seconds = self._begin_weights(trunk)
        progress.start(self._course.step)
        changes = world.gather(prepared.saved_config[CHANGES])[0]
        self._meter = Meter(config, world, seconds, changes, running_time)
        self._reports = Reports(config, self._course, self._engine, self._meter, metrics, progress)
        self._trouble = Trouble(
            config,
            self._course,
            prepared.streams,
            self._engine,
            self._saver,
            self._load,
            self._meter,
            metrics,
            progress,
        )

    def _begin_weights(self, trunk: Path | None) -> float:
        """Bring the engine to where the run begins or goes on; returns the seconds of training
        until then."""
        if self._start_tag:
            return self._load(self._start_tag)
        seconds = self._branch_off(trunk) if trunk else 0.0
        init_from = self._config.options.init_from
        if init_from:
            weights = warm_start.state(init_from, Architecture.of(self._config))
            self._engine.adopt(weights, self._engine.loss_scale)
            self._notices.append(f"the first weights are those of {init_from}")
        return seconds

    def _load(self, tag: str) -> float:
        """Go on from a checkpoint: its weights, and where the run was; returns the seconds of
        training until then."""
        manifest = self._saver.load(self._saver.folder / tag, self._probe, self._notices)
        self._course.go_on_from(manifest)
        return manifest.seconds

    def _branch_off(self, trunk: Path) -> float:
        """Begin where another run was; returns the seconds of training until then."""
        require_on_all_hosts(trunk, self._world)
        manifest = self._saver.load(trunk, self._probe, self._notices)
        self._course.go_on_from(manifest)
        # of the trunk, whose evaluations may be others
        self._course.evaluated_step = None
        self._course.evaluated_whole = False
        self._notices.append(
            f"branching off from {trunk}: of {self._config.options.max_train_steps} steps the"
            f" first {manifest.step} are that run's"
        )
        return manifest.seconds

    def run(self) -> None:
        """Raises AgreedError where the run cannot go on."""
        options = self._config.options
        course = self._course
        last_step = options.max_train_steps
        if self._start_tag and course.is_finished(options):
            self._reports.nothing_to_do()
            return
        self._open()
        self._agree()
        self._meter.start(course.step)
        if course.owes_evaluation(options):
            self._evaluate()
        while course.step < last_step and not self._stop_reason:
            if not self._train_step():
                continue
            # an evaluation may take long, and end badly: what was learnt is kept before
            if self._is_save_due():
                self._save()
            if course.owes_evaluation(options):
                self._evaluate()
            self._tell_suspension()
        self._saver.finish()
        if self._saver.saved_step != course.step:
            self._save()
            self._saver.finish()
        self._end()

    def _open(self) -> None:
        """Write the run's files, and say what is about to run. Raises AgreedUserError where they
        cannot be written."""
        hindrance = self._world.gather(self._begin_files())[0]
        if hindrance is not None:
            raise AgreedUserError(f"{hindrance}; nothing was trained")
        self._reports.begin(self._notices, self._kernels, self._saved_config, bool(self._start_tag))

    def _tell_suspension(self) -> None:
        seconds = self._meter.new_suspension()
        if seconds:
            self._reports.suspended(seconds)

    def _begin_files(self) -> str | None:
        """Write the run's files, on rank 0; returns why they cannot be written."""
        config = self._config
        try:
            if self._lock is not None:
                if not self._lock.holds:
                    return where_it_went(config.run_dir, self._lock)
                write_config(config.run_dir / CONFIG, self._saved_config)
                self._saver.folder.mkdir(exist_ok=True)
                keep_code(config.run_dir, config.own_code)
                run_documents.keep(config.run_dir, self._dataset, config.options.eval_data_split)
                if self._start_tag:
                    folders.go_back(self._saver.folder, self._start_tag)
            self._reports.open(self._saved_config, bool(self._start_tag))
        except OSError as error:
            return f"{in_brief(error)}: make room there, or name another --run_dir"
        except UserError as error:
            return str(error)
        return None

    def _end(self) -> None:
        """Say how the run ended. Raises AgreedError where its last steps could not be saved, or its
        weights give no number any more."""
        options = self._config.options
        step = self._course.step
        saver = self._saver
        if saver.saved_step != step or self._is_unscored:
            self._require_numbers()
        if saver.saved_step != step:
            self._fail(
                f"the last checkpoint could not be written to {saver.folder} ({saver.failure});"
                f" {self._how_to_go_on()}"
            )
        if self._course.is_finished(options):
            folder = self._config.run_dir
            if self._lock is not None and not self._lock.holds:
                folder = self._lock.place or folder
            self._reports.done(folders.of_run(folder) / folders.tag_of(step))
        else:
            assert self._stop_reason is not None, "nothing else ends a run early"
            self._reports.stopped(
                self._stop_reason,
                self._stop_request.seconds_ago(),
                self._stop_request.launchers_part(self._stop_reason),
            )

    def _require_numbers(self) -> None:
        """Raise AgreedError where the weights, or what they give, are no numbers any more."""
        places = self._world.gather(self._engine.first_nonfinite_state())
        place = next((place for place in places if place is not None), None)
        problem = None
        if place is not None:
            problem = f"{place} is not finite"
        elif self._is_unscored:
            problem = f"the loss on {self._config.options.eval_data_split} is not finite"
        elif not math.isfinite(self._engine.probe(self._probe)):
            problem = "the loss on the probe batch is not finite"
        if problem is not None:
            saved_step = self._saver.saved_step
            latest = "none" if saved_step is None else f"that of step {saved_step}"
            self._fail(
                f"the run has diverged: after step {self._course.step} {problem}; the latest"
                f" checkpoint is {latest}: lower max_lr, or set gradient_clipping, in another"
                " --run_dir",
                diverged=True,
            )

    def _fail(self, reason: str, diverged: bool = False) -> NoReturn:
        self._reports.failed(reason, diverged)
        raise AgreedError(reason)

    def _how_to_go_on(self) -> str:
        """After a last save that failed, as rank 0 sees it."""
        saved_step = self._saver.saved_step or 0
        if self._lock is not None and not self._lock.holds:
            place = where_it_went(self._config.run_dir, self._lock)
            return f"{place}, with the run as of step {saved_step}"
        return f"mend that, and the same command goes on from step {saved_step}"

    def _agree(self) -> None:
        """What the ranks tell each other after every step: whether any of them was asked to stop,
        and whether all are ready to take a save further."""
        sums = self._world.sum(self._state())
        self._act_on(*sums.tolist())

    def _agree_on(self, result: "StepResult") -> tuple[float, float]:
        """The same after a step; returns its mean loss over all ranks, and its gradient norm. All
        of it comes from the device in one transfer, the one that is waited for."""
        sums = self._world.sum(torch.cat([self._state(), result.loss[None]]))
        figures = torch.cat([sums, result.grad_norm[None]]).tolist()
        stop_requests, ready, loss, grad_norm = figures
        self._act_on(stop_requests, ready)
        return loss / self._world.size, grad_norm

    def _state(self) -> torch.Tensor:
        """This rank's part of what `_act_on` gets."""
        return self._world.tensor([self._stop_request.reason is not None, self._saver.ready])

    def _act_on(self, stop_requests: float, ready: float) -> None:
        """Both are numbers of ranks."""
        if stop_requests and not self._stop_reason:
            reasons = self._world.gather(self._stop_request.reason)
            self._stop_reason = next(reason for reason in reasons if reason)
            self._stop_request.heeded()
        if ready == self._world.size:
            self._saver.advance()

    def _train_step(self) -> bool:
        """Try one optimiser step; returns whether the run is a step further."""
        config = self._config
        options = config.options
        course = self._course
        number = course.step + 1
        index = course.next_batch
        want_norms = is_due(number, options.log_grads_every)
        statistics = None
        if is_due(number, options.log_activations_every):
            statistics = ActivationStatistics(self._engine.module)

        self._watchdog.progress(f"reading the batch of step {number}")
        self._meter.mark("other")
        batch = self._batches.batch(index)
        batch = batch.reshape(config.batch.accumulation, config.batch.micro_size, -1)
        self._meter.mark("data")

        lr = self._engine.lr
        result = self._engine.step(batch, want_norms, self._trouble.accept, self._mark, statistics)
        loss, grad_norm = self._agree_on(result)
        self._meter.mark("other")
        self._meter.settle()

        score = course.spikes.score(loss)
        if not self._trouble.counts(Attempt(number, index, batch, result, loss, score)):
            return False
        course.spikes.add(loss)
        course.step = number
        activations = statistics.summary(self._world) if statistics else None
        if index == self._first_repeat:
            self._reports.data_repeats()
        self._reports.advance(result.norms, activations)
        self._reports.train(loss, lr, grad_norm)
        return True

    def _mark(self, part: str) -> None:
        """A part of a micro-batch is done."""
        self._meter.mark(part)
        if part == "step":
            self._watchdog.progress(f"computing step {self._course.step + 1}")
            self._watchdog.first_micro_batch_done()

    def _evaluate(self) -> None:
        """Evaluate the present weights, as far as that is due; a request to stop ends it, and it is
        made up for when the run goes on.

        After the last step there may be two evaluations: of the part of the split that the others
        scored, too, so that one curve holds the same, and of the whole.
        """
        options = self._config.options
        course = self._course
        if course.owes_part(options):
            self._score(events.EVAL, self._evaluator)
        if course.owes_evaluation(options) and not self._stop_reason:
            self._score(events.FINAL_EVAL, self._final_evaluator)

    def _score(self, kind: str, evaluator: Evaluator) -> None:
        course = self._course
        with self._meter.paused("eval"):
            began = time.perf_counter()
            tally = evaluator.run(self._engine.module, self._world.device, self._goes_on)
            if tally is None:
                return
            sums = self._world.sum(self._world.tensor(tally.values())).tolist()
            scores = summary(Tally.from_values(sums))
            of_tokens = len(evaluator.split.tokens)
            self._reports.evaluation(kind, scores, of_tokens, time.perf_counter() - began)
            course.evaluated_step = course.step
            course.evaluated_whole = kind == events.FINAL_EVAL
            self._is_unscored = not math.isfinite(scores["loss"])
            # weights that give no number are evaluated again, should the run go on from there
            if not self._is_unscored:
                self._saver.note_evaluation(course.step, course.evaluated_whole)

    def _goes_on(self) -> bool:
        """Between two batches of an evaluation: whether to go on."""
        self._watchdog.progress(f"evaluating after step {self._course.step}")
        self._agree()
        return not self._stop_reason

    def _is_save_due(self) -> bool:
        options = self._config.options
        step = self._course.step
        is_last = step == options.max_train_steps
        return is_last or step in (options.keep_steps or ()) or is_due(step, options.log_ckpt_every)

    def _save(self) -> None:
        course = self._course
        if self._lock is not None and not self._lock.holds:
            self._reports.lost_folder(where_it_went(self._config.run_dir, self._lock))
        with self._meter.paused("checkpoint"):
            self._watchdog.progress(f"saving after step {course.step}")
            seconds = self._meter.seconds
            tokens = self._meter.tokens_until(course.step)
            self._saver.begin(course.manifest(seconds, tokens), self._probe)
