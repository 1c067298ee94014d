"""SentencePiece's trainer in a process of its own: where memory is short it ends its process.

Run as a script it reads the options as a line of JSON and sentences, one a line and UTF-8, up to an
empty line from its standard input. It writes to its standard output the model, or `FAILED` and
SentencePiece's message. Without that empty line whoever sent the sentences has gone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

# No model begins so: its first byte is the tag of a field.
FAILED = b"\xff"

COMMAND = [sys.executable, __file__]


class TrainingError(Exception):
    """SentencePiece trains no model; the message is its own."""


class TrainerLost(Exception):
    """The trainer's process was ended. returncode: as of subprocess."""

    def __init__(self, returncode: int):
        super().__init__(returncode)
        self.returncode = returncode


def train(sentences: Iterable[str], options: dict[str, Any]) -> bytes:
    """The model that SentencePiece trains on sentences, none of them empty or with a line end.
    options: of its trainer. Raises TrainingError, TrainerLost, and what `sentences` raises."""
    # what it writes as it dies is no sentence
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(options).encode() + b"\n")
            for sentence in sentences:
                process.stdin.write(sentence.encode() + b"\n")
            process.stdin.write(b"\n")
        answer, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
        # else Python 3.13 tells of the pipe, beside what `sentences` raised
        with suppress(BrokenPipeError):
            process.stdin.close()
    if answer.startswith(FAILED):
        raise TrainingError(answer[len(FAILED) :].decode("utf-8", "replace"))
    if process.returncode or not answer:
        raise TrainerLost(process.returncode)
    return answer


def _sentences(lines: BinaryIO) -> Iterator[str]:
    for line in lines:
        if line == b"\n":
            return
        yield line[:-1].decode()
    # SentencePiece would swallow an exception, and train on what it has
    os._exit(1)


def main() -> None:
    """Answer one call of `train`."""
    # which whoever calls `train` does not need
    import io

    import sentencepiece

    model = io.BytesIO()
    options = json.loads(sys.stdin.buffer.readline())
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(sys.stdin.buffer), model_writer=model, **options
        )
        answer = model.getvalue()
    except RuntimeError as error:
        answer = FAILED + str(error).encode()
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
