"""What a GPU makes of this trainer, in ten minutes: what is right and wrong, how fast, and why.

    python tools/gpu_check.py                         a report in runs/gpu_check/report.md
    python tools/gpu_check.py --only engine-bf16      some stages again, into the same report
    python tools/gpu_check.py --dry --out runs/dry    tiny shapes on the CPU, to try the check

Every stage is a process of its own, so one that crashes or hangs costs only itself. What it finds
is a line of results.jsonl at once, what it prints is in logs/, and report.md is written anew after
every stage. Those that take no times run together first; a stage for which too little of --budget
is left is skipped, and the report says so. Run it on a GPU that does nothing else.

Exit code 0: all that ran is right; 1: something is wrong, a stage failed, or none was ended; 2: a
mistake in the options, or no GPU.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from gpt.errors import Parser, UserError, command
from gpt.files import when_full
from gpt.locking import FolderLock
from tools.gpu_stages import STAGES, report
from tools.gpu_stages.findings import RESULTS, Findings

STAGE_COMMAND = ROOT / "tools" / "gpu_stages" / "__main__.py"
DRY_LANES = 3  # stages at a time where none takes times
DRY_PATIENCE = 3  # times a stage's limit, on CPUs that may be shared
LAST_WORDS = 300  # characters of a failed stage's last line that the report quotes


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gpu_check"),
        metavar="FOLDER",
        help="default runs/gpu_check",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=540.0,
        metavar="SECONDS",
        help="for all stages together (default 540)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="STAGE",
        help=f"some of: {', '.join(stage.name for stage in STAGES)}",
    )
    parser.add_argument("--dry", action="store_true", help="try the check itself on the CPU")
    args = parser.parse_args()
    names = [stage.name for stage in STAGES]
    for name in args.only or ():
        if name not in names:
            raise UserError(
                f"--only {name}: there is no such stage; choose from {', '.join(names)}"
            )
    if not args.budget > 0:
        raise UserError(f"--budget {args.budget:g}", mend="give a positive number of seconds")
    device = _device(args.dry)
    with when_full(f"{args.out}: the disk is full", mend="make room, or give another --out"):
        return _check(args, device)


def _check(args, device):
    """The exit code of a check, whose findings are in args.out."""
    stages = [stage for stage in STAGES if not args.only or stage.name in args.only]
    lock = FolderLock(
        args.out,
        other="another check is writing into",
        mend="wait for it, or give another --out",
    )
    _prepare(args.out, device, args.dry, args.only)
    session = Session(args.out, args.budget, args.dry, stages)
    session.findings.add(stage="session", asked=[stage.name for stage in session.stages])
    try:
        session.run()
    finally:
        session.end()
    findings = session.findings.read()
    print(f"{report.verdicts(findings)}all of it: {args.out / 'report.md'}")
    lock.release()
    return 0 if report.is_right(findings) else 1


def _device(dry):
    import torch  # where it is missing, that is told once, not by every stage

    if dry:
        return "a dry run on the CPU"
    if not torch.cuda.is_available():
        raise UserError(
            "there is no CUDA device here",
            mend="run this on a machine with one, or try the check itself with --dry",
        )
    return torch.cuda.get_device_name()


def _prepare(out, device, dry, only):
    """The folder; it holds the findings of one device."""
    findings = Findings(out)
    earlier = findings.read()
    session = next((finding for finding in earlier if finding["stage"] == "session"), None)
    if session and session["device"] != device:
        raise UserError(
            f"{findings.path} is of {session['device']}, and this is {device}",
            mend="give another --out",
        )
    if session and not only:
        ended = {finding["stage"] for finding in earlier if finding.get("event") == "ended"}
        names = " ".join(stage.name for stage in STAGES if stage.name not in ended)
        aim = "go on with it" if names else "repeat some of it"
        raise UserError(
            f"{findings.path} holds an earlier check",
            mend=f"give another --out, or --only {names or 'STAGE'} to {aim}",
        )
    (out / "logs").mkdir(parents=True, exist_ok=True)
    if not session:
        findings.add(stage="session", device=device, dry=dry, results=RESULTS)


class Session:
    """The stages of one check, from their start to their end."""

    def __init__(self, out: Path, budget: float, dry: bool, stages: list):
        self.out = out
        self.dry = dry
        self.stages = stages
        self.findings = Findings(out)
        self._running = {}
        self._ends = time.monotonic() + budget

    def left(self) -> float:
        return self._ends - time.monotonic()

    def run(self):
        if self.dry:
            self._together(sorted(self.stages, key=lambda stage: -stage.limit), DRY_LANES)
            while self._running:
                self._watch()
            return
        beside = [stage for stage in self.stages if not stage.timed or stage.warms_up]
        self._together(beside, len(beside))
        for stage in self.stages:
            if stage.warms_up and stage.name in self._running:
                self._running[stage.name].go()
            elif not stage.timed or stage.warms_up or not self._start(stage):
                continue
            while stage.name in self._running:
                self._watch()

    def _together(self, stages, lanes):
        """Have stages run beside each other, until each has ended or warmed up."""
        waiting = list(stages)
        while waiting or any(not child.is_warm(self.findings) for child in self._running.values()):
            while waiting and len(self._running) < lanes:
                self._start(waiting.pop(0))
            self._watch()

    def _start(self, stage) -> bool:
        if self.left() < stage.limit / 3:
            self.findings.add(
                stage=stage.name,
                event="skipped",
                why=f"{max(0, self.left()):.0f} s of the budget were left",
            )
            report.write(self.out, self.findings.read())
            return False
        self.findings.add(stage=stage.name, event="started")
        print(f"{stage.name} …", flush=True)
        self._running[stage.name] = child = Child(stage, self.out, self.dry)
        if self.dry:
            child.go()
        return True

    def _watch(self):
        """Wait a moment; see to those that have ended or must."""
        time.sleep(0.1)
        for name, child in list(self._running.items()):
            failure = cut = None
            if child.process.poll() is not None:
                failure = child.failure()
            elif child.overdue():
                failure = child.kill(f"it hung, and was killed after {child.seconds():.0f} s")
            elif self.left() <= 0:
                cut = child.kill("it was ended, for the budget was spent")
            else:
                continue
            del self._running[name]
            self.findings.add(
                stage=name, event="ended", seconds=child.seconds(), failure=failure, cut=cut
            )
            print(f"{name}: {failure or cut or 'ended'} ({child.seconds():.0f} s)", flush=True)
            report.write(self.out, self.findings.read())

    def end(self):
        """Leave nothing behind that this session started."""
        for child in self._running.values():
            child.kill()
        report.write(self.out, self.findings.read())


class Child:
    """A stage's process, which leads a process group of its own. It ends when this process does."""

    def __init__(self, stage, out: Path, dry: bool):
        self.stage = stage
        self.dry = dry
        self._began = time.monotonic()
        self._warm = False
        self.log = out / "logs" / f"{stage.name}.txt"
        command = [sys.executable, STAGE_COMMAND, stage.name, out.resolve()]
        if dry:
            command.append("dry")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(dry),
                start_new_session=True,
            )

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def go(self):
        """The device is free for its times."""
        try:
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which _watch will see

    def is_warm(self, findings) -> bool:
        if self.stage.warms_up and not self._warm:
            self._warm = any(
                finding["stage"] == self.stage.name and finding.get("event") == "warm"
                for finding in findings.read()
            )
        return self._warm

    def overdue(self) -> bool:
        return self.seconds() > self.stage.limit * (DRY_PATIENCE if self.dry else 1)

    def failure(self):
        """How the process failed, now that it has ended; None if it did not."""
        code = self.process.wait()
        self.process.stdin.close()
        if code == 0:
            return None
        if code < 0:
            return self._with_last_words(f"it ended by signal {-code}")
        return self._with_last_words(f"it ended with exit code {code}")

    def kill(self, why: str = "") -> str:
        """End the process and all that it started; returns `why`, and its last words."""
        # not waited for yet, so the number is still its own
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        return self._with_last_words(why)

    def _with_last_words(self, how):
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        place = f"{how}, see logs/{self.log.name}"
        return f"{place}: {last[:LAST_WORDS]}" if last else place


def _environment(dry) -> dict:
    """A stage is no rank of whatever launcher this was started under."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    if dry:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return environment


if __name__ == "__main__":
    command(main)
