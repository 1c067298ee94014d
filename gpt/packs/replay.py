"""The first steps of a run, trained again and held against its log."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint.folders import CODE_FOLDER
from gpt.config.code import code_of
from gpt.config.identity import ARGUMENTS_OF
from gpt.config.observer_keys import OBSERVER_KEYS
from gpt.config.own_code import TRUST, read_own_code, variants
from gpt.config.run_config import value_at
from gpt.config.saved import CONFIG, run_to_repeat
from gpt.errors import UserError
from gpt.escaping import in_one_line
from gpt.metrics import events
from gpt.metrics.run import Run
from gpt.metrics.runs import read_run
from gpt.packs import rounding
from gpt.packs.evidence import Declared, Evidence, LeftOut, of_each
from gpt.reading import read_text
from gpt.referee.tuning import has_diverged
from gpt.training.measuring import child_environment
from gpt.training.sweep import TRAIN

# Relative differences of losses and gradient norms that another machine's rounding may make of the
# same steps, by precision. In fp32 other instructions or another number of threads made 2e-7 and
# 4e-6 of 50 steps of a small model; larger models, more steps and GPUs make more.
SAME_LOSS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-2}
SAME_NORM = {"fp32": 1e-2, "fp16": 2e-1, "bf16": 2e-1}
NEVER = 10**9  # steps between evaluations: one before the first step, and one after the last
OFFLOADED = ("zero_optimization.offload_param.device", "zero_optimization.offload_optimizer.device")
LONGEST_MESSAGE = 400
GAVE_UP = 1  # exit code of a run that cannot go on through no mistake of the user


@dataclass(frozen=True)
class Tolerance:
    """Relative differences that count as none. why: they are not 0; None where they are."""

    loss: float
    norm: float
    why: str | None = None


def gives_the_same_steps(evidence: Evidence, problems: list[str], steps: int) -> str:
    """The first `steps` steps of every run, trained again from its seed on one rank, have the
    losses and the gradient norms of its log; so have the evaluations before the first and after the
    last of them, as far as the log has them."""
    if steps == 0:
        raise LeftOut("--replay N trains the first N steps of every run again")
    replayed = [*evidence.present, *evidence.trials]
    for run in replayed:
        _require_possible(evidence, run)
    tolerances: dict[str, Tolerance] = {}

    def look(run: Declared) -> Iterator[str]:
        log = evidence.run(run.name)
        tolerance = tolerance_of(log)
        tolerances[run.name] = tolerance
        planned = min(steps, evidence.last_step(run.name))
        retrained = train_again(evidence, run, planned)
        yield from differences(run.name, log, retrained, tolerance)
        if retrained.last_step < min(planned, log.last_step):
            yield (
                f"{run.name}: trained again it ends after step {retrained.last_step}, and its log"
                f" goes on to {log.last_step}"
            )
        elif planned > log.last_step and not has_diverged(retrained):
            yield f"{run.name}: trained again it goes on, and its log ends at step {log.last_step}"

    of_each(replayed, problems, look)
    longest = max(map(evidence.last_step, tolerances), default=0)
    which = f"all {longest}" if steps >= longest else f"the first {steps}"
    return _in_words(which, list(tolerances.values()))


def _in_words(which: str, tolerances: list[Tolerance]) -> str:
    """which: of the steps, all or some."""
    words = f"{which} steps of {len(tolerances)} runs as in their logs"
    others = [tolerance for tolerance in tolerances if tolerance.why]
    if not others:
        return f"{words}, to the last bit"
    widest = max(others, key=lambda tolerance: tolerance.loss)
    return (
        f"{words}, losses within {widest.loss:g} and gradient norms within {widest.norm:g} of"
        f" themselves, not to the bit ({widest.why})"
    )


def tolerance_of(log: Run) -> Tolerance:
    """How near to its log a run can be trained again here."""
    precision = log.config.get("precision", "fp32")
    why = rounding.differences(log)
    if precision != "fp32":
        why.insert(0, precision)
    if log.code != code_of()["hash"]:
        why.append("another version of the trainer")
    if not why:
        return Tolerance(0.0, 0.0)
    return Tolerance(SAME_LOSS[precision], SAME_NORM[precision], "; ".join(why))


def _require_possible(evidence: Evidence, run: Declared) -> None:
    """Raise LeftOut where a run's first steps cannot be made from the pack alone."""
    config = evidence.config(run.name)
    options = evidence.options(run.name)
    evidence.dataset(run.name)
    for name in ("init_from", "branch_from"):
        if options.get(name):
            raise LeftOut(f"{run.name} began with the weights of {options[name]} ({name})")
    if any(value_at(config["run"], path) == "nvme" for path in OFFLOADED):
        raise LeftOut(f"{run.name} keeps a part of itself on a disk of its machine (nvme)")
    for block in ARGUMENTS_OF:
        if options.get(block) and not evidence.trusted and _variant(config, block) is None:
            raise LeftOut(
                f"{evidence.folder(run.name)}: it would run code that came with the pack"
                f" ({(config.get(block) or {}).get('name')}); read it, and give {TRUST} to have it"
                " run"
            )


def _variant(config: Mapping[str, Any], block: str) -> str | None:
    """The name of the trainer's own variant that a run's file of code is to the letter."""
    digest = (config.get(block) or {}).get("hash")
    names = [name for name in variants() if read_own_code(name, block).hash == digest]
    return names[0] if names else None


def train_again(evidence: Evidence, run: Declared, steps: int) -> Run:
    """The first steps of a run, made in a folder of their own, which is removed. Raises UserError
    where it fails otherwise than the run itself did, which may have diverged."""
    tree = tree_of(evidence, run, steps)
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        run_dir = Path(folder) / run.name
        tree["gpt"]["run_dir"] = str(run_dir)
        file = Path(folder) / f"{run.name}.json"
        file.write_text(json.dumps(tree), encoding="utf-8")
        may_diverge = evidence.has_diverged(run.name)
        _train(file, _environment(evidence.run(run.name)), may_diverge)
        return read_run(run_dir)


def _train(file: Path, environment: dict[str, str], may_diverge: bool) -> None:
    """Train a run's JSON by train.py in a process. Raises UserError where that fails."""
    done = subprocess.run(
        [sys.executable, str(TRAIN), "--ds_config", str(file)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode and not (may_diverge and done.returncode == GAVE_UP):
        raise UserError(
            f"{file.stem} cannot be trained again (exit code {done.returncode}):"
            f" {_last_words(done.stderr)}"
        )


def tree_of(evidence: Evidence, run: Declared, steps: int) -> dict[str, Any]:
    """The JSON of a run's first steps: as the run's config.yaml has it, without what writes
    elsewhere than into its own folder, and with the schedule that it had."""
    path = evidence.folder(run.name) / CONFIG
    config = evidence.config(run.name)
    tree, _ = run_to_repeat(path, read_text(path))
    for block in OBSERVER_KEYS:
        tree.pop(block, None)
    gpt = tree["gpt"]
    evaluates = (gpt.get("eval_every") or 0) > 0
    gpt |= {
        "data_root": str(evidence.dataset(run.name).root.resolve()),
        "max_train_steps": steps,
        "eval_every": NEVER if evaluates else 0,
        "final_eval": gpt.get("final_eval") and steps == evidence.last_step(run.name),
        "log_metrics_every": 1,
        "log_grads_every": 0,
        "log_activations_every": 0,
        "log_ckpt_every": 0,
        "keep_steps": None,
        "logger_type": "none",
    }
    for block in ARGUMENTS_OF:
        if gpt.get(block):
            gpt[block] = _variant(config, block) or _code_of(evidence, run, block)
    return tree


def _code_of(evidence: Evidence, run: Declared, block: str) -> str:
    """The file of a run's own code in the pack. Raises UserError where it is not the one that
    config.yaml tells."""
    facts = evidence.config(run.name).get(block) or {}
    # of a variant that another version of the trainer had, the run alone keeps the file
    kept = evidence.folder(run.name) / CODE_FOLDER / str(facts.get("name"))
    path = Path(evidence.entry.overrides(run.side).get(f"gpt.{block}", kept)).resolve()
    code = read_own_code(str(path), block)
    if code.hash != facts.get("hash"):
        raise UserError(f"{path} is {code}, and config.yaml tells {facts.get('hash')}")
    return str(path)


def _environment(log: Run) -> dict[str, str]:
    """Of one process on the kind of device that the log is from, with as many threads."""
    environment = child_environment()
    threads = rounding.threads_of(log)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    return environment


def _last_words(text: str) -> str:
    """The sentence of an error, or the last line."""
    spoken = [line for line in text.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in spoken if "error: " in line]
    words = errors[:1] or spoken[-1:] or ["it said nothing"]
    return in_one_line(words[0])[:LONGEST_MESSAGE]


def differences(name: str, log: Run, retrained: Run, tolerance: Tolerance) -> Iterator[str]:
    """The first figure of the first steps that is another in a run's log than trained again."""
    split = log.options["eval_data_split"]
    kinds = (
        ("evaluation", "total_loss", tolerance.loss, events.EVAL, split),
        ("final evaluation", "total_loss", tolerance.loss, events.FINAL_EVAL, split),
        ("step", "loss", tolerance.loss, events.TRAIN, None),
        ("step", "grad_norm", tolerance.norm, events.TRAIN, None),
    )
    for what, quantity, allowed, kind, of_split in kinds:
        curve = retrained.curve(kind, of_split)
        values = {event["step"]: event.get(quantity) for event in curve}
        for event in log.curve(kind, of_split):
            step = event["step"]
            if step in values and not _is_same(event.get(quantity), values[step], allowed):
                yield (
                    f"{name}: {quantity} of {what} {step} is {event.get(quantity)} in its log, and"
                    f" {values[step]} trained again ({_in_short(tolerance, allowed)})"
                )
                return


def _in_short(tolerance: Tolerance, allowed: float) -> str:
    if tolerance.why is None:
        return "on a CPU of the same kind it is the same to the last bit"
    return f"equal would be within {allowed:g}: {tolerance.why}"


def _is_same(logged: Any, retrained: Any, allowed: float) -> bool:
    if not isinstance(logged, (int, float)) or not isinstance(retrained, (int, float)):
        return logged is None and retrained is None
    return math.isclose(logged, retrained, rel_tol=allowed)
