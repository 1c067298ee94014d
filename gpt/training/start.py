"""How a run begins: from a checkpoint or afresh, decided before a device is taken, by one rank for
all."""

from gpt.checkpoint import folders, warm_start
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.config.keys import nearest
from gpt.config.run_config import Config, leaves
from gpt.config.saved import curve_settings, differences_of, resolved
from gpt.data.datasets import Dataset
from gpt.errors import AgreedUserError, UserError
from gpt.files import FolderLock, is_locked_by
from gpt.metrics.events import METRICS
from gpt.metrics.runs import read_run


def claim(config: Config, resolved: dict, resume: str, allowed, notices: list):
    """(tag of the checkpoint to go on from or None, origin of the first weights or None, lock of
    the run's folder). `notices` gets what a user should know.

    resume: auto, must, never or a checkpoint's tag. allowed: settings that may differ from the
    checkpoint's. What a crash left in the folder is put right first. Raises UserError where there
    is no checkpoint, where there must be none, where settings differ, where the weights to begin
    with do not fit, or where another process is in the folder.
    """
    run_dir = config.run_dir
    folder = folders.of_run(config.run_dir)
    for place in (run_dir, folder):
        if place.exists() and not place.is_dir():
            raise UserError(
                f"{place} is a file, where a run wants to be kept: name another --run_dir"
            )
    # a mistake below shall leave no new folder behind
    lock = _lock(run_dir) if run_dir.exists() else None
    if folder.exists():
        folders.clean_up(folder)
    tag = _find(run_dir, folder, resume, notices)
    began_from = None
    if tag is not None:
        checkpoint = Checkpoint.open(folder / tag)
        checkpoint.require_facts()
        earlier = checkpoint.config
        _compare(earlier, resolved, allowed, run_dir, notices)
        began_from = earlier.get("began_from")
    elif config.options.init_from:
        began_from = warm_start.origin(
            config.options.init_from, config.model, resolved["dataset"]["tokenizer"]
        )
    return tag, began_from, lock or _lock(run_dir)


def _lock(run_dir):
    return FolderLock(
        run_dir,
        other="another process is training in",
        mend="wait for it, or name another --run_dir",
    )


def _find(run_dir, folder, resume, notices):
    if resume in ("auto", "must"):
        tag = folders.newest_good(folder, notices)
    else:
        tag = folders.latest(folder) if resume == "never" else resume
        if tag == resume:
            Checkpoint.open(folders.find(folder, tag)).verify()
    if tag is None and resume == "must":
        raise UserError(f"--resume must: {folder} has no checkpoint to go on from")
    if tag is not None and resume == "never":
        raise UserError(
            f"--resume never: {run_dir} already holds a run: name another --run_dir, or go on with "
            "--resume auto"
        )
    return tag


# what a checkpoint's tensors and states have their shapes from
KEPT = ("model.", "optimizer.type", "scheduler.type")


def _compare(old, new, allowed, run_dir, notices):
    """allowed may name what does not differ any more: the same command, given again, goes on."""
    differences = differences_of(old, new)
    settings = {path for tree in (old, new) for path, _ in leaves(curve_settings(tree))}
    for key in allowed:
        if key not in settings:
            raise UserError(
                f"--allow_change {key}: no setting that makes a curve is called"
                f" so{nearest(key, settings)}; what differs from the checkpoint:"
                f" {', '.join(differences) or 'nothing'}"
            )
        if key in differences and key.startswith(KEPT):
            raise UserError(
                f"--allow_change {key}: {differences[key]}, and that cannot change within a run:"
                " name another --run_dir"
            )
    notices += [
        f"changed on resuming: {differences.pop(key)}"
        for key in dict.fromkeys(allowed)
        if key in differences
    ]
    if differences:
        raise UserError(
            f"{run_dir} holds a run with other settings ({'; '.join(differences.values())}): name "
            "another --run_dir, give the settings that it began with, or allow a change on purpose "
            "with --allow_change KEY"
        )


def require_one_folder(run_dir, token: str, world):
    """Raise AgreedUserError where a host has a run folder of its own: no host would then have a
    whole checkpoint.

    token: of rank 0's lock. All ranks call it together.
    """
    sees = world.gather(is_locked_by(run_dir, token))
    if not all(sees):
        raise AgreedUserError(
            f"{run_dir} on {world.hosts[sees.index(False)]} is not the folder that rank 0 on"
            f" {world.hosts[0]} has: all ranks write their parts of a checkpoint into one folder,"
            " so give a --run_dir on a disk that the hosts share; nothing was trained"
        )


def reached(config: Config, dataset: Dataset) -> tuple:
    """(step of the latest checkpoint in `config.run_dir`, whether nothing of the run is left to
    do); (0, False) without one, unless the run's metrics tell that it was finished, before its
    checkpoints were deleted.

    A damaged checkpoint is left for training to deal with, and precision for the machine that
    trains. Raises UserError where the checkpoint is of a run with other settings.
    """
    folder = folders.of_run(config.run_dir)
    tag = folders.latest(folder)
    last = config.options.max_train_steps
    try:
        if tag is None:
            run = read_run(config.run_dir) if (config.run_dir / METRICS).is_file() else None
            if run is None or not run.finished or run.last_step != last:
                return 0, False
            then = run.config
            step = last
            finished = True
        else:
            checkpoint = Checkpoint.open(folder / tag)
            then = checkpoint.config
            step = checkpoint.step
            finished = step >= last and (
                config.options.eval_every <= 0 or checkpoint.manifest.evaluated_step == step
            )
    except UserError:
        return 0, False
    _compare(
        then,
        {**resolved(config, dataset), "precision": then.get("precision")},
        (),
        config.run_dir,
        [],
    )
    return step, finished
