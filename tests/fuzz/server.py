"""Commands in forked children of this process, which has imported what they need: imports are most
of a command's time."""

import atexit
import ctypes
import faulthandler
import gc
import importlib
import io
import multiprocessing.util
import os
import resource
import runpy
import select
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30

# for which a command may run; a usual one takes a tenth of a second
SECONDS = 60.0
# that its own children may take to go
SECONDS_OF_CHILDREN = 10.0
# of address space, beyond what this process has already
MEMORY = 3 * GIB
FILE_SIZE = GIB
CAPABILITIES_VERSION = 0x20080522

# what commands import as they run; torch._dynamo where a model's shapes are asked for
IMPORTS = (
    "deepspeed",
    "torch._dynamo",
    "gpt.eval",
    "gpt.generate",
    "gpt.cluster.preflight",
    "gpt.compute.dry_run",
    "gpt.convert.languini_books",
    "gpt.convert.languini_weights",
    "gpt.convert.transformers_gpt2",
    "gpt.prepare.pipeline",
    "gpt.prepare.sample",
    "gpt.prepare.verify",
    "gpt.results.drawing",
    "gpt.results.page",
    "gpt.training.sweep",
    "gpt.training.throughput",
    "gpt.training.trainer",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "scipy.optimize",
    "scipy.stats",
    "pyarrow.parquet",
)


@dataclass(frozen=True)
class Command:
    """A command of this project.

    tool: its file, such as tools/compare.py. changes: patterns of the paths that it may make or
    change, relative to its working directory.
    """

    tool: str
    argv: list[str]
    changes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    stdin: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: its exit code, or minus the signal that ended it. peak: bytes of
    memory that it took, those of this process included."""

    code: int
    stdout: bytes
    stderr: bytes
    seconds: float
    peak: int
    timed_out: bool
    left_children: bool


def prepare_server() -> None:
    """Import what commands need, so that their processes have it."""
    sys.path[:0] = [str(ROOT)]
    torch.set_num_threads(1)
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # else each child copies what its collector looks at


def run(
    command: Command,
    folder: Path,
    plant: Callable[[], None] | None = None,
    seconds: float = SECONDS,
) -> Outcome:
    """Run a command in a folder. plant: called in its process before it begins."""
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.write(streams[0], os.fsencode(command.stdin))
    os.lseek(streams[0], 0, os.SEEK_SET)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(command, folder, streams, plant)
    os.setpgid(child, child)
    timed_out = not _ends_within(seconds, child)
    if timed_out:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - began
    left_children = _end_group(child)
    texts = [_content(stream) for stream in streams[1:]]
    for stream in streams:
        os.close(stream)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        *texts,
        seconds,
        usage.ru_maxrss * 1024,
        timed_out,
        left_children,
    )


def _ends_within(seconds: float, child: int) -> bool:
    descriptor = os.pidfd_open(child)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _end_group(group: int) -> bool:
    """End what a command left running; whether there was anything."""
    deadline = time.monotonic() + SECONDS_OF_CHILDREN
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    return True


def _content(stream: int) -> bytes:
    os.lseek(stream, 0, os.SEEK_SET)
    return os.read(stream, 1 << 26)


def _be_the_command(
    command: Command, folder: Path, streams: list[int], plant: Callable[[], None] | None
) -> None:
    code = 1
    try:
        _become(command, folder, streams)
        if plant is not None:
            plant()
        code = _run_tool(command)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _become(command: Command, folder: Path, streams: list[int]) -> None:
    """Have this process be as a new one of the command's."""
    os.setpgid(0, 0)
    _forget_the_end()
    faulthandler.disable()  # which pytest enables
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        wrapper = io.TextIOWrapper(open(number, "wb", closefd=False), encoding="utf-8")
        setattr(sys, name, wrapper)
        setattr(sys, f"__{name}__", wrapper)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(
        {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **command.environment,
        }
    )
    tempfile.tempdir = None  # of the environment's own
    sys.argv = [str(ROOT / command.tool), *command.argv]
    sys.path[:0] = [str((ROOT / command.tool).parent)]
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _limit()


def _forget_the_end() -> None:
    """Leave what the server would do at its own end, such as removing its folders, to the
    server."""
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # else files that nobody may read are read all the same where this is root
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())


def _run_tool(command: Command) -> int:
    """Run a tool's file, and what Python runs at its end; its exit code."""
    code = 0
    try:
        runpy.run_path(str(ROOT / command.tool), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code
