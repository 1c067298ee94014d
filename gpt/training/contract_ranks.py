"""The ranks of gpt.training.contract_runs: processes of this host that train a plan's runs one
after another. They are forked from one that has imported all they need, which is most of a
launch's cost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpt.cluster.launch import free_port
from gpt.config.resolve import resolve
from gpt.data.datasets import Dataset
from gpt.errors import RunError, SilentError, UserError, in_words
from gpt.escaping import in_one_line

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
PLAN = "plan.json"
LOG = "ranks.log"
SECONDS = 600.0  # for all runs together
# after a rank has failed, for the other to find out by itself
GRACE_SECONDS = 10.0


def train(plan: list[dict[str, Any]], folder: Path) -> str | None:
    """Train runs on two ranks, in their order; returns why one failed, and those after it are not
    trained.

    plan: {"name", "tree": a run's JSON} of each. folder: for what the ranks write down.
    """
    (folder / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    with open(folder / LOG, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpt.training.contract_ranks", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            start_new_session=True,
        )
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the forked ones too
            process.wait()
    return _failure(folder, [entry["name"] for entry in plan])


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
    }


def _failure(folder: Path, names: list[str]) -> str | None:
    """By what the ranks wrote down, each: how many of the runs it ended, and why no more."""
    reports: list[dict[str, Any]] = []
    for rank in range(RANKS):
        file = folder / f"rank{rank}.json"
        reports.append(json.loads(file.read_text()) if file.is_file() else {"ended": 0})
    ended = min(report["ended"] for report in reports)
    if ended == len(names):
        return None
    sentences = [str(report["error"]) for report in reports if "error" in report]
    why = sentences[0] if sentences else _last_words(folder / LOG)
    return f"trained on {RANKS} ranks at {names[ended]}: {why}"


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    spoken = [line for line in lines if line.strip()]
    errors = [line.partition("error: ")[2] for line in spoken if "error: " in line]
    words = errors[:1] or spoken[-1:] or ["it did not end, and said nothing"]
    return in_one_line(words[0])[:400]


# ---- The processes


def main() -> None:
    """Fork the ranks, and wait for them; where one fails, end the other."""
    # what they need, imported once
    from gpt.engine import boundary  # noqa: F401
    from gpt.training import trainer  # noqa: F401

    folder = Path(sys.argv[1])
    running = {_fork(rank, folder) for rank in range(RANKS)}
    end = time.monotonic() + SECONDS
    while running and time.monotonic() < end:
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                running.discard(process)
                if status:
                    end = min(end, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.02)
    for process in running:
        os.kill(process, signal.SIGKILL)


def _fork(rank: int, folder: Path) -> int:
    """The process of a rank, which goes on nowhere but here."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        code = _train(rank, folder)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _train(rank: int, folder: Path) -> int:
    """Train a plan's runs as one of the ranks, and write down how far it came; returns the exit
    code."""
    import torch

    from gpt.engine import boundary
    from gpt.training.trainer import Trainer

    # of a pool of threads that was there before the fork nothing is left
    torch.set_num_threads(1)
    file = folder / f"rank{rank}.json"
    ended = 0
    try:
        world = boundary.connect()
        for entry in json.loads((folder / PLAN).read_text(encoding="utf-8")):
            config = resolve(entry["tree"], entry["name"], RANKS)
            dataset = Dataset(config.options.data_root)
            trainer = Trainer(config, dataset, rank, RANKS, ("torch", "a check"))
            try:
                trainer.train(boundary.Engine, world)
            finally:
                if trainer.lock is not None:
                    trainer.lock.release()
                if trainer.stop_request is not None:
                    trainer.stop_request.close()
            ended += 1
            file.write_text(json.dumps({"ended": ended}), encoding="utf-8")
    except (UserError, RunError, OSError) as error:
        report = {"ended": ended, "error": str(in_words(error))}
        file.write_text(json.dumps(report), encoding="utf-8")
        return 1
    except SilentError as silent:  # it is in the log
        return silent.code
    boundary.disconnect()
    return 0


if __name__ == "__main__":
    main()
