"""A pack as a table needs it: who, what was scored, every seed's score, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt.checkpoint.manifest import WEIGHTS
from gpt.config.identity import digest
from gpt.errors import UserError
from gpt.metrics.runs import read_run
from gpt.packs import seal, verify
from gpt.packs.evidence import Evidence
from gpt.referee import entry as entries
from gpt.referee import judgement
from gpt.referee.entry import BASELINE, CONTENDER, EXPORT, SIDES, Entry
from gpt.referee.fairness import differences_from_class
from gpt.referee.judgement import Judgement
from gpt.referee.scores import Side

ASK_FOR_ANOTHER = "ask its author for another; `referee.py verify` tells all that is wrong with it"
# of verify's, those that need no model, and run no code
CHECKS = (
    "seal",
    "declaration",
    "seeds",
    "starts",
    "settings",
    "rules",
    "data",
    "vocabulary",
    "code",
    "metrics",
    "curves",
    "sums",
    "judgement",
)


@dataclass(frozen=True)
class Submission:
    """A pack that agrees with itself."""

    path: Path
    entry: Entry
    judgement: Judgement
    identities: Mapping[str, str]  # {side: digest of its runs, their seeds aside}
    tokenizers: Mapping[str, str | None]  # {side: fingerprint}
    contender_weights: Mapping[str, str]  # {name of a run: sha256 of its weights}
    # whether they lie in the pack, so that anyone can score them again
    has_weights: bool
    # paths of settings by which the baseline is another run than that of its name in ds_configs/;
    # None where there is none of that name
    off_class: tuple[str, ...] | None

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
    """Raises UserError where the folder is no pack, or where one of the checks fails that `verify`
    makes of its files."""
    pack = seal.read(path)
    _require_sound(path)
    entry = entries.read(path)
    verdict = judgement.of_paths([path])
    sides = verdict.sides
    if not sides.baseline.scores or sides.baseline.compute[sides.over] is None:
        raise UserError(
            f"{path}: no run of its baseline is finished and tells its {sides.over}",
            mend=ASK_FOR_ANOTHER,
        )
    differences = differences_from_class(entry)
    scored = [name for name, run in pack.runs.items() if run.weights_sha256 is not None]
    configs = {side: read_run(entry.run_folder(side, entry.seeds[0])).config for side in SIDES}
    return Submission(
        path,
        entry,
        verdict,
        {side: digest(config) for side, config in configs.items()},
        {side: (config.get("dataset") or {}).get("tokenizer") for side, config in configs.items()},
        _weights_of(pack, CONTENDER),
        all((entry.runs / name / EXPORT / WEIGHTS).is_file() for name in scored),
        None if differences is None else tuple(path for path, _, _ in differences),
    )


def _weights_of(pack: seal.Pack, side: str) -> dict[str, str]:
    """{name of a run: sha256 of its weights} of one side; a run that diverged has none."""
    weights = {}
    for name, run in pack.runs.items():
        if run.side == side and run.weights_sha256 is not None:
            weights[name] = run.weights_sha256
    return weights


def _require_sound(path: Path) -> None:
    """Raise UserError with the first thing that is wrong with a pack's files."""
    checks = verify.checks(0)
    of_files = {name: checks[name] for name in CHECKS}
    for result in verify.make(Evidence(path), of_files, lambda result: None):
        if result.state == verify.FAILED:
            raise UserError(f"{path}: {result.name}: {result.lines[0]}", mend=ASK_FOR_ANOTHER)
