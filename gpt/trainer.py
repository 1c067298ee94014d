"""The training loop, and what surrounds it: start or resume, evaluate, save, report."""

import shutil
import time

from gpt import checkpoint, plan
from gpt.config import Config, leaves
from gpt.consolidate import read_state
from gpt.corpus import TOKENIZER, Dataset, Streams
from gpt.errors import RunError, UserError
from gpt.evaluation import Evaluator, Tally, summary
from gpt.files import FolderLock
from gpt.metrics import Clock, Metrics, Progress
from gpt.model import GPT
from gpt.signals import StopRequest


class Trainer:
    """One run of `config` on `dataset`, kept in `config.run_dir`, as one of `world_size` ranks sees it.

    Making one checks everything that can be checked before a device is taken, and writes nothing but the run's folder
    with its lock. Rank 0 alone looks for a checkpoint, so that all go on from the same one. Raises UserError.

    resume: auto, must, never or a checkpoint's tag. allowed: settings that may differ from the checkpoint's.
    """

    def __init__(self, config: Config, dataset: Dataset, rank: int, world_size: int, resume: str = "auto",
                 allowed=()):  # fmt: skip
        options, batch = config.options, config.batch
        self.config, self.dataset, self.run_dir, self.rank = config, dataset, config.run_dir, rank
        self.checkpoints = self.run_dir / "checkpoints"
        self.streams = Streams(dataset.split("train"), batch.global_size, options.seq_len)
        self.rows = range(rank, batch.global_size, world_size)
        self.evaluator = Evaluator(dataset.split(options.eval_data_split), dataset.vocab, options.seq_len,
                                   options.last_n, options.eval_batch_size, options.max_eval_steps, rank,
                                   world_size)  # fmt: skip
        self.resolved = resolved(config, dataset)
        self.notices = list(config.notices)
        self.start_tag = self._find_start(resume, allowed) if rank == 0 else None
        self.lock = FolderLock(self.run_dir) if rank == 0 else None

    def _find_start(self, resume, allowed):
        """Tag of the checkpoint to go on from, or None."""
        for folder in (self.run_dir, self.checkpoints):
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder} is a file, where a run wants to be kept: name another --run_dir")
        if resume in ("auto", "must"):
            tag = checkpoint.newest_good(self.checkpoints, self.notices)
        else:
            tag = checkpoint.latest(self.checkpoints) if resume == "never" else resume
            if tag == resume:
                checkpoint.verify(checkpoint.resolve(self.checkpoints, tag))
        if tag is None and resume == "must":
            raise UserError(f"--resume must: {self.checkpoints} has no checkpoint to go on from")
        if tag is not None and resume == "never":
            raise UserError(f"--resume never: {self.run_dir} already holds a run: name another --run_dir, or go on with "
                            "--resume auto")
        if tag is not None:
            differences = _differences(checkpoint.read_config(self.checkpoints / tag / checkpoint.CONFIG), self.resolved)
            unknown = [key for key in allowed if key not in differences]
            if unknown:
                raise UserError(f"--allow_change {unknown[0]}: that does not differ from the checkpoint; what differs: "
                                f"{', '.join(differences) or 'nothing'}")
            self.notices += [f"changed on resuming: {differences.pop(key)}" for key in dict.fromkeys(allowed)]
            if differences:
                raise UserError(f"{self.run_dir} holds a run with other settings ({'; '.join(differences.values())}): name "
                                "another --run_dir, give the settings that it began with, or allow a change on purpose "
                                "with --allow_change KEY")
        return tag

    def train(self, make_engine, world):
        """Train, evaluate and save until the last step or a request to stop. All ranks call it together.

        make_engine: gpt.engine.Engine. world: gpt.engine.World.
        """
        self.world, self.stop = world, StopRequest()
        try:
            self._run(make_engine)
        finally:
            self.stop.close()

    def _run(self, make_engine):
        self._begin(make_engine)
        options, last, stopping = self.config.options, self.config.options.max_train_steps, None
        if self.start_tag and self.step >= last:
            self.progress.close()
            self.progress.say(f"{self.run_dir} is at step {self.step} already, and max_train_steps is {last}: nothing to do")
            return
        self._announce()
        if not self.start_tag and options.eval_every > 0:
            self._evaluate()
        self._mark = (self.step, self.clock.seconds())
        while self.step < last and not (stopping := self._must_stop()):
            self._train_step()
            if _due(self.step, options.eval_every) or (self.step == last and options.eval_every > 0):
                self._evaluate()
            if _due(self.step, options.log_ckpt_every) or self.step == last:
                self._save()
        if self.saved_step is None or (stopping and self.saved_step != self.step):
            self._save()
        self._end(stopping)

    def _begin(self, make_engine):
        """Make the engine and load the checkpoint that rank 0 found."""
        world, options = self.world, self.config.options
        model = GPT(self.config.model, options.seed, options.activation_checkpointing)
        self.engine = make_engine(model, self.config, world)
        self.start_tag = world.gather(self.start_tag)[0]
        self.probe = self.streams.batch(0, range(min(2, self.config.batch.global_size)))
        self.step = self._load() if self.start_tag else 0
        self.saved_step = self.step if self.start_tag else None
        self.progress = Progress(self.step, options.max_train_steps, active=world.rank == 0)
        self.clock = Clock()

    def _end(self, stopping):
        """Say how the run ended. Raises RunError where its last steps could not be saved."""
        self.progress.close()
        if stopping and self.saved_step == self.step:
            self.metrics.write({"event": "stopped", "step": self.step, "reason": stopping})
        self.metrics.close()
        if self.saved_step != self.step:
            raise RunError(f"the last checkpoint could not be written to {self.checkpoints}: make room, and the same command "
                           f"goes on from step {self.saved_step or 0}")  # fmt: skip
        if stopping:
            self.progress.say(f"stopped by {stopping} and saved after step {self.step} of "
                              f"{self.config.options.max_train_steps}: the same command goes on")  # fmt: skip
        else:
            self.progress.say(f"done: {self.step} steps, checkpoint {self.checkpoints / checkpoint.tag_of(self.step)}")

    def _must_stop(self) -> str | None:
        """Why the run must stop now, if any rank was asked to; all ranks find the same."""
        asked = self.world.sum(self.world.tensor([0.0 if self.stop.reason is None else 1.0])).item()
        return next(reason for reason in self.world.gather(self.stop.reason) if reason) if asked else None

    def _announce(self):
        """Open the run's files and say what is about to run."""
        if self.rank == 0:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoint.clean_up(self.checkpoints)
            checkpoint.write_config(self.run_dir / checkpoint.CONFIG, self.resolved)
        self.world.barrier()
        self.metrics = Metrics(self.run_dir, self.config, self.resolved, active=self.rank == 0)
        model, batch = self.config.model, self.config.batch
        for notice in self.notices:
            self.progress.say(f"notice: {notice}")
        if self.start_tag:
            self.progress.say(f"resuming {self.run_dir} after step {self.step}")
            self.metrics.write({"event": "resume", "step": self.step})
        self.progress.say(
            f"{self.run_dir}: {model.parameters():,} parameters, {self.config.precision}, ZeRO stage "
            f"{self.config.engine['zero_optimization']['stage']}, {self.world.size} x {self.world.device.type}; "
            f"{batch.global_size} x {model.seq_len} tokens a step (micro batch {batch.micro_size}, accumulation "
            f"{batch.accumulation}) from {self.dataset.root}"
        )

    def _train_step(self):
        options, number = self.config.options, self.step + 1
        logged, shown = _due(number, options.log_metrics_every), _due(number, options.log_terminal_every)
        shown = shown or (number == options.max_train_steps and options.log_terminal_every > 0)
        want_norms = _due(number, options.log_grads_every)
        batch = self.streams.batch(self.step, self.rows)
        batch = batch.reshape(self.config.batch.accumulation, self.config.batch.micro_size, -1)
        lr = self.engine.lr
        while not (result := self.engine.step(batch, logged or shown, want_norms)).applied:
            self._skipped(number)
        self.step = number
        self.progress.advance()
        if want_norms:
            self.metrics.write({"event": "norms", "step": number, **result.norms})
        if logged or shown:
            self._report(result.loss, lr, logged, shown)

    def _skipped(self, number):
        """An update with a gradient that is not finite was left out. Under fp16 the scale sank: the same batch again."""
        if self.config.precision != "fp16":
            raise RunError(f"the gradient of step {number} is not finite in {self.config.precision}, and nothing was "
                           f"updated: lower max_lr or set gradient_clipping, and go on from {self.checkpoints}")
        self.metrics.write({"event": "overflow", "step": number, "loss_scale": self.engine.loss_scale})

    def _report(self, loss, lr, logged, shown):
        tokens_per_step = self.config.batch.global_size * self.config.model.seq_len
        mark_step, mark_seconds = self._mark
        seconds = self.clock.seconds()
        speed = (self.step - mark_step) * tokens_per_step / max(seconds - mark_seconds, 1e-9)
        if logged:
            self.metrics.write({
                "event": "train", "step": self.step, "loss": loss, "lr": lr, "grad_norm": self.engine.grad_norm,
                "loss_scale": self.engine.loss_scale, "tokens": self.step * tokens_per_step,
                "tokens_per_second": speed,
            })  # fmt: skip
        if shown:
            left = (self.config.options.max_train_steps - self.step) * tokens_per_step / speed
            self.progress.report(self.step, loss, lr, speed, left)
            self._mark = (self.step, seconds)

    def _evaluate(self):
        self.clock.pause()
        began = time.perf_counter()
        tally = self.evaluator.run(self.engine.module, self.world.device)
        values = self.world.sum(self.world.tensor(tally.values())).tolist()
        found = summary(Tally.from_values(values))
        split = self.config.options.eval_data_split
        self.metrics.write({"event": "eval", "step": self.step, "split": split, **found,
                            "seconds": time.perf_counter() - began})  # fmt: skip
        untrained = " (untrained)" if self.step == 0 else ""
        scored = f"{found['tokens']:,} of {max(0, len(self.evaluator.split.tokens) - 1):,} tokens"
        self.progress.say(f"eval after step {self.step}{untrained} on {split} ({scored}): loss {found['loss']:.4f}  "
                          f"normalised perplexity {found['normalised_ppl']:.4f}  bits per byte "
                          f"{found['bits_per_byte']:.4f}")
        self.clock.go_on()

    def _load(self) -> int:
        """Load the checkpoint to go on from; returns its step. A loss that differs from the stored one is an error."""
        folder = self.checkpoints / self.start_tag
        manifest = checkpoint.read_manifest(folder)
        here = {"ranks": self.world.size, "zero_stage": self.config.engine["zero_optimization"]["stage"],
                "precision": self.config.precision}  # fmt: skip
        there = {key: manifest[key] for key in here}
        if here == there:
            self.engine.load(self.checkpoints, self.start_tag)
        else:  # DeepSpeed reads its files with the ranks and at the stage that wrote them only
            self.engine.adopt(read_state(folder), manifest["loss_scale"])
            self.notices.append(f"the checkpoint was written as {there}, and goes on as {here}")
        found, stored = self.engine.probe(self.probe), manifest["probe"]["loss"]
        tolerance = 1e-5 if self.config.precision == there["precision"] == "fp32" else 2e-3
        if manifest["probe"]["tokens"] == self.probe.tolist() and not abs(found - stored) <= tolerance * abs(stored):
            raise RunError(f"{folder} was loaded, but its weights give the loss {found:.6f} on its "
                           f"probe batch, where they gave {stored:.6f} when it was saved: nothing was trained; go on from "
                           "another checkpoint")  # fmt: skip
        return manifest["step"]

    def _save(self):
        """Write a checkpoint: all ranks into a staging folder, then rank 0 commits it. If that fails anywhere, training
        goes on, and earlier checkpoints are as they were."""
        self.clock.pause()
        began = time.perf_counter()
        loss = self.engine.probe(self.probe)
        staged = self.checkpoints / checkpoint.staging_tag(self.step)
        failure = self._no_room()
        if failure is None:
            failure = self.engine.save(self.checkpoints, staged.name, {"step": self.step})
            failure, files = self._hash(staged, failure)
            everyone = self.world.gather((failure, files))
            failure = next((failed for failed, _ in everyone if failed), None)
            if failure is None:
                failure = self._commit({name: facts for _, own in everyone for name, facts in own.items()}, loss)
        if failure is None:
            self.saved_step = self.step
            self.metrics.write({"event": "checkpoint", "step": self.step, "seconds": time.perf_counter() - began})
        else:
            self.metrics.write({"event": "checkpoint_failed", "step": self.step, "reason": failure})
            self.progress.say(f"WARNING: the checkpoint of step {self.step} could not be written ({failure}); training goes "
                              f"on, the latest checkpoint is that of step {self.saved_step or 0}")  # fmt: skip
            if self.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)
        self.world.barrier()
        self.clock.go_on()

    def _no_room(self):
        """Why a checkpoint would not fit on the disk, or None; rank 0 decides for all."""
        config = self.config
        need = plan.checkpoint_bytes(config.model, config.engine["zero_optimization"]["stage"], config.precision,
                                     config.moments)  # fmt: skip
        free = shutil.disk_usage(self.checkpoints).free
        short = f"it needs about {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free" if free < need else None
        return self.world.gather(short)[0]

    def _hash(self, staged, failure):
        """(failure, {name: size and sha256}) of this rank's files, after rank 0 has added what all share."""
        try:
            if self.rank == 0 and failure is None:
                checkpoint.write_config(staged / checkpoint.CONFIG, self.resolved)
                (staged / TOKENIZER).write_bytes(self.dataset.vocab.model)
            return failure, checkpoint.own_files(staged, self.rank) if failure is None else {}
        except OSError as error:
            return f"{error.filename}: {error.strerror}", {}

    def _commit(self, files, loss):
        """Rank 0 makes the staged checkpoint the latest; returns what went wrong, on all ranks."""
        failure = None
        if self.rank == 0:
            tokens = self.step * self.config.batch.global_size * self.config.model.seq_len
            facts = {"tokens": tokens, "ranks": self.world.size, "precision": self.config.precision,
                     "zero_stage": self.config.engine["zero_optimization"]["stage"],
                     "loss_scale": self.engine.loss_scale, "dataset": self.dataset.fingerprint,
                     "probe": {"tokens": self.probe.tolist(), "loss": loss}}  # fmt: skip
            try:
                checkpoint.commit(self.checkpoints, self.step, files, facts)
                checkpoint.retain(self.checkpoints, self.config.options.keep_last, self.config.options.keep_every)
            except OSError as error:
                failure = f"{error.filename}: {error.strerror}"
        return self.world.gather(failure)[0]


def _due(step, every):
    return every > 0 and step % every == 0


def resolved(config: Config, dataset: Dataset) -> dict:
    """config.yaml: the resolved configuration and the dataset it runs on."""
    return {**config.as_dict(), "dataset": {"root": str(dataset.root), "fingerprint": dataset.fingerprint,
                                            "tokenizer": dataset.vocab.fingerprint}}  # fmt: skip


def _differences(old: dict, new: dict) -> dict:
    """{setting: sentence} of the settings that make a curve another curve: shape, data, batch, schedule, precision,
    optimizer, seed."""

    def curve(tree):
        run = tree["run"]
        return {
            "model": tree["model"], "precision": tree.get("precision"), "scheduler": run.get("scheduler"),
            "optimizer": run.get("optimizer"), "gradient_clipping": run.get("gradient_clipping"),
            "train_batch_size": run.get("train_batch_size"), "seed": (run.get("gpt") or {}).get("seed"),
            "dataset": (tree.get("dataset") or {}).get("fingerprint"),
        }  # fmt: skip

    differences = {}
    then, now = curve(old), curve(new)
    for key in then:
        old_leaves, new_leaves = (dict(leaves({key: value})) for value in (then[key], now[key]))
        differences |= {path: f"{path} was {old_leaves.get(path)}, is {new_leaves.get(path)}"
                        for path in {**old_leaves, **new_leaves} if old_leaves.get(path) != new_leaves.get(path)}
    return differences
