"""Checkpoints of a running run: written by all ranks together, hashed beside the training,
committed when whole."""

import shutil
import threading
import time
from contextlib import suppress

from gpt.checkpoint import folders
from gpt.checkpoint.zero_files import read_state
from gpt.compute.memory import checkpoint_bytes
from gpt.config.saved import CONFIG, write_config
from gpt.data.datasets import TOKENIZER
from gpt.data.streams import batch_index
from gpt.errors import AgreedError, in_brief


class Saver:
    """Writes and loads the checkpoints of one run, in `run_dir`/checkpoints. All ranks call its
    methods together.

    A save has three parts. `begin` writes the files, and training waits for it. A thread per rank
    then has them written through to the disk and hashed, while training goes on. Once every rank is
    `ready`, `advance` has a thread of rank 0 commit the checkpoint, and, when called again, tells
    how it went. What fails is reported and costs that checkpoint only: training goes on, and
    earlier ones are as they were.

    report(event), say(text): where the metrics and a person's lines go, on rank 0.
    """

    def __init__(self, config, resolved: dict, dataset, engine, world, report, say):
        self._config = config
        self._resolved = resolved
        self._dataset = dataset
        self._engine = engine
        self._world = world
        self.folder = config.run_dir / "checkpoints"
        self.saved_step = None  # of the latest checkpoint that this process committed or loaded
        self.saved_evaluation = None  # the step of the last evaluation that it tells of
        self._pending = None
        self._report = report
        self._say = say

    @property
    def ready(self) -> bool:
        """Whether this rank's thread has done its part of the save that is under way."""
        return self._pending is not None and not self._pending.thread.is_alive()

    def begin(self, step: int, probe, state: dict):
        """Write the files of a checkpoint, and start hashing them. probe: tokens whose loss is kept
        with it.

        state: plain values for its manifest. Finishes an earlier save first.
        """
        self.finish()
        began = time.perf_counter()
        staged = self.folder / folders.staging_tag(step)
        config = self._config
        facts = {
            **state,
            "tokens": step * config.batch.train_batch_size * config.model.seq_len,
            "ranks": self._world.size,
            "precision": config.precision,
            "zero_stage": config.zero_stage,
            "loss_scale": self._engine.loss_scale,
            "dataset": self._dataset.fingerprint,
            "probe": {"tokens": probe.tolist(), "loss": self._engine.probe(probe)},
        }
        failure = self._no_room() or self._engine.save(self.folder, staged.name, {"step": step})
        pending = self._pending = _Pending(step, staged, facts, failure, began)
        pending.run(lambda: self._hash(pending))
        pending.pause = time.perf_counter() - began

    def finish(self):
        """Wait for a save that is under way."""
        while self._pending is not None:
            self._pending.thread.join()
            self.advance()

    def advance(self):
        """Take a save one part further, once every rank is ready."""
        pending, world = self._pending, self._world
        found = world.gather((pending.failure, pending.files))
        pending.failure = next((failure for failure, _ in found if failure), None)
        if pending.failure is None and not pending.committing:
            files = {name: facts for _, own in found for name, facts in own.items()}
            pending.committing = True
            pending.run(lambda: self._commit(pending, files) if world.rank == 0 else None)
            return
        self._pending = None
        if pending.failure is None:
            if pending.kept is not None:
                self._say(
                    f"WARNING: an old checkpoint in {self.folder} could not be removed:"
                    f" {pending.kept}"
                )
            self.saved_step = pending.step
            self.saved_evaluation = pending.facts.get("evaluated_step")
            self._report(
                {
                    "event": "checkpoint",
                    "step": pending.step,
                    "seconds": pending.pause,
                    "seconds_to_commit": time.perf_counter() - pending.began,
                    "bytes": pending.bytes,
                }
            )
            return
        self._report(
            {"event": "checkpoint_failed", "step": pending.step, "reason": pending.failure}
        )
        self._say(
            f"WARNING: the checkpoint of step {pending.step} could not be written"
            f" ({pending.failure}); training goes on, the latest checkpoint is that of step"
            f" {self.saved_step or 0}"
        )
        if world.rank == 0:
            with suppress(OSError):  # the next start tries it again
                folders.clean_up(self.folder)
        world.barrier()

    def _no_room(self):
        """Why a checkpoint would not fit on the disk, or None; rank 0 decides for all."""
        config = self._config
        need = checkpoint_bytes(
            config.model,
            config.zero_stage,
            config.precision,
            config.moments,
        )
        try:
            free = shutil.disk_usage(self.folder).free
            short = (
                f"it needs about {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
                if free < need
                else None
            )
        except OSError as error:
            short = in_brief(error)
        return self._world.gather(short)[0]

    def _hash(self, pending):
        """Add what all ranks share (rank 0), and hash this rank's files."""
        if pending.failure is None:
            if self._world.rank == 0:
                write_config(pending.staged / CONFIG, self._resolved)
                (pending.staged / TOKENIZER).write_bytes(self._dataset.vocab.model)
            pending.files = folders.own_files(pending.staged, self._world.rank)

    def _commit(self, pending, files):
        options = self._config.options
        folders.commit(self.folder, pending.step, files, pending.facts)
        pending.bytes = sum(facts["size"] for facts in files.values())
        try:
            folders.retain(self.folder, options.keep_last, options.keep_every)
        except OSError as error:  # the new one stands all the same
            pending.kept = in_brief(error)

    def before(self, index: int) -> str | None:
        """Tag of the newest whole checkpoint that has not seen batch `index`, else of the oldest
        whole one; rank 0 looks for all."""
        return self._world.gather(self._before(index) if self._world.rank == 0 else None)[0]

    def _before(self, index):
        tag = None
        for tag, manifest in folders.whole(self.folder):
            if batch_index(manifest["step"], manifest["left_out"]) <= index:
                break
        return tag

    def load(self, tag: str, probe, notices: list) -> dict:
        """Load a checkpoint, of whatever ranks and ZeRO stage; returns its manifest.

        Raises AgreedError where the weights then give another loss on the probe batch than when
        they were saved.
        """
        manifest = folders.read_manifest(self.folder / tag)
        here = {
            "ranks": self._world.size,
            "zero_stage": self._config.zero_stage,
            "precision": self._config.precision,
        }
        there = {key: manifest[key] for key in here}
        if here == there:
            self._engine.load(self.folder, tag)
        else:  # DeepSpeed reads its files with the ranks and at the stage that wrote them only
            self._engine.adopt(read_state(self.folder / tag), manifest["loss_scale"])
            notices.append(f"the checkpoint was written as {there}, and goes on as {here}")
        stored = manifest["probe"]["loss"]
        found = self._world.gather(self._engine.probe(probe))
        tolerance = max(
            folders.PROBE_TOLERANCE[here["precision"]],
            folders.PROBE_TOLERANCE[there["precision"]],
        )
        wrong = [
            (rank, loss)
            for rank, loss in enumerate(found)
            if not abs(loss - stored) <= tolerance * abs(stored)
        ]
        if wrong and manifest["probe"]["tokens"] == probe.tolist():
            rank, loss = wrong[0]
            raise AgreedError(
                f"{self.folder / tag} was loaded, but its weights give the loss {loss:.6f} on its"
                f" probe batch{f' on rank {rank}' if rank else ''}, where they gave {stored:.6f}"
                " when it was saved: nothing was trained; go on from another checkpoint"
            )
        self.saved_step = manifest["step"]
        self.saved_evaluation = manifest["evaluated_step"]
        return manifest


class _Pending:
    """A save that is under way, and the thread that works on it."""

    def __init__(self, step, staged, facts, failure, began):
        self.step = step
        self.staged = staged
        self.facts = facts
        self.failure = failure
        self.began = began
        self.files = {}
        self.committing = False
        self.pause = None
        self.bytes = None
        self.thread = None
        self.kept = None  # why an old checkpoint could not be removed

    def run(self, work):
        def noting_failure():
            try:
                work()
            # whatever it is: what this rank did not do must not go unnoticed
            except Exception as error:
                self.failure = in_brief(error)

        self.thread = threading.Thread(target=noting_failure)
        self.thread.start()
