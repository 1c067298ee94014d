"""What a person sees on a terminal."""

import sys

from gpt.metrics.terminal import Progress


def test_beside_the_bar_the_lines_stay_in_the_scrollback(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(20, active=True)
    progress.start(0)
    for step in (10, 20):
        progress.report(step, 7.5 - step / 10, 1e-3, 1234.0, 60.0)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 10/20  loss 6.5000  lr 1.00e-03  1,234 tokens/s  ETA 0:01:00",
        "step 20/20  loss 5.5000  lr 1.00e-03  1,234 tokens/s  ETA 0:01:00",
    ]
