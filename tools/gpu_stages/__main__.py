"""One stage, as tools/gpu_check.py starts it: `python __main__.py STAGE OUT [dry]`."""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.gpu_stages import STAGES


def main(name, out, dry=""):
    from tools.gpu_stages.lab import Lab

    stage = next(stage for stage in STAGES if stage.name == name)
    module, function = stage.function.split(".")
    getattr(importlib.import_module(f"tools.gpu_stages.{module}"), function)(
        Lab(name, Path(out), bool(dry))
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("error: parts of `python tools/gpu_check.py --only STAGE`: run that")
    main(*sys.argv[1:])
