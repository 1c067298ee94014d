"""What a run of an entry is judged by: its last weights are exported, and the whole split is
evaluated with them, in sums of float64 and document by document."""

import subprocess
import sys
from pathlib import Path

from gpt.checkpoint import folders
from gpt.checkpoint.manifest import WEIGHTS
from gpt.checkpoint.weights import consolidate
from gpt.config.own_code import TRUST
from gpt.errors import RunError
from gpt.referee.entry import EXPORT
from gpt.referee.scores import documents_file
from gpt.results import evaluations
from gpt.training.sweep import ROOT, Stop, SweptRun

EVAL = ROOT / "gpt" / "eval.py"


def is_evaluated(run: SweptRun) -> bool:
    run_dir, split, step = _place(run)
    files = [evaluations.file_of(run_dir, split, step), documents_file(run_dir, split, step)]
    return all(file.is_file() for file in files)


def evaluate(run: SweptRun, stop: Stop) -> None:
    """Export a finished run and evaluate it, as far as that is not done. A request to stop leaves
    it to the next call. Raises UserError where the checkpoint is damaged, RunError where the
    evaluation fails."""
    if is_evaluated(run):
        return
    run_dir, split, step = _place(run)
    export = run_dir / EXPORT
    if not (export / WEIGHTS).is_file():
        # the code is that of the entry, which training has run already
        done = consolidate(folders.of_run(run_dir), export, trusted=True)
        if done.doubt:
            print(f"notice: {run.name}: {done.doubt}", flush=True)
    documents = documents_file(run_dir, split, step)
    documents.parent.mkdir(exist_ok=True)
    command = [sys.executable, str(EVAL), "--checkpoint_file", str(export / WEIGHTS)]
    command += ["--eval_data_split", split, "--join", str(run_dir)]
    command += ["--per_document", str(documents)]
    if run.config.model_code is not None:
        command.append(TRUST)
    code = _run(command, stop)
    if stop.reason or (code == 0 and is_evaluated(run)):
        return
    raise RunError(
        f"the evaluation of {run.name} ended with exit code {code}; the run itself is whole, and"
        " the same command evaluates it again"
    )


def _run(command: list[str], stop: Stop) -> int:
    """The exit code of a command in a process of its own, whose results are in files."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    return stop.wait_for(process)


def _place(run: SweptRun) -> tuple[Path, str, int]:
    return run.config.run_dir, run.config.options.eval_data_split, run.last_step
