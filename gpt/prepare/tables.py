"""Documents in the columns of tables: .parquet files, and .arrow files as Hugging Face's `datasets`
saves them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.prepare.packing import need
from gpt.prepare.rows import Part, Row, name_of, require_row_size, text_of
from gpt.prepare.texts import Reading
from gpt.reading import open_regular

# Arrow's types of a column of texts.
TEXT_KINDS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")

# Rows of a Parquet file that are in memory at a time, as long as their bytes allow.
AT_A_TIME = 16
MOST_IN_MEMORY = 1 << 30

# How an .arrow file begins that is not a stream.
MAGIC = b"ARROW1"


def group_marks(path: Path, size: int) -> list[tuple[int, int]]:
    """(row group, rows before it) of the beginnings of parts, and of the file's end."""
    with _parquet(path) as file:
        marks = [(0, 0)]
        rows = 0
        part_size = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows += group.num_rows
            part_size += group.total_byte_size
            if part_size >= size or number == file.num_row_groups - 1:
                marks.append((number + 1, rows))
                part_size = 0
    return marks


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """An open pyarrow.parquet.ParquetFile."""
    pyarrow = need("pyarrow", path)
    parquet = need("pyarrow.parquet", path)
    try:
        with open_regular(path) as content, parquet.ParquetFile(content) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _not_whole(path, "Parquet", error) from error


def _not_whole(path: Path, kind: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} is no whole {kind} file ({reason})", mend="copy it again, or take it out"
    )


def parquet_rows(path: Path, part: Part | None, reading: Reading) -> Iterator[Row]:
    with _parquet(path) as file:
        columns = _columns(path, file.schema_arrow, reading)
        part = part or Part(0, file.num_row_groups, 0)
        groups = range(part.first, part.end)
        number = part.rows_before
        size = _rows_at_a_time(file, groups, reading)
        for batch in file.iter_batches(batch_size=size, columns=columns, row_groups=groups):
            yield from _rows_of_batch(batch, number, path, reading)
            number += len(batch)


def arrow_rows(path: Path, part: Part | None, reading: Reading) -> Iterator[Row]:
    """part: None, since these files are read whole."""
    assert part is None
    pyarrow = need("pyarrow", path)
    ipc = need("pyarrow.ipc", path)
    try:
        with open_regular(path) as content:
            is_stream = content.read(len(MAGIC)) != MAGIC
            content.seek(0)
            # a stream's batches are its own iterator, those of a file have numbers
            with (ipc.open_stream if is_stream else ipc.open_file)(content) as file:
                columns = _columns(path, file.schema, reading)
                number = 0
                for batch in (
                    file if is_stream else map(file.get_batch, range(file.num_record_batches))
                ):
                    yield from _rows_of_batch(batch.select(columns), number, path, reading)
                    number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise _not_whole(path, "Arrow", error) from error


def _columns(path: Path, schema: Any, reading: Reading) -> list[str]:
    """The columns that are read. Raises UserError where those that hold texts or names are not
    there, or hold something else."""
    fields = schema.names
    for field in (reading.text_field, reading.id_field):
        if fields.count(field) > 1:
            raise UserError(
                f"{path} has {fields.count(field)} columns {field!r}", mend="rename all but one"
            )
    text_of(dict.fromkeys(fields), str(path), reading)  # raises where there is no such field
    _require_text_column(path, schema, reading.text_field)
    if reading.id_field in fields:
        return [reading.text_field, reading.id_field]
    return [reading.text_field]


def _rows_at_a_time(file: Any, groups: Iterable[int], reading: Reading) -> int:
    """Rows that are in memory together, of a pyarrow.parquet.ParquetFile. Each may be the largest
    text of its column, which the file holds but once."""
    most = 1
    for group in groups:
        facts = file.metadata.row_group(group)
        for index in range(facts.num_columns):
            column = facts.column(index)
            if column.path_in_schema in (reading.text_field, reading.id_field):
                most = max(most, column.total_uncompressed_size)
    return max(1, min(AT_A_TIME, MOST_IN_MEMORY // most))


def _rows_of_batch(batch: Any, rows_before: int, path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a pyarrow.RecordBatch, taken out one by one: many may share a text."""
    texts = batch.column(reading.text_field)
    ids = None
    if reading.id_field in batch.schema.names:
        ids = batch.column(reading.id_field)
    for index in range(len(batch)):
        number = rows_before + index + 1
        where = f"{path}:{number}"
        name = None
        if ids is not None:
            value = _value(ids[index])
            if hasattr(value, "as_buffer"):
                _bytes(value, where, reading)
            name = name_of(value.as_py(), where)
        yield Row(number, name, _bytes(_value(texts[index]), where, reading))


def _value(scalar: Any) -> Any:
    """A pyarrow scalar, the one of its dictionary where it has one."""
    return getattr(scalar, "value", scalar) if hasattr(scalar, "dictionary") else scalar


def _bytes(text: Any, where: str, reading: Reading) -> bytes:
    """Of a pyarrow scalar of text; none where it is null. Raises UserError where they are too
    many."""
    if not text.is_valid:
        return b""
    content = text.as_buffer()
    require_row_size(content.size, where, reading)
    return content.to_pybytes()


def _require_text_column(path: Path, schema: Any, column: str) -> None:
    kind = schema.field(column).type
    # pandas' categoricals are stored as a dictionary of texts
    text_kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary<") else kind
    if str(text_kind) not in TEXT_KINDS:
        raise UserError(
            f"{path}: the column {column!r} holds {kind}, not text",
            mend="name another with --text_field",
        )
