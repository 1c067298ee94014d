"""tools/prepare_data.py with units of 16 KiB and a fault planted in it: `python prepare_run.py
FAULT OPTIONS`.

units=N    the command is killed when N units are done
packed     the command is killed when the dataset is packed, before it appears
worker=N   one of its worker processes is killed when N units are done
none
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from gpt.prepare import pipeline, units

    fault, _, number = sys.argv.pop(1).partition("=")
    units.SMALLEST_UNIT = 1 << 14
    finish = pipeline.EncodingReport.finish
    finished = []

    def finish_and_fail(report, unit):
        finish(report, unit)
        finished.append(unit)
        if number and len(finished) == int(number):
            worker = multiprocessing.active_children()[0].pid if fault == "worker" else None
            os.kill(worker or os.getpid(), signal.SIGKILL)

    pipeline.EncodingReport.finish = finish_and_fail
    if fault == "packed":
        pipeline.assemble = lambda *args, assemble=pipeline.assemble: (
            assemble(*args) or os.kill(os.getpid(), signal.SIGKILL)
        )
    runpy.run_path(str(ROOT / "tools" / "prepare_data.py"), run_name="__main__")
