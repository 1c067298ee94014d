"""A pack as a table needs it: who, what was scored, every seed's score, and the verdict."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.config.identity import digest
from gpt.errors import UserError
from gpt.metrics.runs import read_run
from gpt.referee import entry as entries
from gpt.referee import judgement, seal
from gpt.referee.entry import BASELINE, CONTENDER, SIDES, Entry
from gpt.referee.judgement import Judgement
from gpt.referee.scores import Side

SAME = 1e-6  # relative, up to which a number that is computed again is the same
ASK_FOR_ANOTHER = "ask its author for another; `referee.py verify` tells all that is wrong with it"


@dataclass(frozen=True)
class Submission:
    """A pack that agrees with itself."""

    path: Path
    entry: Entry
    judgement: Judgement
    identities: Mapping[str, str]  # {side: digest of its runs, their seeds aside}
    tokenizers: Mapping[str, str | None]  # {side: fingerprint}
    contender_weights: Mapping[str, str]  # {name of a run: sha256 of its weights}

    @property
    def measure(self) -> tuple:
        """Equal for entries of one class that were scored alike."""
        measured_on = self.judgement.sides.measured_on
        names = ("split", "documents", "bytes", "last_n")
        facts = [measured_on[name] for name in names]
        return (self.entry.claim.class_name, self.judgement.sides.over, *facts)

    @property
    def compute(self) -> float:
        """What each of the baseline's runs takes of what the class makes equal."""
        sides = self.judgement.sides
        amount = sides.baseline.compute[sides.over]
        assert amount is not None, "or the pack was refused"
        return amount

    def side(self, name: str) -> Side:
        """BASELINE or CONTENDER."""
        sides = self.judgement.sides
        return sides.baseline if name == BASELINE else sides.contender


def read(path: Path) -> Submission:
    """Raises UserError where the folder is no pack, its files are not as they were sealed, or its
    numbers do not follow from its sums."""
    pack = seal.read(path)
    seal.require_whole(pack)
    entry = entries.read(path)
    verdict = judgement.of_paths([path])
    sides = verdict.sides
    if not sides.baseline.scores or sides.baseline.compute[sides.over] is None:
        raise UserError(
            f"{path}: no run of its baseline is finished and tells its {sides.over}",
            mend=ASK_FOR_ANOTHER,
        )
    _require_same(path, json.loads(judgement.as_json(verdict)), pack.judgement)
    configs = {side: read_run(entry.run_folder(side, entry.seeds[0])).config for side in SIDES}
    return Submission(
        path,
        entry,
        verdict,
        {side: digest(config) for side, config in configs.items()},
        {side: (config.get("dataset") or {}).get("tokenizer") for side, config in configs.items()},
        _weights_of(pack, CONTENDER),
    )


def _weights_of(pack: seal.Pack, side: str) -> dict[str, str]:
    """{name of a run: sha256 of its weights} of one side; a run that diverged has none."""
    weights = {}
    for name, run in pack.runs.items():
        if run.side == side and run.weights_sha256 is not None:
            weights[name] = run.weights_sha256
    return weights


def _require_same(path: Path, computed: Any, sealed: Any, place: str = "judgement") -> None:
    """Raise UserError at the first value of a pack's judgement that does not follow from its
    sums."""
    if isinstance(computed, dict) and isinstance(sealed, dict):
        for name in dict.fromkeys([*computed, *sealed]):
            _require_same(path, computed.get(name), sealed.get(name), f"{place}.{name}")
    elif isinstance(computed, list) and isinstance(sealed, list) and len(computed) == len(sealed):
        for index, values in enumerate(zip(computed, sealed)):
            _require_same(path, *values, f"{place}.{index}")
    elif not _is_same(computed, sealed):
        raise UserError(
            f"{path} contradicts itself: {place} is {sealed}, and its sums make it {computed}",
            mend=ASK_FOR_ANOTHER,
        )


def _is_same(computed: Any, sealed: Any) -> bool:
    if isinstance(computed, float) and isinstance(sealed, (int, float)):
        return math.isclose(computed, sealed, rel_tol=SAME, abs_tol=SAME)
    return computed == sealed
