"""The training loop: start or resume, step, evaluate, save, and what to do when the numbers go
wrong."""

import platform
import time

import torch

from gpt.checkpoint import folders, warm_start
from gpt.checkpoint.saver import Saver
from gpt.cluster.failures import Failures
from gpt.cluster.watchdog import Watchdog
from gpt.compute import hardware
from gpt.config.run_config import Config
from gpt.config.saved import CONFIG, resolved, write_config
from gpt.data.datasets import Dataset
from gpt.data.streams import Ahead, Streams, batch_index
from gpt.errors import AgreedError, AgreedUserError
from gpt.evaluation import Evaluator, Tally, summary
from gpt.kernels import attention
from gpt.metrics.activations import ActivationStatistics
from gpt.metrics.meter import Meter
from gpt.metrics.sinks import Metrics
from gpt.metrics.terminal import Progress
from gpt.model import build
from gpt.training.signals import LAUNCHER_SECONDS, StopRequest
from gpt.training.spikes import SpikeDetector
from gpt.training.start import claim, require_one_folder

# fp16 overflows in a row on one batch; a loss scale halves from 2^32 to 1 in 32
MAX_OVERFLOWS = 100
# batches refused in a row, or returns to the same checkpoint, before the run gives up
MAX_LEFT_OUT = 10
PROBE_ROWS, PROBE_TOKENS = 2, 32


class Trainer:
    """One run of `config` on `dataset`, kept in `config.run_dir`, as one of `world_size` ranks sees
    it.

    Making one checks everything that can be checked before the ranks connect, and writes nothing
    but the run's folder with its lock. Rank 0 alone looks for a checkpoint, so that all go on from
    the same one. Raises UserError.

    resume: auto, must, never or a checkpoint's tag. allowed: settings that may differ from the
    checkpoint's.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        rank: int,
        world_size: int,
        resume: str = "auto",
        allowed=(),
    ):
        options, batch = config.options, config.batch
        self.config = config
        self.dataset = dataset
        self.run_dir = config.run_dir
        self.rank = rank
        self.streams = Streams(dataset.split("train"), batch.train_batch_size, config.model.seq_len)
        self.batches = Ahead(self.streams, range(rank, batch.train_batch_size, world_size))
        self.evaluator = Evaluator(
            dataset.split(options.eval_data_split),
            dataset.vocab,
            config.model.seq_len,
            options.last_n,
            options.eval_batch_size,
            options.max_eval_steps,
            rank,
            world_size,
            batch.micro_size,
        )
        self.resolved = resolved(config, dataset)
        self.notices = list(config.notices)
        self.start_tag = None
        self.lock = None
        if rank == 0:
            self.start_tag, began_from, self.lock = claim(
                config, self.resolved, resume, allowed, self.notices
            )
            self.resolved |= {"began_from": began_from} if began_from else {}
        self.step = 0
        self.evaluated_step = None
        # indices of batches that nothing was learnt from
        self.left_out = []
        self.spikes = SpikeDetector()
        # batches, and tries of one batch, in a row
        self.refused = 0
        self.overflows = 0
        self.returns = {}  # {tag: how often the run went back to it}

    def train(self, make_engine, world, kernels):
        """Train, evaluate and save until the last step or a request to stop. All ranks call it
        together.

        make_engine: gpt.engine.boundary.Engine. world: gpt.cluster.world.World. kernels: as
        gpt.kernels.choice.choose found them. Raises AgreedError where the run cannot go on.
        """
        self.kernels, self.kernels_reason = kernels
        self.world = world
        self.stop = StopRequest()
        self.stopping = None
        self.watchdog = Watchdog(world, self.config.options.step_timeout)
        failures = Failures(world, self.watchdog)
        try:
            self._run(make_engine)
        except (AgreedError, AgreedUserError):
            raise
        except Exception as error:
            raise failures.end(error, self.step) from error
        finally:
            failures.close()
            self.watchdog.close()
            self.stop.close()
            self.batches.close()

    def _run(self, make_engine):
        self._begin(make_engine)
        options = self.config.options
        last = self.config.options.max_train_steps
        if self.start_tag and self.step >= last and not self._owes_evaluation():
            self.progress.close()
            self.progress.say(
                f"{self.run_dir} is at step {self.step} already, and max_train_steps is {last}:"
                " nothing to do"
            )
            return
        self._announce()
        self._agree()
        self.meter.start(self.step)
        if self._owes_evaluation():
            self._evaluate()
        while self.step < last and not self.stopping:
            if not self._train_step():
                continue
            if self._owes_evaluation():
                self._evaluate()
            if _due(self.step, options.log_ckpt_every) and self.step < last:
                self._save()
        self.saver.finish()
        if (self.saver.saved_step, self.saver.saved_evaluation) != (self.step, self.evaluated_step):
            self._save()
            self.saver.finish()
        self._end()

    def _begin(self, make_engine):
        """Make the engine and load the checkpoint that rank 0 found."""
        world, options = self.world, self.config.options
        self.start_tag, token = world.gather((self.start_tag, self.lock and self.lock.token))[0]
        require_one_folder(self.run_dir, token, world)
        model = build(self.config, self.kernels)
        self.engine = make_engine(model, self.config, world, model.initial_weights(options.seed))
        self.saver = Saver(self.config, self.resolved, self.dataset, self.engine, world)
        rows = range(min(PROBE_ROWS, self.config.batch.train_batch_size))
        self.probe = self.streams.batch(0, rows)[:, : PROBE_TOKENS + 1]
        seconds = self._load(self.start_tag) if self.start_tag else 0.0
        if options.init_from and not self.start_tag:
            self.engine.adopt(warm_start.state(options.init_from), self.engine.loss_scale)
            self.notices.append(f"the first weights are those of {options.init_from}")
        self.progress = Progress(self.step, options.max_train_steps, active=world.rank == 0)
        self.meter = Meter(self.config, world, seconds)

    def _load(self, tag) -> float:
        """Go on from a checkpoint: its weights, and where the run was; returns the seconds of
        training until then."""
        manifest = self.saver.load(tag, self.probe, self.notices)
        self.step = manifest.step
        self.evaluated_step = manifest.evaluated_step
        self.left_out = sorted({*self.left_out, *manifest.left_out})
        self.spikes = SpikeDetector(manifest.losses)
        return manifest.seconds

    def _announce(self):
        """Open the run's files and say what is about to run."""
        if self.rank == 0:
            self.saver.folder.mkdir(parents=True, exist_ok=True)
            write_config(self.run_dir / CONFIG, self.resolved)
            if self.start_tag:
                folders.go_back(self.saver.folder, self.start_tag)
        self.world.barrier()
        self.metrics = Metrics(self.run_dir, self.config, self.resolved, active=self.rank == 0)
        self.saver.report = self.metrics.write
        self.saver.say = self.progress.say
        model, batch = self.config.model, self.config.batch
        for notice in self.notices:
            self.progress.say(f"notice: {notice}")
        if self.start_tag:
            self.progress.say(f"resuming {self.run_dir} after step {self.step}")
            self.metrics.write({"event": "resume", "step": self.step})
        self.metrics.write({"event": "start", "step": self.step, **self._environment()})
        self.progress.say(
            f"{self.run_dir}: {model.parameters():,} parameters, {self.config.precision}, ZeRO"
            f" stage {self.config.zero_stage}, {self.world.size} x {self.world.device.type};"
            f" {batch.train_batch_size} x {model.seq_len} tokens a step (micro batch"
            f" {batch.micro_size}, accumulation {batch.accumulation}) from {self.dataset.root};"
            f" kernels: {self.kernels} ({self.kernels_reason}), attention: {self._attention()},"
            f" compile: {self.config.options.compile}"
        )

    def _environment(self) -> dict:
        """What runs where, for whoever reads the metrics."""
        config, meter = self.config, self.meter
        return {
            "parameters": config.model.parameters(),
            "tokens_per_step": meter.tokens_per_step,
            "flops_per_token": meter.flops_per_token,
            "max_train_steps": config.options.max_train_steps,
            "ranks": self.world.size,
            "precision": config.precision,
            "zero_stage": config.zero_stage,
            "device": meter.device,
            "peak_flops": meter.peak_flops,
            "kernels": self.kernels,
            "host": platform.node(),
            "versions": hardware.versions(),
        }

    def _attention(self):
        """The backend that torch takes for it here."""
        model = self.config.model
        shape = (self.config.batch.micro_size, model.n_heads, model.seq_len, model.head_dim)
        return attention.backend(shape, hardware.DTYPES[self.config.precision], self.world.device)

    def _end(self):
        """Say how the run ended. Raises AgreedError where its last steps could not be saved."""
        self.progress.close()
        if self.saver.saved_step != self.step:
            self.metrics.close()
            raise AgreedError(
                f"the last checkpoint could not be written to {self.saver.folder}: make room, and"
                f" the same command goes on from step {self.saver.saved_step or 0}"
            )
        if self.step >= self.config.options.max_train_steps and not self._owes_evaluation():
            self.metrics.close()
            folder = self.saver.folder / folders.tag_of(self.step)
            self.progress.say(f"done: {self.step} steps, checkpoint {folder}")
            return
        seconds = self.stop.seconds_ago()
        self.metrics.write(
            {"event": "stopped", "step": self.step, "reason": self.stopping, "seconds": seconds}
        )
        self.metrics.close()
        slow = (
            ""
            if seconds is None or seconds < LAUNCHER_SECONDS / 2
            else (
                f"; NOTE: that took {seconds:.0f} s, and launchers wait {LAUNCHER_SECONDS} s before"
                " they kill"
            )
        )
        by = f"by {self.stopping}" if self.stopping.startswith("SIG") else f"since {self.stopping},"
        self.progress.say(
            f"stopped {by} and saved after step {self.step} of "
            f"{self.config.options.max_train_steps}: the same command goes on{slow}"
        )

    def _agree(self, result=None):
        """What the ranks tell each other after every step: whether any of them was asked to stop,
        and whether all are ready to take a save further.

        result: gpt.engine.boundary.StepResult of a step; then returns (its mean loss over all
        ranks, its gradient norm). All of it comes from the device in one transfer, the one that is
        waited for.
        """
        values = self.world.tensor([self.stop.reason is not None, self.saver.ready])
        if result is not None:
            values = torch.cat([values, result.loss[None]])
        values = self.world.sum(values)
        if result is not None:
            values = torch.cat([values, result.grad_norm[None]])
        asked, ready, *figures = values.tolist()
        if asked and not self.stopping:
            self.stopping = next(reason for reason in self.world.gather(self.stop.reason) if reason)
            self.stop.heeded()
        if ready == self.world.size:
            self.saver.advance()
        if result is None:
            return None
        loss, grad_norm = figures
        return loss / self.world.size, grad_norm

    def _train_step(self) -> bool:
        """Try one optimiser step; returns whether the run is a step further."""
        options, number = self.config.options, self.step + 1
        index = batch_index(self.step, self.left_out)
        want_norms = _due(number, options.log_grads_every)
        statistics = (
            ActivationStatistics(self.engine.module)
            if _due(number, options.log_activations_every)
            else None
        )
        self.watchdog.progress(f"reading the batch of step {number}")
        self.meter.mark("other")
        batch = self.batches.batch(index)
        batch = batch.reshape(self.config.batch.accumulation, self.config.batch.micro_size, -1)
        self.meter.mark("data")
        lr = self.engine.lr
        accept = self._accept if options.spike_policy == "skip" else None
        result = self.engine.step(batch, want_norms, accept, self._mark, statistics)
        loss, grad_norm = self._agree(result)
        self.meter.mark("other")
        self.meter.settle()
        score = self.spikes.score(loss)
        if not result.applied:
            self._not_applied(number, loss, score, batch, index, result)
            return False
        if score > options.spike_zscore and self._spiked(number, loss, score, index):
            return False
        self.spikes.add(loss)
        self.step = number
        self.refused = 0
        self.overflows = 0
        self.progress.advance()
        if want_norms:
            self.metrics.write({"event": "norms", "step": number, **result.norms})
        if statistics:
            self.metrics.write(
                {"event": "activations", "step": number, **statistics.summary(self.world)}
            )
        self._report(loss, lr, grad_norm)
        return True

    def _mark(self, part):
        """A part of a micro-batch is done."""
        self.meter.mark(part)
        if part == "step":
            self.watchdog.progress(f"computing step {self.step + 1}")
            self.watchdog.first_micro_batch_done()

    def _accept(self, loss) -> bool:
        """Whether a step with this mean loss may change the weights, under policy skip."""
        return not self.spikes.score(loss) > self.config.options.spike_zscore

    def _not_applied(self, number, loss, score, batch, index, result):
        """The weights were not updated: try again, leave the batch out, go back, or give up."""
        options = self.config.options
        if result.refused:
            self._leave_out(number, loss, score, index, batch)
        elif self.config.precision == "fp16":
            self.overflows += 1
            self.metrics.write(
                {
                    "event": "overflow",
                    "step": number,
                    "loss_scale": self.engine.loss_scale,
                    "in_a_row": self.overflows,
                }
            )
            if (
                result.exhausted
                or self.overflows >= MAX_OVERFLOWS
                or self.config.deepspeed["fp16"]["loss_scale"]
            ):
                self._fail(
                    number,
                    f"the fp16 gradient overflowed {self.overflows} time(s) in a row, the last time"
                    f" at loss scale {self.engine.loss_scale:g}",
                    index,
                    batch,
                )
        elif options.spike_policy == "skip":
            self._leave_out(number, loss, score, index, batch)
        elif options.spike_policy == "warn" or not self._rewind(number, loss, score, index):
            self._fail(
                number, f"the gradient is not finite in {self.config.precision}", index, batch
            )

    def _leave_out(self, number, loss, score, index, batch):
        """Policy skip: the same step again, from the next batch."""
        self.left_out = [*self.left_out, index]
        self.refused += 1
        self.metrics.write(
            {
                "event": "skip",
                "step": number,
                "loss": loss,
                "zscore": score,
                "batch": index,
                "documents": self.streams.documents(index),
            }
        )
        self.progress.say(
            f"SPIKE: the loss of batch {index} is {loss:.4f} ({score:.1f} deviations from the"
            f" median): left out of step {number}"
        )
        if self.refused >= MAX_LEFT_OUT:
            self._fail(number, f"{self.refused} batches in a row were left out", index, batch)

    def _spiked(self, number, loss, score, index) -> bool:
        """The loss of a step leapt: warn, or go back; returns whether the run went back."""
        if self.config.options.spike_policy == "rewind" and self._rewind(
            number, loss, score, index
        ):
            return True
        self.metrics.write(
            {
                "event": "spike",
                "step": number,
                "loss": loss,
                "zscore": score,
                "batch": index,
                "documents": self.streams.documents(index),
            }
        )
        self.progress.say(
            f"SPIKE: the loss of step {number} is {loss:.4f}, {score:.1f} deviations above the"
            " median of the last steps"
        )
        return False

    def _rewind(self, number, loss, score, index) -> bool:
        """Policy rewind: load the checkpoint before the batches that led here, and leave them out.
        Returns False where there is no checkpoint yet."""
        first = index - self.config.options.rewind_batches + 1
        with self.meter.paused("checkpoint"):
            self.saver.finish()
            tag = self.saver.before(first)
            if tag is None:
                return False
            self.returns[tag] = self.returns.get(tag, 0) + 1
            if self.returns[tag] > MAX_LEFT_OUT:
                self._fail(number, f"the run went back to {tag} {MAX_LEFT_OUT} times", index, None)
            self._load(tag)
        reached = batch_index(self.step, self.left_out)
        out = list(range(max(first, reached), index + 1))
        self.left_out = sorted({*self.left_out, *out})
        if self.rank == 0:
            folders.go_back(self.saver.folder, tag)
        self.metrics.write(
            {
                "event": "rewind",
                "step": number,
                "to": self.step,
                "loss": loss,
                "zscore": score,
                "batches": out,
                "documents": [self.streams.documents(i) for i in out],
            }
        )
        self.progress.rewind(self.step)
        self.progress.say(
            f"SPIKE: the loss of step {number} is {loss:.4f} ({score:.1f} deviations from the"
            f" median): back to step {self.step}, leaving out the batches {out[0]} to {index}"
        )
        self.overflows = 0
        self.meter.begin_stretch(self.step)
        return True

    def _fail(self, number, what, index, batch):
        """Give up, with all that helps to find out why. batch: this rank's part of it, to look for
        the first value that is not finite, or None."""
        self.saver.finish()
        found = self.world.gather(self.engine.first_nonfinite(batch) if batch is not None else None)
        where = [f"{place} on rank {rank}" for rank, place in enumerate(found) if place]
        names = self.streams.documents(index)
        reason = (
            f"step {number}: {what}"
            + (f"; the first value that is not finite is in {where[0]}" if where else "")
            + f"; batch {index} is made from {len(names)} documents"
            f" ({', '.join(names[:20])}{', …' * (len(names) > 20)})"
        )
        self.metrics.write(
            {"event": "failed", "step": self.step, "reason": reason, "documents": names}
        )
        self.metrics.close()
        self.progress.close()
        saved = self.saver.saved_step
        raise AgreedError(
            f"{reason}; nothing was updated, the latest checkpoint is "
            + (f"{self.saver.folder / folders.tag_of(saved)}" if saved is not None else "none yet")
            + ": lower max_lr, set gradient_clipping, or leave batches out with --spike_policy skip"
            " or rewind"
        )

    def _report(self, loss, lr, grad_norm):
        options = self.config.options
        logged = _due(self.step, options.log_metrics_every)
        shown = _due(self.step, options.log_terminal_every)
        shown = shown or (self.step == options.max_train_steps and options.log_terminal_every > 0)
        speed = self.meter.tokens_per_second(self.step)
        if logged:
            self.metrics.write(
                {
                    "event": "train",
                    "step": self.step,
                    **self.meter.axes(self.step),
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "loss_scale": self.engine.loss_scale,
                    "tokens": self.step * self.meter.tokens_per_step,
                    **self.meter.costs(speed),
                }
            )
        if shown:
            left = (options.max_train_steps - self.step) * self.meter.tokens_per_step / speed
            self.progress.report(self.step, loss, lr, speed, left)
            self.meter.begin_stretch(self.step)

    def _owes_evaluation(self) -> bool:
        options = self.config.options
        due = _due(self.step, options.eval_every) or (
            self.step == options.max_train_steps and options.eval_every > 0
        )
        return due and self.evaluated_step != self.step

    def _evaluate(self):
        """Evaluate the present weights; a request to stop ends it, and it is made up for when the
        run goes on."""
        with self.meter.paused("eval"):
            began = time.perf_counter()
            tally = self.evaluator.run(self.engine.module, self.world.device, self._goes_on)
            if tally is not None:
                values = self.world.sum(self.world.tensor(tally.values())).tolist()
                self._report_evaluation(
                    summary(Tally.from_values(values)), time.perf_counter() - began
                )
                self.evaluated_step = self.step

    def _goes_on(self) -> bool:
        """Between two batches of an evaluation: whether to go on."""
        self.watchdog.progress(f"evaluating after step {self.step}")
        self._agree()
        return not self.stopping

    def _report_evaluation(self, found, seconds):
        split = self.config.options.eval_data_split
        self.metrics.write(
            {
                "event": "eval",
                "step": self.step,
                "split": split,
                **self.meter.axes(self.step),
                **found,
                "seconds": seconds,
            }
        )
        untrained = (
            "" if self.step else " (as given)" if self.config.options.init_from else " (untrained)"
        )
        scored = f"{found['tokens']:,} of {max(0, len(self.evaluator.split.tokens) - 1):,} tokens"
        self.progress.say(
            f"eval after step {self.step}{untrained} on {split} ({scored}): loss"
            f" {found['loss']:.4f}  normalised perplexity {found['normalised_ppl']:.4f}  bits per"
            f" byte {found['bits_per_byte']:.4f}"
        )

    def _save(self):
        with self.meter.paused("checkpoint"):
            self.watchdog.progress(f"saving after step {self.step}")
            self.saver.begin(
                self.step,
                self.probe,
                evaluated_step=self.evaluated_step,
                left_out=self.left_out,
                losses=self.spikes.losses,
                seconds=self.meter.seconds,
            )


def _due(step, every):
    return every > 0 and step % every == 0
