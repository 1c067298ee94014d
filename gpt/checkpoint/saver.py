"""Checkpoints of a running run: written by all ranks together, hashed beside the training,
committed when whole."""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from gpt.architecture.architecture import Architecture
from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.code_files import write_code
from gpt.checkpoint.manifest import Manifest, Probe, same_loss
from gpt.checkpoint.pending import Pending
from gpt.checkpoint.weights import check
from gpt.checkpoint.zero_files import FullState, read_state
from gpt.cluster.world import World
from gpt.compute.costs import costs_of
from gpt.compute.memory import checkpoint_bytes
from gpt.config.identity import own_model
from gpt.config.run_config import Config
from gpt.config.saved import CONFIG, write_config
from gpt.data.datasets import Dataset
from gpt.data.manifests import TOKENIZER
from gpt.data.streams import batch_index
from gpt.errors import AgreedError, in_brief
from gpt.metrics import events
from gpt.wording import plural


class Engine(Protocol):
    """What a Saver needs of gpt.engine.boundary.Engine, which tells what each does."""

    @property
    def loss_scale(self) -> float: ...

    def probe(self, tokens: np.ndarray) -> float: ...

    def first_nonfinite_state(self) -> str | None: ...

    def save(self, folder: Path, tag: str, state: dict) -> str | None: ...

    def load(self, folder: Path, tag: str) -> None: ...

    def adopt(self, full: FullState, scale: float) -> None: ...


class Saver:
    """Writes and loads the checkpoints of one run, in `run_dir`/checkpoints. All ranks call its
    methods together.

    A save has three parts. `begin` writes the files, and training waits for it. A thread per rank
    then has them written through to the disk and hashed, while training goes on. Once every rank is
    `ready`, `advance` has a thread of rank 0 commit the checkpoint, and, when called again, tells
    how it went. What fails is reported and costs that checkpoint only: training goes on, and
    earlier ones are as they were. So it is where the weights are no numbers any more: a checkpoint
    of a run that has diverged would push out those from before.

    owns_folder(): whether the folder called run_dir is still the one that this run began in, as
    this rank sees it; nothing is written into another, or removed there.
    report(event), say(text): where the metrics and a person's lines go, on rank 0.
    """

    def __init__(
        self,
        config: Config,
        resolved: dict,
        dataset: Dataset,
        engine: Engine,
        world: World,
        owns_folder: Callable[[], bool],
        report: Callable[[dict], None],
        say: Callable[[str], None],
    ):
        self._config = config
        self._resolved = resolved
        self._dataset = dataset
        self._engine = engine
        self._world = world
        self._owns_folder = owns_folder
        self.folder = folders.of_run(config.run_dir)
        # of the latest checkpoint that this process committed or loaded
        self._saved: Manifest | None = None
        # the last evaluation: its step, and whether it scored the whole split
        self._evaluation: tuple[int, bool] | None = None
        self._pending: Pending | None = None
        # why the last save failed; None where it did not
        self.failure: str | None = None
        self._report = report
        self._say = say

    @property
    def saved_step(self) -> int | None:
        """Step of the latest checkpoint that this process committed or loaded."""
        return self._saved.step if self._saved else None

    @property
    def ready(self) -> bool:
        """Whether this rank's thread has done its part of the save that is under way."""
        return self._pending is not None and not self._pending.thread.is_alive()

    def begin(self, course: Manifest, probe: np.ndarray) -> None:
        """Write the files of a checkpoint, and start hashing them. Finishes an earlier save first.

        course: where the run is; what else a manifest has is filled in here. probe: tokens whose
        loss is kept with it, int64 (rows, tokens + 1).
        """
        self.finish()
        began = time.perf_counter()
        staged = self.folder / folders.staging_tag(course.step)
        config = self._config
        manifest = replace(
            course,
            ranks=self._world.size,
            precision=config.precision,
            zero_stage=config.zero_stage,
            loss_scale=self._engine.loss_scale,
            dataset=self._dataset.fingerprint,
            probe=Probe(probe.tolist(), self._engine.probe(probe)),
        )
        failure = self._agreed_hindrance(manifest.probe.loss, staged) or self._engine.save(
            self.folder, staged.name, {"step": course.step}
        )
        pending = self._pending = Pending(manifest, staged, began, failure)
        pending.run(lambda: self._hash(pending))
        pending.pause = time.perf_counter() - began

    def note_evaluation(self, step: int, whole: bool) -> None:
        """Have the checkpoint of `step`, where there is one, tell that its weights were evaluated.
        Of one that stands checkpoint.json alone is written anew.

        whole: whether the whole split was scored.
        """
        self._evaluation = step, whole
        pending = self._pending
        if pending is None:
            self._record_evaluation()
        elif pending.manifest.step == step and not pending.committing:
            pending.manifest = _with_evaluation(pending.manifest, whole)
        # else it is recorded once that save is committed

    def _record_evaluation(self) -> None:
        """The last evaluation, in the latest checkpoint, if that is the one of its step."""
        saved = self._saved
        if saved is None or self._evaluation is None:
            return
        step, whole = self._evaluation
        evaluated = _with_evaluation(saved, whole)
        if saved.step != step or saved == evaluated:
            return
        self._saved = evaluated
        if self._world.rank == 0:
            hindrance = self._lost_folder()
            try:
                if hindrance is None:
                    evaluated.write(self.folder / folders.tag_of(step))
            except OSError as error:
                hindrance = in_brief(error)
            if hindrance is not None:  # a run that goes on from it evaluates once more
                self._say(
                    f"WARNING: the checkpoint of step {step} does not tell of its evaluation:"
                    f" {hindrance}"
                )

    def finish(self) -> None:
        """Wait for a save that is under way."""
        while self._pending is not None:
            self._pending.thread.join()
            self.advance()

    def advance(self) -> None:
        """Take a save one part further, once every rank is ready."""
        pending = self._pending
        assert pending is not None, "no save is under way"
        parts = self._world.gather((pending.failure, pending.files))
        failures = [failure for failure, _ in parts if failure]
        pending.failure = failures[0] if failures else None
        if failures and self._world.rank == 0:
            pending.failure = self._lost_folder() or failures[0]
        if pending.failure is None and not pending.committing:
            pending.committing = True
            files: dict = {}
            for _, files_of_rank in parts:
                files |= files_of_rank
            pending.manifest = replace(pending.manifest, files=files)
            pending.run(lambda: self._commit(pending) if self._world.rank == 0 else None)
            return
        self._pending = None
        self.failure = pending.failure
        if pending.failure is None:
            self._committed(pending)
        else:
            self._failed(pending)

    def _committed(self, pending: Pending):
        """Tell of a checkpoint that stands."""
        if pending.not_removed is not None:
            self._say(
                f"WARNING: an old checkpoint in {self.folder} could not be removed:"
                f" {pending.not_removed}"
            )
        self._saved = pending.manifest
        self._record_evaluation()
        self._report(
            {
                "event": events.CHECKPOINT,
                "step": pending.manifest.step,
                "seconds": pending.pause,
                "seconds_to_commit": time.perf_counter() - pending.began,
                "bytes": pending.bytes,
            }
        )

    def _failed(self, pending: Pending):
        """Tell of a checkpoint that could not be written, and remove what there is of it."""
        step = pending.manifest.step
        if self._world.gather(self._is_saved_one_removed())[0]:
            self._saved = None
        latest = "there is no checkpoint"
        if self.saved_step is not None:
            latest = f"the latest checkpoint is that of step {self.saved_step}"
        self._report({"event": events.CHECKPOINT_FAILED, "step": step, "reason": pending.failure})
        self._say(
            f"WARNING: the checkpoint of step {step} could not be written ({pending.failure});"
            f" training goes on, {latest}"
        )
        if self._world.rank == 0 and self._owns_folder():
            with suppress(OSError):  # the next start tries it again
                folders.clean_up(self.folder)

    def _is_saved_one_removed(self) -> bool:
        """Whether somebody has removed the latest checkpoint, for room perhaps; rank 0 looks."""
        if self._world.rank != 0 or self._saved is None or not self._owns_folder():
            return False
        return not (self.folder / folders.tag_of(self._saved.step)).is_dir()

    def _agreed_hindrance(self, loss: float, staged: Path) -> str | None:
        """Why no checkpoint shall be written, or None: the first that any rank has against it.

        loss: on the probe batch.
        """
        hindrance = self._lost_folder() or self._not_numbers(loss)
        if hindrance is None and self._world.rank == 0:
            hindrance = self._no_room(staged)
        hindrances = self._world.gather(hindrance)
        return next((reason for reason in hindrances if reason is not None), None)

    def _lost_folder(self) -> str | None:
        if self._owns_folder():
            return None
        return (
            f"{self._config.run_dir} is not the folder any more that the run began in: that was"
            " renamed, removed or replaced by another"
        )

    def _not_numbers(self, loss: float) -> str | None:
        """What of the weights and the optimizer's states is not finite."""
        place = self._engine.first_nonfinite_state()
        if place is not None:
            return f"the run has diverged: {place} is not finite"
        if not math.isfinite(loss):
            return f"the run has diverged: the loss of its weights on the probe batch is {loss}"
        return None

    def _no_room(self, staged: Path) -> str | None:
        """Why a checkpoint cannot be written into the run's folder."""
        config = self._config
        parameters = costs_of(config).parameters
        need = checkpoint_bytes(parameters, config.zero_stage, config.precision, config.moments)
        try:
            self.folder.mkdir(exist_ok=True)  # removed for room, perhaps
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return in_brief(error)
        if free < need:
            return f"it needs about {need / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        if staged.is_symlink():
            return f"{staged} is a link, where a folder of ours should be"
        return None

    def _hash(self, pending: Pending):
        """Add what all ranks share (rank 0), and hash this rank's files."""
        if pending.failure is None:
            if self._world.rank == 0:
                write_config(pending.staged / CONFIG, self._resolved)
                (pending.staged / TOKENIZER).write_bytes(self._dataset.vocab.model)
                write_code(pending.staged, self._config.own_code)
            pending.files = folders.own_files(pending.staged, self._world.rank)

    def _commit(self, pending: Pending):
        options = self._config.options
        pending.failure = self._lost_folder()
        if pending.failure is not None:
            return
        folders.commit(self.folder, pending.manifest)
        pending.bytes = sum(facts["size"] for facts in pending.manifest.files.values())
        try:
            keep_steps = options.keep_steps or ()
            folders.retain(self.folder, options.keep_last, options.keep_every, keep_steps)
        except OSError as error:  # the new one stands all the same
            pending.not_removed = in_brief(error)

    def before(self, index: int) -> str | None:
        """Tag of the newest whole checkpoint that has not seen batch `index`, else of the oldest
        whole one; None without one, or where the run's folder is another. Rank 0 looks for all."""
        tag = None
        if self._world.rank == 0 and self._owns_folder():
            tag = self._before(index)
        return self._world.gather(tag)[0]

    def _before(self, index: int):
        tag = None
        for checkpoint in folders.whole(self.folder):
            tag = checkpoint.tag
            if batch_index(checkpoint.step, checkpoint.manifest.left_out) <= index:
                break
        return tag

    def load(self, path: Path, probe: np.ndarray, notices: list) -> Manifest:
        """Load a checkpoint, of this run or of another, of whatever ranks and ZeRO stage; returns
        what it says of its run.

        Raises AgreedError where the weights then give another loss on the probe batch than when
        they were saved.
        """
        checkpoint = Checkpoint.open(path)
        manifest = checkpoint.manifest
        config = self._config
        then = _how(manifest.ranks, manifest.zero_stage, manifest.precision)
        now = _how(self._world.size, config.zero_stage, config.precision)
        is_same_model = own_model(checkpoint.config) == own_model(self._resolved)
        if then == now and is_same_model:
            self._engine.load(path.parent, path.name)
        else:  # DeepSpeed reads its files with the ranks and at the stage that wrote them only
            state = read_state(checkpoint.path)
            check(state.weights, Architecture.of(config), checkpoint.path)
            self._engine.adopt(state, manifest.loss_scale)
        if then != now:
            notices.append(f"the checkpoint was written by {then}, and goes on with {now}")
        if is_same_model:  # another one may compute another loss of the same weights
            self._require_same_loss(checkpoint, probe)
        self._saved = manifest if path.parent == self.folder else None
        self._evaluation = None  # of a course that was left
        return manifest

    def _require_same_loss(self, checkpoint: Checkpoint, probe: np.ndarray):
        manifest = checkpoint.manifest
        stored = manifest.probe.loss
        losses = self._world.gather(self._engine.probe(probe))
        if manifest.probe.tokens != probe.tolist():
            return
        for rank, loss in enumerate(losses):
            if not same_loss(loss, stored, self._config.precision, manifest.precision):
                where = f" on rank {rank}" if rank else ""
                raise AgreedError(
                    f"{checkpoint.path} was loaded, but its weights give the loss {loss:.6f} on its"
                    f" probe batch{where}, where they gave {stored:.6f} when it was saved: nothing"
                    f" was trained; {self._advice(checkpoint)}"
                )

    def _advice(self, checkpoint: Checkpoint) -> str:
        """What to do about weights that compute another loss than they did."""
        before = (checkpoint.config.get("code") or {}).get("parts") or {}
        now = (self._resolved.get("code") or {}).get("parts") or {}
        changed = [part for part in before if part in now and before[part] != now[part]]
        if not changed:
            return "go on from another checkpoint"
        return (
            f"the code has changed since ({', '.join(changed)}): go on with the code that trained"
            " it, or train the changed one in another --run_dir"
        )


def _how(ranks: int, zero_stage: int, precision: str) -> str:
    return f"{plural(ranks, 'rank')} at ZeRO stage {zero_stage} in {precision}"


def _with_evaluation(manifest: Manifest, whole: bool) -> Manifest:
    return replace(manifest, evaluated_step=manifest.step, evaluated_whole=whole)
