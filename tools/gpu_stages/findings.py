"""What the stages of tools/gpu_check.py find: JSON lines, each on the disk at once."""

import json
import os
import time
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


class Findings:
    """OUT/results.jsonl, written by several processes at once. Imports no torch."""

    def __init__(self, out: str | Path):
        self.path = Path(out) / RESULTS

    def add(self, **facts: Any):
        line = json.dumps({"time": round(time.time(), 1), **facts}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())  # one call, so that lines of two processes never mix
            os.fsync(file)
        finally:
            os.close(file)

    def read(self) -> list:
        """All findings; of a stage that was started again, those of its last start."""
        if not self.path.exists():
            return []
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                finding = json.loads(line)
            except ValueError:  # cut off by the end of a machine
                continue
            if finding.get("event") in ("started", "skipped"):
                kept = [earlier for earlier in kept if earlier.get("stage") != finding["stage"]]
            kept.append(finding)
        return kept
