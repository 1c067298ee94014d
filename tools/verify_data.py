"""Verify a dataset: the sha256 of every file, every count, and that the tokens' bytes are those of
the documents.

    python tools/verify_data.py data/books
    python tools/verify_data.py data/books --source books/
                                         that every document is the source's, byte by byte

Names everything that is wrong. Exit code 0: all is as it was made; 1: something is not.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, command


def main():
    parser = Parser(__doc__)
    parser.add_argument("dataset", help="a folder that tools/prepare_data.py made")
    parser.add_argument(
        "--source",
        metavar="PLACE",
        help="what it was made of: a folder, a file, or - for a list of paths",
    )
    parser.add_argument(
        "--text_field", help="as it was given then, where the dataset does not tell"
    )
    parser.add_argument("--id_field", help="as it was given then, where the dataset does not tell")
    parser.add_argument("--largest_row", type=int, default=1 << 28, help="as it was given then")
    args = parser.parse_args()

    from gpt.data import manifests
    from gpt.prepare import verify

    root = Path(args.dataset)
    manifest = manifests.read(root)
    mistakes = verify.damaged_files(root, manifest) or look_inside(root, args)
    for sentence in mistakes:
        print(f"NOT AS IT WAS MADE: {sentence}")
    if mistakes:
        return 1
    verdict = "all as made, and as the source" if args.source else "all as made"
    for name, entry in manifest["splits"].items():
        print(
            f"{name}: {entry['documents']:,} documents, {entry['bytes']:,} bytes,"
            f" {entry['tokens']:,} tokens: {verdict}"
        )
    return 0


def look_inside(root, args):
    """Sentences on what does not add up in a dataset whose files are whole, or is not as in its
    source."""
    from gpt.data.datasets import Dataset
    from gpt.prepare import verify
    from gpt.prepare.inputs import find_inputs
    from gpt.prepare.texts import Reading

    dataset = Dataset(root)
    workers = len(os.sched_getaffinity(0))
    mistakes = []
    for name in dataset.split_names:
        mistakes += verify.miscounts(dataset, name, workers)
    if args.source is None:
        return mistakes
    by_folder = dataset.manifest.get("provenance", {}).get("splits") == "folders"
    treatment = dataset.manifest.get("text", {})
    listed = getattr(sys.stdin, "buffer", ()) if args.source == "-" else ()
    inputs = find_inputs(args.source, by_folder, listed)
    reading = Reading(
        args.text_field or treatment.get("text_field", "text"),
        args.id_field or treatment.get("id_field", "id"),
        treatment.get("bad_utf8", "refuse"),
        treatment.get("cut_documents"),
        args.largest_row,
    )
    return mistakes + verify.compare_with_source(dataset, inputs, reading)


if __name__ == "__main__":
    command(main)
