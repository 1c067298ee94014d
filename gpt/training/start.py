"""How a run begins: from a checkpoint or afresh, decided before a device is taken, by one rank for
all."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gpt.architecture.architecture import Architecture
from gpt.architecture.language_model import LanguageModel
from gpt.checkpoint import folders, warm_start
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.weights import require_fit
from gpt.cluster.world import World
from gpt.compute.costs import costs_of
from gpt.config.code import code_of
from gpt.config.identity import change, changes_of, is_free, own_model
from gpt.config.run_config import Config
from gpt.config.saved import CONFIG, RUN, read_config, saved_config
from gpt.contract.outputs import require_sound
from gpt.contract.subject import Subject
from gpt.data.datasets import Dataset
from gpt.errors import AgreedUserError, UserError
from gpt.locking import FolderLock, is_locked_by
from gpt.metrics.events import CHECKPOINT, METRICS
from gpt.metrics.run import Run
from gpt.metrics.runs import read_run
from gpt.training.branch import branch, require_other_run, same_branch
from gpt.training.changes import (
    compare,
    difference_in_words,
    how_to_allow,
    in_words,
    setting_called,
)
from gpt.training.course import Course
from gpt.training.run_folder import remove_leftovers, require_own


class Claim(NamedTuple):
    """A run's folder, taken."""

    tag: str | None  # of the checkpoint to go on from; None: a run begins
    trunk: Path | None  # the checkpoint of another run that it branches off from, as it begins
    # origin of the run's first weights, or of what it branched off from; None: they were drawn
    began_from: dict | None
    changes: list[dict]  # what was changed on resuming, now and before, as in config.yaml
    lock: FolderLock  # kept until the run's end
    is_finished: bool  # before its checkpoints were removed: nothing is left to do


def look_at_model(config: Config, notices: list) -> None:
    """Raise UserError where a model file's model sees later tokens or other rows, or does not
    repeat itself: no run shall be trained to find that out. `notices` gets a sentence where that
    cannot be looked at."""
    architecture = Architecture.of(config)
    if architecture.code is None:
        return
    hindrance = require_sound(Subject(architecture, config.options.seed))
    if hindrance:
        notices.append(hindrance)


def config_to_save(config: Config, dataset: Dataset, kernels: str | None) -> dict[str, Any]:
    """config.yaml of a run that begins now. kernels: triton or torch; None where they are not
    chosen yet."""
    costs = costs_of(config)
    facts = dataset.facts(config.options.eval_data_split)
    flops = {"flops_per_token": costs.flops_per_token, "flops_counted": costs.flops_counted}
    return saved_config(config, facts, code_of(), costs.parameters, kernels, flops)


def claim(
    config: Config, resolved: dict, resume: str, allowed: Iterable[str], notices: list
) -> Claim:
    """Take a run's folder, and decide where the run goes on from. `notices` gets what a user should
    know.

    resume: auto, must, never or a checkpoint's tag. allowed: settings that may differ from the
    checkpoint's. What a crash left in the folder is put right first. Raises UserError where there
    is no checkpoint, where there must be none, where settings differ, where the weights to begin
    with do not fit, or where another process is in the folder.
    """
    allowed = [setting_called(key) for key in allowed]
    run_dir = config.run_dir
    require_own(run_dir, has_code=bool(config.own_code))
    if config.options.branch_from:
        require_other_run(config)
    folder = folders.of_run(run_dir)
    # a mistake below shall leave no new folder behind
    lock = _lock(run_dir) if run_dir.exists() else None
    remove_leftovers(run_dir)
    if folder.exists():
        folders.clean_up(folder)
    is_finished = False
    tag = None
    trunk = None
    stripped = None if folders.committed(folder) else _run_that_had_checkpoints(run_dir)
    if stripped is not None:
        _require_finished(stripped, config, resolved, resume, allowed)
        is_finished = True
    else:
        tag = _tag_to_resume(run_dir, resume, notices)
    began_from = None
    changes: list[dict] = []
    if tag is not None:
        checkpoint = Checkpoint.open(folder / tag)
        checkpoint.require_facts()
        changes = [*changes_of(checkpoint.config)]
        resolved = _with_beginning_of(checkpoint.config, config, resolved)
        differences = _compare(checkpoint.config, resolved, allowed, run_dir)
        for setting, values in differences.items():
            changes.append(change(checkpoint.step, setting, *values))
            sentence = difference_in_words(setting, values, checkpoint.config, resolved, run_dir)
            notices.append(f"changed on resuming: {sentence}")
        steps = checkpoint.config[RUN]["gpt"].get("max_train_steps")
        if steps != config.options.max_train_steps:
            values = (steps, config.options.max_train_steps)
            notices.append(f"changed on resuming: {in_words('max_train_steps', values)}")
        if own_model(checkpoint.config) != own_model(resolved):
            require_fit(checkpoint, Architecture.of(config))
        began_from = checkpoint.config.get("began_from")
        if not _has_content(run_dir / METRICS):
            notices.append(
                f"{run_dir / METRICS} is gone, and with it all that was measured until step"
                f" {checkpoint.step}: bring it back from a copy"
            )
    elif config.options.branch_from and not is_finished:
        begins = branch(config, resolved, allowed, notices)
        if own_model(begins.checkpoint.config) != own_model(resolved):
            require_fit(begins.checkpoint, Architecture.of(config))
        trunk = begins.checkpoint.path
        changes = begins.changes
        began_from = begins.began_from
    elif config.options.init_from:
        tokenizer = resolved["dataset"]["tokenizer"]
        first_weights = config.options.init_from
        began_from = warm_start.origin(first_weights, Architecture.of(config), tokenizer)
        notices += _change_of_model(read_config(Path(first_weights) / CONFIG), resolved)
    return Claim(tag, trunk, began_from, changes, lock or _lock(run_dir), is_finished)


def _change_of_model(earlier: dict, resolved: dict) -> Iterator[str]:
    """A sentence where the weights that a run begins with were trained by other code of a
    model's."""
    before, now = own_model(earlier), own_model(resolved)
    paths = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    if paths:
        words = [in_words(path, (before.get(path), now.get(path))) for path in paths]
        yield f"the first weights are of another model: {'; '.join(words)}"


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _run_that_had_checkpoints(run_dir: Path) -> Run | None:
    """The run in a folder, where its metrics tell of checkpoints."""
    if not all((run_dir / name).is_file() for name in (CONFIG, METRICS)):
        return None
    run = read_run(run_dir)
    return run if CHECKPOINT in run.events else None


def _require_finished(
    run: Run, config: Config, resolved: dict, resume: str, allowed: Iterable[str]
) -> None:
    """Of a run whose checkpoints were removed: raise UserError unless it was finished before, and
    is asked for with the settings that it had."""
    run_dir = config.run_dir
    _require_no_run(run_dir, resume)
    resolved = _with_beginning_of(run.config, config, resolved)
    differences = _compare(run.config, resolved, allowed, run_dir)
    if run.has_ended_diverged:
        raise UserError(
            f"{run_dir} holds a run that diverged at step {run.diverged_at}",
            mend="lower max_lr, or set gradient_clipping, in another --run_dir",
        )
    is_same = all(is_free(path) for path in differences)
    if not (is_same and run.finished and run.last_step == config.options.max_train_steps):
        raise UserError(
            f"{run_dir} holds a run that came to step {run.last_step}, and its checkpoints are"
            " gone: nothing can go on from it",
            mend="bring one back from a copy, or name another --run_dir",
        )


def _require_no_run(run_dir: Path, resume: str) -> None:
    """Raise UserError where there must be no run yet, by --resume never."""
    if resume == "never":
        raise UserError(
            f"--resume never: {run_dir} already holds a run",
            mend="name another --run_dir, or go on with --resume auto",
        )


def _with_beginning_of(earlier: dict, config: Config, resolved: dict) -> dict:
    """`resolved`, with the folder of first weights, or of the trunk's checkpoint, that the earlier
    config.yaml names, where the same lies in another folder."""
    gpt = dict(resolved[RUN]["gpt"])
    for name in ("init_from", "branch_from"):
        was, now = earlier[RUN]["gpt"].get(name), gpt.get(name)
        if was and now and was != now and _same_beginning(name, earlier, config, resolved):
            gpt[name] = was
    return {**resolved, RUN: {**resolved[RUN], "gpt": gpt}}


def _same_beginning(name: str, earlier: dict, config: Config, resolved: dict) -> bool:
    if name == "branch_from":
        return same_branch(earlier, config)
    folder = config.options.init_from
    assert folder is not None
    try:
        tokenizer = resolved["dataset"]["tokenizer"]
        origin = warm_start.origin(folder, Architecture.of(config), tokenizer)
    except UserError:
        return False
    return origin["sha256"] == (earlier.get("began_from") or {}).get("sha256")


def _compare(
    old: dict, new: dict, allowed: Iterable[str], run_dir: Path
) -> dict[str, tuple[Any, Any]]:
    """As `compare`: what differs and may. Raises UserError where settings differ that must not."""
    differences, refused = compare(old, new, allowed, run_dir)
    if refused:
        words = [
            difference_in_words(path, differences[path], old, new, run_dir) for path in refused
        ]
        raise UserError(
            f"{run_dir} holds a run with other settings ({'; '.join(words)})",
            mend="name another --run_dir, or give the settings that it began with"
            + how_to_allow(refused),
        )
    return differences


def _lock(run_dir: Path) -> FolderLock:
    return FolderLock(
        run_dir,
        other="another process is training in",
        mend="wait for it, or name another --run_dir",
    )


def _tag_to_resume(run_dir: Path, resume: str, notices: list):
    folder = folders.of_run(run_dir)
    if resume in ("auto", "must"):
        tag = folders.newest_good(folder, notices)
        if tag is None and resume == "must":
            raise UserError(f"--resume must: {folder} has no checkpoint to go on from")
        return tag
    if resume != "never":
        Checkpoint.open(folders.find(folder, resume)).verify()
        return resume
    if folders.latest(folder) is not None:
        _require_no_run(run_dir, resume)
    return None


def require_one_folder(run_dir: Path, token: str, world: World) -> None:
    """Raise AgreedUserError where a host has a run folder of its own: no host would then have a
    whole checkpoint.

    token: of rank 0's lock. All ranks call it together.
    """
    same = world.gather(is_locked_by(run_dir, token))
    if not all(same):
        raise AgreedUserError(
            f"{run_dir} on {world.hosts[same.index(False)]} is not the folder that rank 0 on"
            f" {world.hosts[0]} has",
            mend="all ranks write their parts of a checkpoint into one folder, so give a --run_dir"
            " on a disk that the hosts share; nothing was trained",
        )


def require_on_all_hosts(trunk: Path, world: World) -> None:
    """Raise AgreedUserError where a host has not the checkpoint that a run branches off from. All
    ranks call it together."""
    has_it = world.gather(trunk.is_dir())
    if not all(has_it):
        raise AgreedUserError(
            f"{trunk} is not there on {world.hosts[has_it.index(False)]}",
            mend="every rank reads the checkpoint that a run branches off from, so give one on a"
            " disk that the hosts share; nothing was trained",
        )


def require_same_constants(model: LanguageModel, world: World) -> None:
    """Raise AgreedUserError where ranks would compute with different buffers, which nothing ever
    brings together. All ranks call it together."""
    constants = world.gather(model.constants())
    for rank, own in enumerate(constants):
        if own != constants[0]:
            raise AgreedUserError(
                f"{model.code.path} builds other buffers on rank {rank} than on rank 0",
                mend="compute them from the shape and the options alone",
            )


class Reached(NamedTuple):
    """How far the run in a folder has come."""

    step: int
    finished: bool
    config: dict | None  # its config.yaml; None where there is no run
    has_diverged: bool = False


NOT_BEGUN = Reached(0, False, None)


def reached(config: Config, dataset: Dataset) -> Reached:
    """How far the run in `config.run_dir` has come: the step of the latest checkpoint, whether
    nothing of it is left to do, and whether it has diverged, at its end. Without a checkpoint it is
    at step 0, unless the run's metrics tell that it has diverged, or that it was finished, before
    its checkpoints were deleted.

    A damaged checkpoint is left for training to deal with, and precision for the machine that
    trains. Raises UserError where the checkpoint is of a run with other settings.
    """
    try:
        earlier = _reached(config)
    except UserError:
        return NOT_BEGUN
    if earlier.config is None:
        return NOT_BEGUN
    if config.precision == "fp16" and earlier.config.get("precision") == "fp32":
        config = config.without_fp16("the machine that trained had none")
    now = config_to_save(config, dataset, kernels=None)
    now["precision"] = earlier.config.get("precision")
    _compare(earlier.config, now, allowed=(), run_dir=config.run_dir)
    return earlier


def _reached(config: Config) -> Reached:
    folder = folders.of_run(config.run_dir)
    tag = folders.latest(folder)
    run = None
    with suppress(UserError):  # the checkpoint alone tells then
        run = read_run(config.run_dir)
    if run is not None and run.has_ended_diverged:
        return Reached(run.last_step, False, run.config, has_diverged=True)
    if tag is not None:
        checkpoint = Checkpoint.open(folder / tag)
        course = Course()
        course.go_on_from(checkpoint.manifest)
        finished = course.is_finished(config.options)
        return Reached(checkpoint.step, finished, checkpoint.config)
    if run is not None and run.finished and run.last_step == config.options.max_train_steps:
        return Reached(run.last_step, True, run.config)
    return NOT_BEGUN
