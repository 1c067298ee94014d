"""The dataset of a run, looked at while its configuration is checked."""

from pathlib import Path

from gpt.errors import UserError

SAMPLE = "data/sample"


class Data:
    """The run's dataset, looked at while its configuration is checked, so that all mistakes come in
    one report."""

    def __init__(self, may_be_absent: bool):
        self.dataset = None
        self._may_be_absent = may_be_absent

    def mistakes(self, options: dict, batch_size) -> list:
        """What is wrong with the dataset for these options of the "gpt" block; None stands for a
        mistaken value."""
        from gpt.data.datasets import Dataset
        from gpt.data.streams import require_documents

        root = options["data_root"]
        absent = root is None or not Path(root).exists()
        if absent and (root in (None, SAMPLE) or self._may_be_absent):
            return []
        try:
            self.dataset = Dataset(root)
        except UserError as error:
            return [str(error)]
        found, size = [], self.dataset.vocab.size
        if options["vocab_size"] not in (None, size):
            found.append(
                f"gpt.vocab_size is {options['vocab_size']}, but the tokenizer of {root} has {size}"
                f" ids: set --vocab_size {size}, or choose another dataset"
            )
        try:
            for name in filter(None, ("train", options["eval_data_split"])):
                documents = len(self.dataset.split(name).doc_tokens)
                if name == "train" and batch_size is not None:
                    require_documents(name, documents, batch_size)
        except UserError as error:
            found.append(str(error))
        return found

    def open(self, config):
        """The dataset, which by now must be there and fit. Raises UserError."""
        options = {
            "data_root": config.options.data_root,
            "vocab_size": config.model.vocab_size,
            "eval_data_split": config.options.eval_data_split,
        }
        found = (
            []
            if self.dataset is not None
            else self.mistakes(options, config.batch.train_batch_size)
        )
        if found:
            raise UserError("; ".join(found))
        return self.dataset
