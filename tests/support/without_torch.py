"""Where torch is not installed, what needs it is skipped and the rest is tested: on a Python for
which there is none, say. Part of conftest.py."""

import importlib.abc
import importlib.util
import sys

import pytest

NEED_IT = ("torch", "deepspeed")
ABSENT = [name for name in NEED_IT if importlib.util.find_spec(name) is None]
# for a test that starts a process of its own
needs_torch = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
# what a command says before it does anything, and what Python says of a test's own script
SENTENCES = [
    sentence
    for name in ABSENT
    for sentence in (f"the package {name!r} is not installed here", f"No module named {name!r}")
]


class Absent(importlib.abc.MetaPathFinder):
    """Skips the test, or the whole file, that imports an absent package."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            pytest.skip(f"{name} is not installed", allow_module_level=True)


# asked last: for what no other finder knows
sys.meta_path.append(Absent())


def skip_if_it_was_needed(stderr):
    """Skip the test that ran a command which could not import it."""
    for sentence in SENTENCES:
        if sentence in stderr:
            pytest.skip(sentence)
