"""The user's errors: one sentence with what is wrong, where, and what to do; exit code 2; no
traceback."""

import argparse
import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from gpt import standard_streams
from gpt.escaping import in_one_line
from gpt.standard_streams import OutputError
from gpt.wording import nearest

# whose imports fail by a fault of their own
OWN_PACKAGES = ("gpt", "tools", "__main__")
# for it to find the mistake too, and for its launcher to end the other ranks
SECONDS_FOR_LOCAL_RANK_0 = 10.0


class UserError(Exception):
    """A mistake that the user can mend.

    what: what is wrong, and where. mend: what to do about it; the two are told as "what: mend".
    """

    def __init__(self, what: str, mend: str | None = None):
        super().__init__(what if mend is None else f"{what}: {mend}")
        self.what = what
        self.mend = mend

    def __reduce__(self) -> tuple[type, tuple]:
        # an exception by itself goes to another process as its text alone
        return type(self), (self.what, self.mend)


class RunError(Exception):
    """A run that cannot go on through no mistake in its input. The message says what happened and
    what is safe."""


class AgreedError(RunError):
    """A RunError that all ranks raise together, and rank 0 tells."""


class AgreedUserError(UserError):
    """A UserError that all ranks raise together, and rank 0 tells."""


class UnforeseenError(RunError):
    """A fault of the trainer itself, whose traceback is in a file."""


class SilentError(Exception):
    """The end of a process that has nothing more to say: the failure was told, here or by another
    rank."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Parser(argparse.ArgumentParser):
    """A command line on which a mistake is a UserError, and options are never guessed from a
    prefix."""

    def __init__(self, description: str | None, **options: Any):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in sys.argv[1:] if args is None else args:
            # argparse makes an empty list of it
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"{word} gives no value")
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed

    def _unknown(self, words: list[str]) -> str:
        """What is wrong with words that belong to no option."""
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("--"):
                return f"unknown option {option}{nearest(option, self._option_string_actions)}"
        # as of a pattern that the shell has put names in place of
        several = f", and {len(words) - 1} more words" if len(words) > 1 else ""
        return f"{words[0]!r}{several}: no option takes that; one that takes a path takes one path"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message} (--help lists the options)")


def in_words(error: Exception) -> Exception:
    """A mistake that shows itself as one of Python's own exceptions, as a UserError; any other
    error as it is."""
    # the input's fault, wherever it is noticed
    if isinstance(error, OutputError):
        return UserError(f"standard output cannot be written to: {error.strerror}")
    if isinstance(error, OSError) and error.filename is not None:
        path = in_one_line(os.fsdecode(error.filename))
        return UserError(f"{path}: {error.strerror}; make the path usable or give another one")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"a file does not fit on its disk: {error.strerror}", mend="make room")
    if isinstance(error, FileNotFoundError):  # of the working directory, which has no name
        return UserError("the folder that this command was started in is gone: start it in another")
    # of a dying disk, or a file server that is gone
    if isinstance(error, OSError) and error.errno is not None:
        return RunError(
            f"the system failed: {error.strerror}; what was whole before is whole still"
        )
    if isinstance(error, ImportError):
        name = error.name or _where_raised(error)
        if name.split(".")[0] not in OWN_PACKAGES:
            return _failed_import(error, name)
    return error


def unforeseen(error: BaseException, reports: Path | None = None) -> UnforeseenError:
    """What nobody foresaw, in one sentence, its traceback in a file of its own. reports: the folder
    for that file; otherwise, and where it cannot be written there, the system's for such."""
    text = "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _is_ours(frame.filename)] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
    words = in_one_line(f"{type(error).__name__}: {error}".strip().partition("\n")[0])[:200]
    report = _write_report(text, reports) or _write_report(text, None)
    if report is None:  # then it goes where the sentence goes
        return UnforeseenError(f"unforeseen at {place} ({words}):\n{text}")
    return UnforeseenError(
        f"unforeseen at {place} ({words}): a fault of the trainer, so please report it with"
        f" {report}, which holds the traceback and names paths of this machine"
    )


def _write_report(text: str, folder: Path | None) -> str | None:
    """Name of a new file of this text; None where it cannot be written."""
    try:
        descriptor, report = tempfile.mkstemp(prefix="gpt-error-", suffix=".txt", dir=folder)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None
    return report


def _where_raised(error: ImportError) -> str:
    """The module that raised an error which names none, as where a compiled part does not fit."""
    module = OWN_PACKAGES[0]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", module)
    return module


def _failed_import(error: ImportError, name: str) -> UserError:
    if isinstance(error, ModuleNotFoundError):
        return UserError(
            f"the package {name!r} is not installed here ({sys.executable})",
            mend="run `pip install -e .` in the project's folder",
        )
    first_line = str(error).strip().partition("\n")[0]
    return UserError(
        f"the package {name!r} does not load here ({sys.executable}; {first_line})",
        mend="run `pip install -e .` in the project's folder, in a new environment",
    )


def _is_ours(file: str) -> bool:
    """Whether a frame's file is the trainer's, other than this one, which calls the others."""
    return Path(file).is_relative_to(Path(__file__).parents[1]) and file != __file__


def explain_imports() -> None:
    """Have an import that fails before a command gets to `command` told as its mistakes are."""
    hook_before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        explained = in_words(error) if isinstance(error, ImportError) else error
        if not isinstance(explained, UserError):
            return hook_before(kind, error, trace)
        tell(explained)
        sys.exit(2)

    sys.excepthook = hook


def in_brief(error: BaseException, path: Path | str | None = None) -> str:
    """An error in one line, as part of a message: the file, and what the system says of it or the
    error's own first words."""
    path = path or getattr(error, "filename", None)
    words = getattr(error, "strerror", None)
    if not words:
        first_line = str(error).partition("\n")[0]
        words = f"{type(error).__name__}: {first_line[:120]}"
    return f"{path}: {words}" if path else words


def tell(error: Exception, who: str = "", reports: Path | None = None) -> None:
    """Write an error to stderr, in one sentence. reports: as for `unforeseen`."""
    if not isinstance(error, (UserError, RunError)):
        error = unforeseen(error, reports)
    with suppress(OSError):  # a full disk under a log, a reader that has gone
        sys.stderr.write(f"{who}error: {error}\n")
        sys.stderr.flush()


def command(main: Callable[[], int | None], is_rank: bool = False) -> NoReturn:
    """Run a command's `main()` and leave the process with its exit code: 0 done, 2 a user's
    mistake, 1 a failed run or a fault of the trainer's own.

    is_rank: whether other ranks may run beside it, of whom one tells for all. What a rank prints is
    a log; what another command prints is what it is for, so it fails where that cannot be written.
    """
    standard_streams.make_usable()
    try:
        code = main() or 0
        if not is_rank:
            sys.stdout.flush()
    except SilentError as silent:
        code = silent.code
    except KeyboardInterrupt:
        code = 130
    except Exception as caught:
        code = _fail(caught, is_rank)
    _leave(code)


def _fail(caught: Exception, is_rank: bool) -> int:
    """Tell what ended a command; its exit code."""
    if isinstance(caught, OutputError):
        standard_streams.discard(sys.stdout)
    # of what reads along, `head` for one, and has seen enough
    if isinstance(caught, OutputError) and caught.errno == errno.EPIPE:
        return 141
    error = in_words(caught)
    if isinstance(error, MemoryError):
        error = RunError("there is not enough memory here; what was whole before is whole still")
    elif not isinstance(error, (UserError, RunError)):
        error = unforeseen(error)
    if is_rank:
        _tell_once(error)
    else:
        tell(error)
    return 2 if isinstance(error, UserError) else 1


def _tell_once(error: UserError | RunError) -> None:
    """Tell an error that other ranks may have met too.

    Ranks that share a host read the same input and so find the same mistake: before the process
    group exists local rank 0 of each host tells it. The others leave that to it and wait until
    their launcher ends them, for the first that ends has it end all the others; who is not ended
    has a mistake of its own. Once the process group exists every rank tells its own.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SECONDS_FOR_LOCAL_RANK_0)
        tell(error)
        return
    rank = distributed.get_rank()
    if isinstance(error, (AgreedError, AgreedUserError)):
        if rank == 0:
            tell(error)
        # until rank 0 has told: the first that ends has a launcher end the others
        distributed.barrier()
    elif distributed.get_world_size() > 1:
        tell(error, f"[rank {rank}] ")
    else:
        tell(error)


def _leave(code: int) -> NoReturn:
    """End the process. After a distributed run without Python's own finalization: gloo's worker
    threads can still hold tensors then, and giving those back to an interpreter that is going away
    aborts the process now and then, after all its work is done
    (github.com/pytorch/pytorch/pull/179291)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk under a log, a reader that has gone
            standard_streams.discard(stream)
    if "gpt.engine.boundary" in sys.modules:
        os._exit(code)
    sys.exit(code)
