"""The user's errors: one sentence with what is wrong, where, and what to do; exit code 2; no traceback."""

import argparse
import os
import sys


class UserError(Exception):
    """A mistake that the user can mend. The message says what is wrong, where, and what to do."""


class RunError(Exception):
    """A run that cannot go on through no mistake in its input. The message says what happened and what is safe."""


class AgreedError(RunError):
    """A RunError that all ranks raise together, and rank 0 tells."""


class AgreedUserError(UserError):
    """A UserError that all ranks raise together, and rank 0 tells."""


class Parser(argparse.ArgumentParser):
    """A command line on which a mistake is a UserError, and options are never guessed from a prefix."""

    def __init__(self, description, **options):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False, **options)  # fmt: skip

    def error(self, message):
        raise UserError(f"command line: {message} (--help lists the options)")


def _main_with_sentences(main):
    try:
        return main()
    except OSError as error:  # a path that cannot be read or written: the input's fault, wherever it is noticed
        if error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; make the path usable or give another one") from error


def run(main):
    """Run a command's `main()` and leave the process with its exit code: 0 done, 2 a user's mistake, 1 a failed run.

    Ranks that share a host read the same input and so find the same mistake: before the process group exists only
    local rank 0 of each host prints it, afterwards every rank does, since by then a mistake may be one rank's own.
    """
    try:
        code = _main_with_sentences(main) or 0
    except (UserError, RunError) as error:
        distributed = sys.modules.get("torch.distributed")
        connected = distributed is not None and distributed.is_available() and distributed.is_initialized()
        agreed = isinstance(error, (AgreedError, AgreedUserError)) and connected
        if agreed and distributed.get_rank() != 0:
            distributed.barrier()  # rank 0 has told: the first that ends has a launcher end the others
        elif connected or os.environ.get("LOCAL_RANK", "0") == "0":
            who = f"[rank {distributed.get_rank()}] " if connected and distributed.get_world_size() > 1 else ""
            print(f"{'' if agreed else who}error: {error}", file=sys.stderr, flush=True)
            if agreed:
                distributed.barrier()
        code = 2 if isinstance(error, UserError) else 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "gpt":
            raise
        print(f"error: the package {error.name!r} is not installed here ({sys.executable}): run `pip install -e .` "
              "in the project's folder", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    _leave(code)


def _leave(code):
    """End the process. After a distributed run without Python's own finalization: gloo's worker threads can still hold
    tensors then, and giving those back to an interpreter that is going away aborts the process now and then, after all
    its work is done (github.com/pytorch/pytorch/pull/179291)."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "gpt.engine" in sys.modules:
        os._exit(code)
    sys.exit(code)
