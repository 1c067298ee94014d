"""Weights scored on held-out text: what is scored, in which windows, and the figures."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gpt.architecture.language_model import LanguageModel
from gpt.checkpoint.sources import Source
from gpt.config.options import LAST_N
from gpt.contract.second_look import BRIEF, Effort, SecondLook
from gpt.data.datasets import Dataset, Split
from gpt.data.manifests import HASH_BYTES
from gpt.data.vocab import Vocab
from gpt.errors import UserError
from gpt.evaluation import DocumentTally, Evaluator, Pieces, Score, Stream, Tally, summary
from gpt.metrics.events import finite
from gpt.prepare.in_memory import TextSplit, split_of_files
from gpt.quantities import contradiction
from gpt.results.document_sums import DocumentSums

# tokens of a batch, where nobody says how many windows
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Documents:
    """Those of a stream in their order. tokens: ids of each, its end-of-document id included;
    bytes: of its text; both int64 (documents,). hashes: as DocumentSums has them."""

    tokens: np.ndarray
    bytes: np.ndarray
    hashes: tuple[str, ...]


class Target(NamedTuple):
    """Text to score. facts: what the result tells of it, its "split" and "dataset" among them.
    documents: for sums of each; None where nobody asks for them."""

    facts: dict[str, Any]
    stream: Stream
    vocab: Pieces
    documents: Documents | None = None


class Evaluated(NamedTuple):
    """result: what eval.py's --json holds. documents: None where the target tells of none."""

    result: dict[str, Any]
    documents: DocumentSums | None


def of_texts(files: Sequence[str], source: Source, per_document: bool = False) -> Target:
    """Files as one text, by the tokenizer of the weights. Raises UserError."""
    vocab = Vocab.load(source.tokenizer)
    require_own_tokenizer(vocab, source, str(source.tokenizer))
    stream = split_of_files(files, vocab)
    facts = {"split": "text", "dataset": ", ".join(files)}
    return Target(facts, stream, vocab, documents_of(stream, vocab) if per_document else None)


def of_split(
    dataset: Dataset, name: str, hashed: bool = True, per_document: bool = False
) -> Target:
    """A split of a dataset. hashed: its tokens are held against their sha256. Raises UserError."""
    facts = {"split": name, "dataset": str(dataset.root), "documents": dataset.documents(name)}
    split = dataset.split(name)
    if hashed:
        split.require_as_written()
    documents = documents_of(split, dataset.vocab) if per_document else None
    return Target(facts, split, dataset.vocab, documents)


def documents_of(split: Split | TextSplit, vocab: Vocab) -> Documents:
    """What sums of each document need. vocab: that of its ids."""
    tokens = split.doc_tokens + 1
    hashes = split.doc_hashes
    if hashes is not None:
        return Documents(tokens, split.doc_bytes, tuple(row.tobytes().hex() for row in hashes))
    # a dataset of before format 3
    texts = []
    ends = np.cumsum(tokens).tolist()
    for start, end in zip([0, *ends], ends):
        text = vocab.text_bytes(split.tokens[start : end - 1])
        texts.append(hashlib.sha256(text).digest()[:HASH_BYTES].hex())
    return Documents(tokens, split.doc_bytes, tuple(texts))


def require_own_tokenizer(vocab: Vocab, source: Source, where: str) -> None:
    """Raise UserError where the text would get other ids than those that the model has learned.
    where: the tokenizer's file, or the dataset that it made."""
    mend = f"prepare the text with `--tokenizer {source.tokenizer}`"
    if source.trained_on.get("tokenizer") not in (None, vocab.fingerprint):
        raise UserError(
            f"{where} has another tokenizer than the one that the model was trained with", mend=mend
        )
    size = source.shape.vocab_size
    if vocab.size != size:
        raise UserError(
            f"the tokenizer of {where} has {vocab.size} ids, but the model was trained with {size}",
            mend=mend,
        )


def window_of(
    source: Source, seq_len: int | None = None, last_n: int | None = None
) -> tuple[int, int]:
    """(seq_len, last_n); by default the model's, and its run's. Raises UserError where the model
    cannot score such windows."""
    longest = source.shape.seq_len
    options = source.config["run"].get("gpt") or {}
    return window_within(longest, seq_len or longest, last_n, options.get("last_n") or LAST_N)


def window_within(
    longest: int | None, seq_len: int, last_n: int | None, last_n_by_default: int = LAST_N
) -> tuple[int, int]:
    """(seq_len, last_n). longest: positions that the model has; None without a limit. Raises
    UserError as `window_of` does."""
    if longest is not None and seq_len > longest:
        raise UserError(
            f"--seq_len {seq_len} is longer than the {longest} positions that the model was trained"
            " with",
            mend=f"give at most {longest}",
        )
    if last_n is None:
        return seq_len, min(last_n_by_default, seq_len)
    if last_n > seq_len:
        raise UserError(
            f"--last_n {last_n} is more than the {seq_len} targets of a window",
            mend=f"give at most {seq_len}",
        )
    return seq_len, last_n


def evaluate(
    model: Score,
    target: Target,
    facts: dict[str, Any],
    window: tuple[int, int],
    device: str,
    batch_size: int | None = None,
    effort: Effort = BRIEF,
) -> Evaluated:
    """A model's figures on a text, with a bar on a terminal meanwhile.

    facts: what the result tells of the weights, such as their "checkpoint" and "step". window:
    (seq_len, last_n). effort: of the second look at a model file's model. Raises UserError where it
    sees what it may not, or where what is measured cannot be true.
    """
    seq_len, last_n = window
    batch_size = batch_size or max(1, BATCH_TOKENS // seq_len)
    evaluator = Evaluator(target.stream, target.vocab, seq_len, last_n, batch_size)
    documents = None
    if target.documents is not None:
        documents = DocumentTally(target.documents.tokens)
    look = None
    if isinstance(model, LanguageModel):
        look = SecondLook(model, evaluator.calls, batch_size, effort)
    name = target.facts["split"]
    tally = _tally(evaluator, look or model, name, device, documents)
    if look is not None:
        look.require_blind()
    result = {
        **target.facts,
        **facts,
        "seq_len": seq_len,
        "last_n": last_n,
        "of_tokens": len(target.stream.tokens),
        **summary(tally),
    }
    problem = contradiction(finite(result))
    if problem:
        raise UserError(
            f"{facts['checkpoint']}: what it scores on {name!r} cannot be true: {problem}",
            mend="look at the logits that the model makes",
        )
    if documents is None:
        return Evaluated(result, None)
    return Evaluated(result, _sums_of(target, documents))


def _tally(
    evaluator: Evaluator, model: Score, name: str, device: str, documents: DocumentTally | None
) -> Tally:
    with tqdm(
        total=evaluator.calls,
        unit="batch",
        desc=name,
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as bar:
        tally = evaluator.run(model, device, lambda: bar.update() or True, documents)
    assert tally is not None
    return tally


def _sums_of(target: Target, tally: DocumentTally) -> DocumentSums:
    """Raises UserError where the tokens of a document carry other bytes than it has."""
    documents = target.documents
    assert documents is not None
    wrong = np.flatnonzero(tally.bytes != documents.bytes)
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"document {first + 1} of {target.facts['split']!r} in {target.facts['dataset']} has"
            f" {documents.bytes[first]:,} bytes, and the tokenizer's tokens of it stand for"
            f" {tally.bytes[first]:,}",
            mend="prepare the text again: figures per byte would be wrong",
        )
    return DocumentSums(
        documents.hashes,
        tally.nats,
        tally.tokens,
        tally.text_nats,
        tally.text_tokens,
        tally.bytes,
    )
