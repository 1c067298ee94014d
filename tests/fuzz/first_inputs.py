"""Makes, in the working directory, what no command makes from nothing: texts and a dataset of them,
rows of texts, the seed project's books and weights, settings, a hostfile."""

import gzip
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import pyarrow
import sentencepiece
from pyarrow import parquet
from seed_project import random_state, save, write_books
from small_corpora import BOOKS, book, build, write_texts

SETTINGS = {
    "train_batch_size": 4,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "Adam"},
    "scheduler": {
        "type": "LanguiniCosineLR",
        "params": {"max_lr": 3e-3, "warmup_steps": 2, "decay_steps": 4},
    },
    "gpt": {
        "n_layers": 1,
        "h_dim": 16,
        "mlp_dim": 32,
        "n_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "seq_len": 16,
        "last_n": 8,
        "max_eval_steps": 2,
        "eval_every": 2,
        "max_train_steps": 4,
        "log_ckpt_every": 2,
        "log_terminal_every": 1,
        "data_root": "data",
    },
}


def write_rows(folder: Path) -> None:
    folder.mkdir()
    rows = [{"id": f"row {i}", "text": f"The whale and row {i}.\n" * 9} for i in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    (folder / "held_out.txt").write_text("row 2\nrow 5\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "c.parquet")
    with pyarrow.CompressedOutputStream(str(folder / "d.jsonl.zst"), "zstd") as file:
        file.write(lines.encode())


if __name__ == "__main__":
    here = Path()
    (here / "n.json").write_text(json.dumps(SETTINGS, indent=1))
    (here / "hostfile").write_text("localhost slots=1\nnode2 slots=2\n")
    build(write_texts(here / "texts", BOOKS), here / "data", vocab=300, test_every=4)
    write_rows(here / "rows")
    pieces = sentencepiece.SentencePieceProcessor(model_file="data/tokenizer.model")
    train = {f"a{i}": pieces.encode(book(i)) for i in range(4)}
    (here / "languini").mkdir()
    books = {"train": train, "test": {"t": pieces.encode(book(9))}}
    write_books(here / "languini", books, vocab="books_300")
    save(here / "model.pt", random_state(300, 16, 1, 16, 32, 16, longest=16))
