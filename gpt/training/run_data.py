"""The dataset of a run, looked at while its configuration is checked."""

from contextlib import suppress
from pathlib import Path

from gpt.config.batch import BATCH
from gpt.config.draft import Draft
from gpt.config.options import SAMPLE
from gpt.config.resolve import take_vocabulary
from gpt.data.datasets import Dataset
from gpt.data.streams import require_documents
from gpt.errors import UserError


def look_up_vocabulary(draft: Draft) -> None:
    """Set a vocabulary size that the draft lacks to that of its dataset, where that is there."""
    root = draft.get("gpt.data_root")
    if root is not None and draft.lacks("gpt.vocab_size") and Path(root).exists():
        with suppress(UserError):
            take_vocabulary(draft, Dataset(root).vocab.size)


class RunData:
    """The dataset that a draft of a configuration names. Its mistakes are for the draft's report,
    and a vocabulary size that the draft lacks is set to the dataset's.

    may_be_absent: whether the configuration is only looked at, with nothing trained. hash_scored:
    whether the tokens that are evaluated are held against their sha256.
    """

    def __init__(self, draft: Draft, may_be_absent: bool, hash_scored: bool = False):
        # None: absent, not looked at, or no dataset
        self.dataset: Dataset | None = None
        self._may_be_absent = may_be_absent
        self._hash_scored = hash_scored
        self._draft = draft
        # None stands for a mistaken value
        self._root: str | None = draft.get("gpt.data_root")
        self._vocab_size: int | None = draft.get("gpt.vocab_size")
        self._eval_split: str | None = draft.get("gpt.eval_data_split")
        self._batch_size: int | None = draft.get(BATCH)

    @property
    def awaits_sample(self) -> bool:
        """Whether it is the sample, and that is yet to be built."""
        return self._root == SAMPLE and not Path(SAMPLE).exists()

    def mistakes(self) -> list[str]:
        """What is wrong with the dataset for this run, as sentences."""
        if self._root is None:
            return []
        if self.awaits_sample:
            from gpt.prepare.sample import VOCAB_SIZE

            take_vocabulary(self._draft, VOCAB_SIZE)
            return []
        if self._may_be_absent and not Path(self._root).exists():
            return []
        return self._look(self._root)

    def open(self) -> Dataset:
        """The dataset, which by now must be there and fit. Raises UserError."""
        if self.dataset is None:
            # the configuration is settled, so it names a dataset
            assert self._root is not None
            mistakes = self._look(self._root)
            if self.dataset is None or mistakes:
                raise UserError("; ".join(mistakes))
        return self.dataset

    def _look(self, root: str) -> list[str]:
        """Open the dataset; returns what is wrong with it."""
        try:
            self.dataset = Dataset(root)
        except UserError as error:
            return [str(error)]
        mistakes = []
        size = self.dataset.vocab.size
        take_vocabulary(self._draft, size)
        if self._vocab_size not in (None, size):
            mistakes.append(
                f"gpt.vocab_size is {self._vocab_size}, but the tokenizer of {root} has"
                f" {size} ids: set --vocab_size {size}, leave it out, or choose another dataset"
            )
        try:
            self._require_splits(self.dataset)
        except UserError as error:
            mistakes.append(str(error))
        return mistakes

    def _require_splits(self, dataset: Dataset) -> None:
        documents = len(dataset.split("train").doc_tokens)
        if self._batch_size is not None:
            require_documents("train", documents, self._batch_size)
        if not self._eval_split:
            return
        scored = dataset.split(self._eval_split)
        if self._hash_scored:
            scored.require_as_written()
