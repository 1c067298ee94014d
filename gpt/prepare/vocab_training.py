"""Training a SentencePiece vocabulary on a bounded sample of documents."""

import io
import re
from pathlib import Path

import sentencepiece

from gpt.data.vocab import END_OF_DOCUMENT, Vocab
from gpt.errors import UserError
from gpt.prepare.documents import documents, holds_rows
from gpt.prepare.texts import NotUTF8

# The baseline's options (Languini Kitchen's books_16384.model).
TOKENIZER_OPTIONS = dict(
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
SMALLEST_VOCABULARY = 3 + 256 + 1  # pad, unk, <D>, the bytes, one piece
# characters. SentencePiece ignores training sentences of more than 4,192 bytes.
LONGEST_SENTENCE = 1000
TRAINING_BYTES = 1 << 27  # of text that a vocabulary is trained on


def training_documents(inputs, rule, reading, say=print):
    """Documents of the split `train` that a vocabulary is trained on: the first of the stable
    order, up to TRAINING_BYTES, file by file. rule: gpt.prepare.splits.Rule."""
    if any(holds_rows(entry) for entry in inputs):
        say(
            f"reading the names of the documents in {len(inputs):,} files, to train on none that is"
            " held out"
        )
    names = []
    folders = []
    sizes = []
    places = []
    for place, entry in enumerate(inputs):
        for document in documents(entry, reading):
            names.append(document.name)
            folders.append(entry.split)
            sizes.append(entry.size if isinstance(document.source, Path) else len(document.source))
            places.append(place)
    train = rule.share_out(names, folders)["train"]
    size = 0
    wanted = {}
    for count, document in enumerate(train, 1):
        wanted.setdefault(places[document], set()).add(names[document])
        size += sizes[document]
        if size >= TRAINING_BYTES:
            break
    say(f"training a tokenizer on {count:,} of {len(train):,} documents, {size / 1e6:,.1f} MB")
    return (
        document
        for place, chosen in wanted.items()
        for document in documents(inputs[place], reading)
        if document.name in chosen and (reading.bad_utf8 != "skip" or _is_utf8(document))
    )


def _is_utf8(document):
    try:
        return all(True for _ in document.blocks())
    except NotUTF8:
        return False


def _sentences(documents):
    """Lines, the empty ones left out and the long ones cut at blanks, of about TRAINING_BYTES of
    text."""
    left = TRAINING_BYTES
    for document in documents:
        rest = ""
        for block in document.blocks():
            left -= len(block)
            *lines, rest = (rest + block).split("\n")
            for line in lines:
                yield from filter(None, _cut(line))
            *parts, rest = _cut(rest)
            yield from parts
            if left < 0:
                return
        if rest:
            yield rest


def _cut(line):
    """Pieces of a line of at most LONGEST_SENTENCE characters."""
    start = 0
    while len(line) - start > LONGEST_SENTENCE:
        cut = line.rfind(" ", start + 1, start + LONGEST_SENTENCE)
        cut = cut if cut > 0 else start + LONGEST_SENTENCE
        yield line[start:cut]
        start = cut
    yield line[start:]


def train_tokenizer(documents, vocab_size: int) -> Vocab:
    """A BPE vocabulary of `vocab_size` ids with the baseline's options, deterministic for the same
    documents."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab_size {vocab_size} is too small: 3 special ids and 256 bytes need "
            f"at least {SMALLEST_VOCABULARY}"
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(
            f"--vocab_size {vocab_size} is too large: give at most {LARGEST_VOCABULARY}"
        )
    model, mistakes = io.BytesIO(), []

    def sentences():  # SentencePiece would swallow a mistake that is raised in here
        try:
            yield from _sentences(documents)
        except UserError as error:
            mistakes.append(error)

    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=model,
            vocab_size=vocab_size,
            minloglevel=2,
            **TOKENIZER_OPTIONS,
        )
        failure = None
    except RuntimeError as error:
        failure = error
    if mistakes:
        raise mistakes[0]
    if failure is not None:
        raise UserError(_why_training_failed(str(failure), vocab_size)) from failure
    return Vocab(model.getvalue())


def _why_training_failed(message, vocab_size):
    limit = re.search(r"set it to a value <= (\d+)", message)
    if limit:
        return (
            f"the text is too little for a vocabulary of {vocab_size}: lower --vocab_size to at"
            f" most {limit[1]}, or give more text"
        )
    needed = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if needed:
        return (
            f"a vocabulary of {vocab_size} has no room for the text's characters: raise"
            f" --vocab_size to {needed[2]} or more"
        )
    return (
        f"no tokenizer of {vocab_size} ids could be trained on the text (SentencePiece says:"
        f" {message.strip()})"
    )
