"""A document's text: its bytes, line ends and blocks; texts that come twice."""

import json
import random

import pytest
from small_corpora import build, check_split, in_order, names_of, write_texts

from gpt.errors import UserError
from gpt.prepare.texts import Document, NotUTF8


def test_bytes_that_are_not_utf8(tmp_path, vocab):
    raw = {
        "train/a.txt": b"the whale",
        "train/bad.txt": b"ship\xff\xe9sea\r\n",
        "train/c.txt": b"cut \xe2\x82",
    }
    folder = write_texts(tmp_path / "in", raw)
    with pytest.raises(UserError) as error:
        build(folder, tmp_path / "out", vocab)
    assert (
        str(error.value)
        == f"{folder}/train/bad.txt is not UTF-8 at byte 4: convert it, for example with `iconv -t"
        " UTF-8`, take it out, or give --bad_utf8 replace or skip (2 documents are alike, the"
        f" next: {folder}/train/c.txt)"
    )
    assert not (tmp_path / "out").exists()
    out = build(folder, tmp_path / "replaced", vocab, bad_utf8="replace")
    check_split(
        out,
        "train",
        in_order({"a.txt": "the whale", "bad.txt": "ship\ufffd\ufffdsea\n", "c.txt": "cut \ufffd"}),
    )
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]["train"]["found"]["bad_utf8"] == 2
    )
    out = build(folder, tmp_path / "skipped", vocab, bad_utf8="skip")
    check_split(out, "train", {"a.txt": "the whale"})
    assert (
        json.loads((out / "manifest.json").read_text())["splits"]["train"]["left_out"]["bad_utf8"]
        == 2
    )


def test_a_text_is_the_same_wherever_its_blocks_end(tmp_path, monkeypatch):
    """Against the same rules on the whole file."""
    rng, path = random.Random(0), tmp_path / "a.txt"
    for _ in range(300):
        parts = [
            b"\xef\xbb\xbf",
            b"\r",
            b"\n",
            b"\r\n",
            b"a",
            "é".encode(),
            "😀".encode(),
            b"\xff",
            b"\xe2\x82",
            b"\0",
        ]
        raw = b"".join(rng.choices(parts, k=rng.randrange(12)))
        path.write_bytes(raw)
        monkeypatch.setattr("gpt.prepare.texts.BLOCK", rng.randrange(1, 5))
        expected = raw.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
        assert Document("a", path, replace_bad_bytes=True).read() == expected, raw
        try:
            raw.decode()
            assert Document("a", path).read() == expected
        except UnicodeDecodeError as error:
            with pytest.raises(NotUTF8, match=f"at byte {error.start}:"):
                Document("a", path).read()


def test_duplicates_are_counted_or_dropped_and_those_held_out_are_told(tmp_path, vocab):
    texts = {
        "train/a.txt": "the whale",
        "train/b.txt": "the whale",
        "train/c.txt": "ship",
        "train/d.txt": "sea\r\n",
        "test/x.txt": "sea\n",
        "test/y.txt": "sea\n",
        "test/z.txt": "captain",
    }
    folder = write_texts(tmp_path / "in", texts)
    lines = []
    kept = build(folder, tmp_path / "kept", vocab, say=lines.append)
    assert len(names_of(kept, "train")) == 4 and len(names_of(kept, "test")) == 3
    assert any(
        line.startswith(
            "WARNING: 1 document(s) of train are held out too, under other names: kept;"
            " --duplicates drop leaves them out of train ('d.txt' in test)"
        )
        for line in lines
    )
    splits = json.loads((kept / "manifest.json").read_text())["splits"]
    assert splits["train"]["found"]["duplicate"] == 1
    assert splits["train"]["found"]["also_held_out"] == 1
    assert splits["test"]["found"]["duplicate"] == 1
    dropped = build(folder, tmp_path / "dropped", vocab, duplicates="drop")
    first = names_of(kept, "train").index("a.txt") < names_of(kept, "train").index("b.txt")
    check_split(
        dropped, "train", in_order({"c.txt": "ship", "a.txt" if first else "b.txt": "the whale"})
    )
    assert len(names_of(dropped, "test")) == 2
    splits = json.loads((dropped / "manifest.json").read_text())["splits"]
    assert splits["train"]["left_out"]["duplicate"] == 2
