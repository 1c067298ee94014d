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

# The large dataset of --loader, and the batches that are read from it.
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
        ids_of_wholes = [
            np.array(processor.encode(text), encoder.dtype).tobytes() for text in texts
        ]
        middle = time.process_time()
        ids_of_chunks = [b"".join(map(encoder.encode, encoder.chunks([text]))) for text in texts]
        times["whole"].append(middle - began)
        times["encoder"].append(time.process_time() - middle)
    # texts with what means something to SentencePiece
    special = sum("<D>" in text or "\u2581" in text for text in texts)
    same = sum(whole == chunks for whole, chunks in zip(ids_of_wholes, ids_of_chunks))
    speed = {name: size / 1e6 / statistics.median(values) for name, values in times.items()}
    ratios = sorted(whole / encoder for whole, encoder in zip(times["whole"], times["encoder"]))
    print(
        f"{len(texts)} documents, {size / 1e6:.1f} MB, per core: whole documents"
        f" {speed['whole']:.2f} MB/s, encoder (by {encoder.unit}) {speed['encoder']:.2f} MB/s,"
        f" {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}); ids"
        f" are the same in {same} of {len(texts)} ({special} hold <D> or U+2581)"
    )
    bench_workers(inputs, vocab, size, args.repeats)


def bench_workers(inputs, vocab, size, repeats):
    from gpt.prepare.units import encoder_of, units_of

    units = list(enumerate(units_of(inputs)))
    cores = len(os.sched_getaffinity(0))
    counts = [2**i for i in range(20) if 2**i <= cores]
    walls = {count: [] for count in counts}
    cpu_times = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            encoder_of.cache_clear()  # all begin without remembered words
            wall_before = time.perf_counter()
            cpu_before = sum(os.times()[:4])
            encode_units(units, vocab, count)
            walls[count].append(time.perf_counter() - wall_before)
            # of this process and its children
            cpu_times[count].append(sum(os.times()[:4]) - cpu_before)
    for count in counts:
        faster = median_ratio(walls[1], walls[count])
        more = median_ratio(cpu_times[count], cpu_times[1])
        rate = size / 1e6 / statistics.median(walls[count])
        print(
            f"{count} process(es), start and files included: {rate:.2f} MB/s, {faster:.2f} times as"
            f" fast as 1, with {more:.2f} times the CPU time"
        )


def encode_units(units, vocab, workers):
    from gpt.prepare.texts import Reading
    from gpt.prepare.units import UnitEncoder
    from gpt.prepare.workers import spread

    with tempfile.TemporaryDirectory() as folder:
        encode_unit = UnitEncoder(Path(folder), Reading(), vocab.model)
        for _ in spread(encode_unit, units, workers, report=lambda size: None):
            pass


def median_ratio(numerators, denominators):
    return statistics.median(a / b for a, b in zip(numerators, denominators))


@contextmanager
def large_dataset():
    """Folder of a dataset of DOCUMENTS and TOKENS, all tokens 0, with a vocabulary of 16,384 ids or
    fewer."""
    import numpy as np

    from gpt.data import manifests

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        rng = np.random.default_rng(0)
        manifest = manifests.begin(root, random_vocab(rng), {}, {})
        sizes = rng.lognormal(0, 0.8, DOCUMENTS)
        doc_tokens = np.maximum(1, sizes / sizes.sum() * (TOKENS - DOCUMENTS)).astype(np.int64)
        doc_tokens[0] += TOKENS - DOCUMENTS - doc_tokens.sum()
        entry = write_split(root / "train", doc_tokens, np.dtype(manifest["dtype"]).itemsize)
        manifest["splits"]["train"] = entry
        manifests.write(root, manifest)
        yield root


def random_vocab(rng):
    from gpt.prepare.texts import Document
    from gpt.prepare.vocab_training import train_tokenizer

    words = []
    for _ in range(30_000):
        letters = rng.integers(0, 26, 6)
        words.append("".join(chr(ord("a") + letter) for letter in letters))
    return train_tokenizer([Document("words", " ".join(words))], 16384)


def write_split(folder, doc_tokens, item_size):
    """Write a split whose tokens.bin is sparse, and so is not hashed; returns its entry."""
    import numpy as np

    from gpt.data import manifests
    from gpt.files import hash_file

    folder.mkdir()
    names = [f'"author {i % 9999}/book {i}.txt"\n' for i in range(DOCUMENTS)]
    np.save(folder / manifests.DOC_TOKENS, doc_tokens)
    np.save(folder / manifests.DOC_BYTES, doc_tokens * 4)
    hashes = np.zeros((DOCUMENTS, manifests.HASH_BYTES), np.uint8)
    np.save(folder / manifests.DOC_HASHES, hashes)
    (folder / manifests.NAMES).write_text("".join(names))
    with open(folder / manifests.TOKENS, "wb") as file:
        file.truncate(TOKENS * item_size)
    files = {manifests.TOKENS: {"size": TOKENS * item_size, "sha256": ""}}
    for file in manifests.SPLIT_FILES:
        if file != manifests.TOKENS:
            files[file] = hash_file(folder / file)
    return {
        "documents": DOCUMENTS,
        "tokens": TOKENS,
        "bytes": int(doc_tokens.sum()) * 4,
        "files": files,
    }


class Stopwatch:
    """Seconds of `with` blocks, by the clock and of this thread's CPU time."""

    def __init__(self):
        self.wall = []
        self.cpu = []

    def __enter__(self):
        self._wall_before = time.perf_counter()
        self._cpu_before = time.thread_time()

    def __exit__(self, *error):
        self.wall.append(time.perf_counter() - self._wall_before)
        self.cpu.append(time.thread_time() - self._cpu_before)


def bench_loader(repeats):
    import numpy as np
    import psutil

    from gpt.data.datasets import Dataset
    from gpt.data.streams import Streams

    with large_dataset() as root:
        opening = Stopwatch()
        memory_before = psutil.Process().memory_info().rss
        for repeat in range(repeats):
            with opening:
                streams = Streams(Dataset(root).split("train"), STREAMS, SEQ_LEN)
            if repeat == 0:
                memory = psutil.Process().memory_info().rss - memory_before
        print(
            f"{DOCUMENTS:,} documents, {TOKENS:,} tokens, {STREAMS} streams: opened in"
            f" {statistics.median(opening.wall):.3f} s,"
            f" of CPU time {statistics.median(opening.cpu):.3f} s,"
            f" with {memory / 1e6:.0f} MB more memory"
        )
        far = np.random.default_rng(1).integers(0, 10**6, 50).tolist()
        steps_of = {
            "one after the other": range(1000, 1050),
            "anywhere, never read before": far,
            "there again": far,
        }
        for name, steps in steps_of.items():
            bench_batches(streams, name, steps)
        bench_waiting(streams)


def bench_batches(streams, name, steps):
    reading = Stopwatch()
    for step in steps:
        with reading:
            streams.batch(step)
    wall = [1000 * seconds for seconds in reading.wall]
    cpu = [1000 * seconds for seconds in reading.cpu]
    print(
        f"batch of {STREAMS} x {SEQ_LEN + 1}, {name}: median {statistics.median(wall):.2f}"
        f" ms, of CPU time {statistics.median(cpu):.2f} ms; slowest {max(wall):.2f} ms,"
        f" {max(cpu):.2f} ms"
    )


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
