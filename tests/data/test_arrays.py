"""Arrays of files, against numpy's own reading; damaged ones."""

import io
import os

import numpy as np
import pytest

from gpt.data import arrays
from gpt.data.arrays import TokenFile
from gpt.errors import UserError

ARRAYS = (
    np.arange(5, dtype=np.int64),
    np.zeros((0,), np.int64),
    np.arange(6, dtype=np.uint8).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">u2").reshape(3, 2)),
    np.array([["a/b.npy", "12"], ["c", "3"]]),
    np.array([["a", "3"], ["b", "44"]]).T,
    np.array([[b"x", b"1"]]),
    np.array(3.5),
    np.array([True, False]),
)


def stored(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype} {array.shape}")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_plain_arrays_are_read_as_numpy_reads_them(array, version):
    content = stored(array, version)
    values = arrays.parse(content)
    expected = np.load(io.BytesIO(content))
    assert values.dtype == expected.dtype and values.shape == expected.shape
    assert values.tolist() == expected.tolist() == array.tolist()


def test_what_is_no_plain_array_is_none():
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}, []], object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, a=np.arange(3))
    content = stored(np.arange(5))
    bad = {
        "empty": b"",
        "pickled": pickled.getvalue(),
        "an archive": archive.getvalue(),
        "records": stored(np.zeros(3, [("a", "<i4")])),
        "cut off": content[:-1],
        "longer": content + b"\0",
        "more than memory": content.replace(b"(5,)", b"(9999999999999999,)"),
        "negative": content.replace(b"(5,)", b"(-5,)"),
        "another type": content.replace(b"<i8", b"<i3"),
        "header cut": content[:20],
        "version": content[:6] + b"\4" + content[7:],
    }
    for name, damaged in bad.items():
        assert arrays.parse(damaged) is None, name


@pytest.mark.parametrize("order", ["<", ">"])
def test_texts_of_numbers_that_are_no_characters_are_none(order):
    texts = np.array(["a", "bc"], f"{order}U2")
    assert arrays.parse(stored(texts)).tolist() == ["a", "bc"]
    for code in (0x110000, 0x1000069, 0xFFFFFFFF):
        codes = texts.copy().view(f"{order}u4")
        codes[1] = code
        assert arrays.parse(stored(codes.view(texts.dtype))) is None


def test_a_flipped_bit_of_a_header_is_refused_or_harmless():
    content = stored(np.arange(5))
    refused = 0
    for place in range(128):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            values = arrays.parse(bytes(damaged))
            refused += values is None
            assert values is None or values.nbytes == 40
    assert refused > 900


def test_slices_of_a_file_are_those_of_the_array(tmp_path):
    ids = np.arange(1000, dtype="<u4") * 70_001
    ids.tofile(tmp_path / "raw")
    np.save(tmp_path / "row.npy", ids)
    for file in (TokenFile(tmp_path / "raw", "<u4"), TokenFile.of_npy(tmp_path / "row.npy")):
        assert len(file) == 1000 and file.dtype == ids.dtype and file.shape == (1000,)
        for part in (slice(0, 3), slice(998, 2000), slice(5, 5), slice(9, 2), slice(None)):
            assert file[part].tolist() == ids[part].tolist()
        assert file.read(17, 4).tolist() == ids[17:21].tolist()


def test_a_file_that_is_cut_off_while_it_is_read_is_told(tmp_path):
    np.arange(100_000, dtype="<u2").tofile(tmp_path / "raw")
    file = TokenFile(tmp_path / "raw", "<u2")
    os.truncate(tmp_path / "raw", 1000)
    assert file[:500].tolist() == list(range(500))
    with pytest.raises(UserError) as error:
        file[400:501]
    assert str(error.value) == (
        f"{tmp_path}/raw ends before its token 501: it was cut off while it was in use: copy that"
        " file again, or make it again"
    )


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            TokenFile(path, "<u2")
        with pytest.raises(OSError, match=str(path)):
            TokenFile.of_npy(path)
