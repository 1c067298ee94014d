"""Verify every file of a checkpoint, or of all checkpoints of a run, or consolidated weights, by
size and sha256.

    python tools/verify_checkpoint.py runs/24h/checkpoints                     all of them
    python tools/verify_checkpoint.py runs/24h/checkpoints/global_step1000
    python tools/verify_checkpoint.py runs/24h/export                what tools/zero_to_fp32.py made

Names the first file of each that is not as it was written. Exit code 0: all whole; 1: one is not.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "folder", help="a run's checkpoints folder, one checkpoint in it, or consolidated weights"
    )
    args = parser.parse_args()

    from gpt.checkpoint import folders
    from gpt.checkpoint.manifest import MANIFEST

    folder = Path(args.folder)
    tags = folders.committed(folder)
    if not tags and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no checkpoint",
            mend="give a run's checkpoints folder, one checkpoint in it, or a folder that"
            " tools/zero_to_fp32.py made",
        )
    paths = [folder / tag for tag in tags] or [folder]
    results = [tell_whether_whole(path) for path in paths]
    return 0 if all(results) else 1


def tell_whether_whole(path: Path) -> bool:
    from gpt.checkpoint.checkpoint import Checkpoint

    try:
        checkpoint = Checkpoint.open(path).verify()
    except UserError as error:
        print(f"{path}: NOT WHOLE: {error}")
        return False
    files = checkpoint.manifest.files
    size = sum(facts["size"] for facts in files.values())
    print(f"{path}: whole, {len(files)} files, {size:,} bytes, after step {checkpoint.step}")
    return True


if __name__ == "__main__":
    command(main)
