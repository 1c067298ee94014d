"""How long training waits for a checkpoint, beside a plain torch.save of the same content.

    python tools/bench_checkpoint.py --preset mini [--zero_stage 1] [--folder /a/disk]

Both are timed in turn, several times, in one process; the ratio of their medians is what counts.
What a run waits for is `pause`; hashing, and writing through to the disk, then go on beside the
training until the checkpoint is committed.
"""

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command


def main():
    parser = Parser(__doc__)
    parser.add_argument("--preset", default="mini", help="model shape (default mini)")
    parser.add_argument("--zero_stage", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument(
        "--folder",
        default=".",
        help="where to write; a folder in it is made, and removed (default .)",
    )
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if not Path(args.folder).is_dir() or args.repeats < 1:
        raise UserError("--folder must be a folder that exists, --repeats at least 1")

    from tools.benchmarks import checkpoint

    with tempfile.TemporaryDirectory(prefix=".bench", dir=args.folder) as scratch:
        times = checkpoint.measure(args.preset, args.zero_stage, args.repeats, Path(scratch))
    print(
        f"{args.preset}, ZeRO stage {args.zero_stage}, {times.size / 1e6:,.0f} MB on"
        f" {times.device}, medians of {args.repeats}: torch.save {times.save:.3f} s; pause"
        f" {times.pause:.3f} s ({times.pause / times.save:.2f} times as long);"
        f" committed after {times.commit:.3f} s"
    )


if __name__ == "__main__":
    command(main)
