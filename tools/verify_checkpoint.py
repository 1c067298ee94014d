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

    from gpt.checkpoint import folders as folders_module

    folder = Path(args.folder)
    tags = folders_module.committed(folder)
    folders = [folder / tag for tag in tags] or [folder]
    if not tags and not (folder / folders_module.MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no checkpoint: give a run's checkpoints folder, one checkpoint in it,"
            " or a folder that tools/zero_to_fp32.py made"
        )
    whole = 0
    for path in folders:
        try:
            manifest = folders_module.verify(path)
            size = sum(facts["size"] for facts in manifest["files"].values())
            print(
                f"{path}: whole, {len(manifest['files'])} files, {size:,} bytes, after step"
                f" {manifest['step']}"
            )
            whole += 1
        except UserError as error:
            print(f"{path}: NOT WHOLE: {error}")
    return 0 if whole == len(folders) else 1


if __name__ == "__main__":
    command(main)
