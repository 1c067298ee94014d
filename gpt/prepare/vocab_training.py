"""Training a SentencePiece vocabulary on a bounded sample of documents."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt.data.vocab import END_OF_DOCUMENT, Vocab
from gpt.errors import UserError
from gpt.escaping import in_one_line
from gpt.prepare import trainer_process
from gpt.prepare.documents import Input, documents, file_of_rows, holds_rows
from gpt.prepare.splits import TRAIN, Rule
from gpt.prepare.texts import Document, NotUTF8, Reading

# The baseline's options (Languini Kitchen's books_16384.model).
TOKENIZER_OPTIONS: dict[str, Any] = dict(
    model_type="bpe",
    hard_vocab_limit=True,
    input_sentence_size=2_000_000,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    pad_id=0,
    max_sentencepiece_length=99,
    split_by_unicode_script=True,
    split_by_number=True,
    split_by_whitespace=True,
    add_dummy_prefix=False,
    byte_fallback=True,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    normalization_rule_name="identity",
    user_defined_symbols=END_OF_DOCUMENT,
    split_digits=True,
    vocabulary_output_piece_score=False,
)

LARGEST_VOCABULARY = 1 << 20

# pad, unk, <D>, the bytes, one piece
SMALLEST_VOCABULARY = 3 + 256 + 1

# Characters. SentencePiece ignores training sentences of more than 4,192 bytes.
LONGEST_SENTENCE = 1000

# Of text that a vocabulary is trained on.
TRAINING_BYTES = 1 << 27


def training_documents(
    inputs: Sequence[Input], rule: Rule, reading: Reading, say: Callable[[str], object] = print
) -> Iterator[Document]:
    """Documents of the split `train` that a vocabulary is trained on: the first of the stable
    order, up to TRAINING_BYTES, file by file."""
    if any(holds_rows(entry) for entry in inputs):
        say(
            f"reading the names of the documents in {len(inputs):,} files, to train on none that is"
            " held out"
        )
    names = []
    folders = []
    files = []
    sizes = []
    input_of = []  # each document's, as an index
    for index, entry in enumerate(inputs):
        for document in documents(entry, reading):
            names.append(document.name)
            folders.append(entry.split)
            files.append(file_of_rows(entry))
            input_of.append(index)
            if isinstance(document.source, Path):
                sizes.append(entry.size)
            else:
                sizes.append(len(document.source))
    train = rule.share_out(names, folders, files)[TRAIN]
    size = 0
    chosen_names: dict[int, set[str]] = {}  # by their input
    for count, index in enumerate(train, 1):
        chosen_names.setdefault(input_of[index], set()).add(names[index])
        size += sizes[index]
        if size >= TRAINING_BYTES:
            break
    say(f"training a tokenizer on {count:,} of {len(train):,} documents, {size / 1e6:,.1f} MB")
    return _chosen_documents(inputs, chosen_names, reading)


def _chosen_documents(
    inputs: Sequence[Input], chosen_names: dict[int, set[str]], reading: Reading
) -> Iterator[Document]:
    for index, names in chosen_names.items():
        for document in documents(inputs[index], reading):
            if document.name not in names:
                continue
            if reading.bad_utf8 != "skip" or _is_utf8(document):
                yield document


def _is_utf8(document: Document) -> bool:
    try:
        for _ in document.blocks():
            pass
    except NotUTF8:
        return False
    return True


def _sentences(documents: Iterable[Document]) -> Iterator[str]:
    """Lines, the empty ones left out and the long ones cut at blanks, of about TRAINING_BYTES of
    text."""
    left = TRAINING_BYTES
    for document in documents:
        unfinished = ""
        for block in document.blocks():
            left -= len(block)
            *lines, unfinished = (unfinished + block).split("\n")
            for line in lines:
                yield from filter(None, _cut(line))
            *pieces, unfinished = _cut(unfinished)
            yield from pieces
            if left < 0:
                return
        if unfinished:
            yield unfinished


def _cut(line: str) -> Iterator[str]:
    """Pieces of a line of at most LONGEST_SENTENCE characters."""
    start = 0
    while len(line) - start > LONGEST_SENTENCE:
        cut = line.rfind(" ", start + 1, start + LONGEST_SENTENCE)
        if cut <= 0:
            cut = start + LONGEST_SENTENCE
        yield line[start:cut]
        start = cut
    yield line[start:]


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Vocab:
    """A BPE vocabulary of `vocab_size` ids with the baseline's options, deterministic for the same
    documents. Raises UserError."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab_size {vocab_size} is too small",
            mend=f"3 special ids and 256 bytes need at least {SMALLEST_VOCABULARY}",
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(
            f"--vocab_size {vocab_size} is too large", mend=f"give at most {LARGEST_VOCABULARY}"
        )
    sentences = iter(_sentences(documents))
    first = next(sentences, None)
    if first is None:
        raise UserError("no tokenizer can be trained: the documents of `train` hold no text")
    options = {"vocab_size": vocab_size, "minloglevel": 2, **TOKENIZER_OPTIONS}
    try:
        model = trainer_process.train(itertools.chain([first], sentences), options)
    except trainer_process.TrainingError as error:
        raise _training_mistake(str(error), vocab_size) from error
    except trainer_process.TrainerLost as error:
        raise UserError(
            f"the tokenizer's training ended with exit code {error.returncode}, for want of memory"
            " perhaps",
            mend="free some, or give a tokenizer with --tokenizer",
        ) from error
    return Vocab(model)


def _training_mistake(message: str, vocab_size: int) -> UserError:
    """What SentencePiece's message means to the user."""
    limit = re.search(r"set it to a value <= (\d+)", message)
    if limit:
        return UserError(
            f"the text is too little for a vocabulary of {vocab_size}",
            mend=f"lower --vocab_size to at most {limit[1]}, or give more text",
        )
    needed = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if needed:
        return UserError(
            f"a vocabulary of {vocab_size} has no room for the text's characters",
            mend=f"raise --vocab_size to {needed[2]} or more",
        )
    return UserError(
        f"no tokenizer of {vocab_size} ids could be trained on the text (SentencePiece says:"
        f" {in_one_line(message.strip())})"
    )
