"""Speed of encoding, and of reading batches.

    python tools/bench_data.py --input books/ --tokenizer data/books/tokenizer.model
        SentencePiece on whole documents and the encoder of prepare_data.py, in turn, on one core,
        by CPU time; ids are compared. Then encoding with 1, 2, 4, … processes, by the clock and by
        CPU time.
    python tools/bench_data.py --loader
        A dataset of 158,000 documents and 24 billion tokens, as a sparse file in a temporary
        folder: time and memory to open it, time per batch, and how long steps of `mini` on the CPU
        wait for their batch.

Timings are medians; where other programs share the cores, only ratios tell.
"""

import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command

DOCUMENTS = 158_000
TOKENS = 24_000_000_000
STREAMS = 512
SEQ_LEN = 512


def main():
    parser = Parser(__doc__)
    parser.add_argument("--input", metavar="PLACE", help="texts to encode")
    parser.add_argument("--tokenizer", metavar="FILE.model", help="SentencePiece model")
    parser.add_argument("--loader", action="store_true", help="measure reading instead")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="of each measurement (default 3)"
    )
    args = parser.parse_args()
    if args.repeats < 1 or args.loader == bool(args.input and args.tokenizer):
        raise UserError(
            "give --input PLACE and --tokenizer FILE.model, or --loader; --repeats at least 1"
        )
    if args.loader:
        bench_loader(args.repeats)
    else:
        bench_encoding(args)


def bench_encoding(args):
    import numpy as np
    import sentencepiece

    from gpt.data.vocab import Vocab
    from gpt.prepare.documents import documents
    from gpt.prepare.encode import Encoder
    from gpt.prepare.inputs import find_inputs
    from gpt.prepare.texts import Reading

    vocab = Vocab.load(args.tokenizer)
    processor = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    inputs = find_inputs(args.input, by_folder=False)
    texts = [document.read() for entry in inputs for document in documents(entry, Reading())]
    size = sum(len(text.encode()) for text in texts)
    times = {"whole": [], "encoder": []}
    for _ in range(args.repeats):
        encoder = Encoder(vocab)  # which remembers nothing yet
        began = time.process_time()
        whole = [np.array(processor.encode(text), encoder.dtype).tobytes() for text in texts]
        middle = time.process_time()
        found = [b"".join(map(encoder.encode, encoder.chunks([text]))) for text in texts]
        times["whole"].append(middle - began)
        times["encoder"].append(time.process_time() - middle)
    # which mean something to SentencePiece
    literal = [text for text in texts if "<D>" in text or "\u2581" in text]
    same = sum(a == b for a, b in zip(whole, found))
    speed = {name: size / 1e6 / statistics.median(values) for name, values in times.items()}
    ratios = sorted(a / b for a, b in zip(times["whole"], times["encoder"]))
    print(
        f"{len(texts)} documents, {size / 1e6:.1f} MB, per core: whole documents"
        f" {speed['whole']:.2f} MB/s, encoder (by {encoder.unit}) {speed['encoder']:.2f} MB/s,"
        f" {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}); ids"
        f" are the same in {same} of {len(texts)} ({len(literal)} hold <D> or U+2581)"
    )
    bench_workers(inputs, vocab, size, args.repeats)


def bench_workers(inputs, vocab, size, repeats):
    from gpt.prepare.texts import Reading
    from gpt.prepare.units import UnitEncoder, encoder_of, units_of
    from gpt.prepare.workers import spread

    units = [(i, unit) for i, unit in enumerate(units_of(inputs))]
    counts = [2**i for i in range(20) if 2**i <= len(os.sched_getaffinity(0))]
    walls = {count: [] for count in counts}
    spent = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                encoder_of.cache_clear()  # all begin without remembered words
                began, before = time.perf_counter(), sum(os.times()[:4])
                list(
                    spread(
                        UnitEncoder(Path(folder), Reading(), vocab.model),
                        units,
                        count,
                        lambda size: None,
                    )
                )
                walls[count].append(time.perf_counter() - began)
                # of this process and its children
                spent[count].append(sum(os.times()[:4]) - before)
    for count in counts:
        faster, more = (
            statistics.median(a / b for a, b in zip(*pair))
            for pair in ((walls[1], walls[count]), (spent[count], spent[1]))
        )
        rate = size / 1e6 / statistics.median(walls[count])
        print(
            f"{count} process(es), start and files included: {rate:.2f} MB/s, {faster:.2f} times as"
            f" fast as 1, with {more:.2f} times the CPU time"
        )


@contextmanager
def large_dataset():
    """Folder of a dataset of DOCUMENTS and TOKENS, all tokens 0, with a vocabulary of 16,384 ids or
    fewer."""
    import numpy as np

    from gpt.data import manifests
    from gpt.files import hash_file
    from gpt.prepare.texts import Document
    from gpt.prepare.vocab_training import train_tokenizer

    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), np.random.default_rng(0)
        text = " ".join("".join(chr(97 + c) for c in rng.integers(0, 26, 6)) for _ in range(30_000))
        vocab = train_tokenizer([Document("words", text)], 16384)
        manifest = manifests.begin(root, vocab, {}, {})
        folder = root / "train"
        folder.mkdir()
        sizes = rng.lognormal(0, 0.8, DOCUMENTS)
        doc_tokens = np.maximum(1, sizes / sizes.sum() * (TOKENS - DOCUMENTS)).astype(np.int64)
        doc_tokens[0] += TOKENS - DOCUMENTS - doc_tokens.sum()
        np.save(folder / manifests.DOC_TOKENS, doc_tokens)
        np.save(folder / manifests.DOC_BYTES, doc_tokens * 4)
        (folder / manifests.NAMES).write_text(
            "".join(f'"author {i % 9999}/book {i}.txt"\n' for i in range(DOCUMENTS))
        )
        with open(folder / manifests.TOKENS, "wb") as file:
            file.truncate(TOKENS * np.dtype(manifest["dtype"]).itemsize)
        files = {file: hash_file(folder / file) for file in manifests.SPLIT_FILES[1:]}
        files[manifests.TOKENS] = {"size": (folder / manifests.TOKENS).stat().st_size, "sha256": ""}
        manifest["splits"]["train"] = {
            "documents": DOCUMENTS,
            "tokens": TOKENS,
            "bytes": int(doc_tokens.sum()) * 4,
            "files": files,
        }
        manifests.write(root, manifest)
        yield root


def bench_loader(repeats):
    import numpy as np
    import psutil

    from gpt.data.datasets import Dataset
    from gpt.data.streams import Streams

    with large_dataset() as root:
        opened = []
        spent = []
        resident = psutil.Process().memory_info().rss
        for _ in range(repeats):
            began, before = time.perf_counter(), time.thread_time()
            streams = Streams(Dataset(root).split("train"), STREAMS, SEQ_LEN)
            opened.append(time.perf_counter() - began)
            spent.append(time.thread_time() - before)
            if len(opened) == 1:
                resident = psutil.Process().memory_info().rss - resident
        print(
            f"{DOCUMENTS:,} documents, {TOKENS:,} tokens, {STREAMS} streams: opened in"
            f" {statistics.median(opened):.3f} s, of CPU time {statistics.median(spent):.3f} s,"
            f" with {resident / 1e6:.0f} MB more memory"
        )
        far = np.random.default_rng(1).integers(0, 10**6, 50).tolist()
        places = {
            "one after the other": range(1000, 1050),
            "anywhere, never read before": far,
            "there again": far,
        }
        for name, steps in places.items():
            times, spent = [], []
            for step in steps:
                began, before = time.perf_counter(), time.thread_time()
                streams.batch(step)
                times.append(1000 * (time.perf_counter() - began))
                spent.append(1000 * (time.thread_time() - before))
            print(
                f"batch of {STREAMS} x {SEQ_LEN + 1}, {name}: median {statistics.median(times):.2f}"
                f" ms, of CPU time {statistics.median(spent):.2f} ms; slowest {max(times):.2f} ms,"
                f" {max(spent):.2f} ms"
            )
        bench_waiting(streams)


def bench_waiting(streams, rows=4, steps=6):
    """All rows are read, and a few of them trained on, so that steps are short."""
    import torch

    from gpt.config.shape import ModelConfig, load_presets
    from gpt.data.streams import Ahead
    from gpt.model import GPT

    model = GPT(ModelConfig(**load_presets()["mini"], vocab_size=16384, seq_len=SEQ_LEN))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batches = Ahead(streams, range(STREAMS))
    waits = []
    times = []
    for step in range(steps + 2):
        began = time.perf_counter()
        batch = torch.from_numpy(batches.batch(step)[:rows])
        waits.append(time.perf_counter() - began)
        model(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    batches.close()
    shares = [wait / seconds for wait, seconds in zip(waits, times)][2:]
    seconds = statistics.median(times[2:])
    wait = 1000 * statistics.median(waits[2:])
    print(
        f"mini, {rows} x {SEQ_LEN} tokens a step, all {STREAMS} rows read for each: a step takes"
        f" {seconds:.2f} s and waits {wait:.2f} ms for its batch: {statistics.median(shares):.3%}"
        f" of it, at most {max(shares):.3%}"
    )


if __name__ == "__main__":
    command(main)
