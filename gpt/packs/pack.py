"""A pack: an entry's folder without checkpoints, sealed.

What the entry declares, measured.json, starts.jsonl and every log are copied as they are; of the
trials and of the ladder what they are judged by; of the final runs their own code, their export and
their evaluation too. judgement.json is made anew, README.md says what it is, and pack.json
(gpt/packs/seal.py) is written last.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.folders import CODE_FOLDER
from gpt.checkpoint.manifest import MANIFEST, WEIGHTS
from gpt.compute import hardware
from gpt.config.identity import ARGUMENTS_OF, digest_with_seed
from gpt.config.own_code import TRUST
from gpt.config.saved import CONFIG
from gpt.errors import UserError, in_brief
from gpt.files import built_aside, hash_file, require_new_folder, write_atomically
from gpt.metrics import chain, events
from gpt.metrics.events import METRICS
from gpt.metrics.run import Run
from gpt.metrics.runs import read_run
from gpt.packs import pack_readme, seal
from gpt.packs.seal import SealedRun
from gpt.reading import open_regular
from gpt.referee import entry as entries
from gpt.referee import judgement
from gpt.referee.entry import EXPORT, SIDES, Entry
from gpt.referee.judgement import Judgement
from gpt.referee.scores import SeedScore, Sides, documents_file
from gpt.results import evaluations
from gpt.results.document_sums import SUMS
from gpt.wording import listed, plural

BLOCK = 1 << 20  # bytes that are copied at a time
_EXPORT_AGAIN = (
    "remove the run's folders export and evaluations, and `python tools/referee.py run` makes them"
    " again"
)
# of what a run tells of its process, what decides how its numbers round
OF_A_PROCESS = (
    "host",
    "device",
    "processor",
    "ranks",
    "precision",
    "zero_stage",
    "kernels",
    "versions",
)


@dataclass(frozen=True)
class Final:
    """A declared run. score, export: None of one that diverged."""

    side: str
    seed: int
    run: Run
    score: SeedScore | None
    export: Checkpoint | None

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def evaluation(self) -> Path:
        """The file of its evaluation after the last step."""
        return evaluations.file_of(self.run.path, *self.measure)

    @property
    def documents(self) -> Path:
        """The file of its sums by document."""
        return documents_file(self.run.path, *self.measure)

    @property
    def measure(self) -> tuple[str, int]:
        """(the split, the step) of that evaluation."""
        options = self.run.options
        return options["eval_data_split"], options["max_train_steps"]


def write(path: Path, out: Path, with_weights: bool) -> str:
    """Make the pack of an entry; returns what was written, in words.

    with_weights: whether it holds the weights, or their hashes alone. Raises UserError, and leaves
    nothing, where the folder is there, where the entry cannot be judged, where a declared seed is
    not finished or not evaluated, where a log is not as it was written.
    """
    require_new_folder(out)
    entry = entries.read(path)
    if os.path.lexists(path / seal.FILE):
        raise UserError(f"{path} is a pack already", mend="copy it, or pack an entry")
    if path.resolve() in out.resolve().parents:
        raise UserError(
            f"--out {out} is inside of the entry {path}", mend="name a folder outside of it"
        )
    verdict = judgement.of_paths([path])
    _require_finished(entry, verdict.sides)
    finals = _finals(entry, verdict.sides)
    trainer = _trainer(finals)
    sources = dict(_sources(entry, finals))
    with built_aside(out) as building:
        files = {}
        for name, source in sources.items():
            if with_weights or source.name != WEIGHTS:
                files[name] = _copy(source, building / name)
            else:
                _require_as_exported(source, hash_file(source))
        texts = {
            entry.judgement.name: judgement.as_json(verdict),
            "README.md": pack_readme.text(entry, verdict, trainer, with_weights),
        }
        for name, text in texts.items():
            write_atomically(building / name, text)
            files[name] = hash_file(building / name)
        content = _content(entry, verdict, finals, trainer, files)
        write_atomically(building / seal.FILE, json.dumps(content, indent=1, allow_nan=False))
    return _in_words(out, entry, verdict, trainer, files)


# ---- What must be so


def _require_finished(entry: Entry, sides: Sides) -> None:
    unfinished = []
    for side, scored in zip(SIDES, (sides.baseline, sides.contender)):
        unfinished += [entry.run_name(side, seed) for seed in scored.missing]
    if unfinished:
        raise UserError(
            f"{entry.path}: {listed(unfinished, shown=10)} {_is_or_are(unfinished)} declared, and"
            " not finished and evaluated",
            mend=f"`python tools/referee.py run {entry.path}` goes on",
        )


def _is_or_are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _finals(entry: Entry, sides: Sides) -> list[Final]:
    """The declared runs. Raises UserError where one lacks what a pack needs of it."""
    finals = []
    for side, scored in zip(SIDES, (sides.baseline, sides.contender)):
        scores = {score.seed: score for score in scored.scores}
        for seed in entry.seeds:
            folder = entry.run_folder(side, seed)
            _require_unbroken(folder)
            score = scores.get(seed)
            export = None if score is None else _export(folder)
            final = Final(side, seed, read_run(folder), score, export)
            _require_evaluated(final)
            finals.append(final)
    return finals


def _require_unbroken(run_dir: Path) -> None:
    """Raise UserError unless the chain goes through the whole log of a run."""
    path = run_dir / METRICS
    try:
        number = chain.first_break(path)
    except OSError as error:
        raise UserError(in_brief(error, path), mend="bring the log back") from error
    if number is not None:
        raise UserError(
            f"{path}:{number} is damaged, or not chained to the line before it, and a pack holds"
            " unbroken logs alone",
            mend="bring back the file that training wrote, or move the run away and train it again",
        )


def _export(run_dir: Path) -> Checkpoint:
    folder = run_dir / EXPORT
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds no weights", mend=_EXPORT_AGAIN)
    export = Checkpoint.open(folder)
    if WEIGHTS not in export.manifest.files:
        raise UserError(f"{folder / MANIFEST} tells of no {WEIGHTS}", mend=_EXPORT_AGAIN)
    return export


def _require_evaluated(final: Final) -> None:
    """Raise UserError where other weights than the exported ones were evaluated, or no
    documents."""
    if final.score is None or final.export is None:
        return
    if final.score.documents is None:
        raise UserError(
            f"{final.documents} is missing, the sums of each document",
            mend="`python tools/referee.py run` evaluates again",
        )
    run = final.run
    evaluation = evaluations.read(run.path, run.config, *final.measure)
    assert evaluation is not None, "it has a score"
    made_from = final.export.manifest.made_from or {}
    if evaluation["run"].get("sha256") != made_from.get("sha256"):
        raise UserError(
            f"{final.evaluation} is of other weights than {final.export.path}", mend=_EXPORT_AGAIN
        )


def _trainer(finals: list[Final]) -> dict[str, Any]:
    """The code that made all runs. Raises UserError where it was not the same."""
    first, *others = finals
    for final in others:
        if final.run.code != first.run.code:
            raise UserError(
                f"{first.name} was trained by the code {first.run.code}, and {final.name} by"
                f" {final.run.code}",
                mend="train both sides with one version of the trainer",
            )
    code = first.run.config.get("code") or {}
    return {"code": code.get("hash"), "commit": code.get("commit"), "dirty": code.get("dirty")}


# ---- What is copied


def _sources(entry: Entry, finals: list[Final]) -> Iterator[tuple[str, Path]]:
    """(path below the pack, file) of all that is taken over. Raises UserError where a file lies
    elsewhere."""
    for name in _names_of(entry, finals):
        _require_inside(entry.path, name)
        yield name, entry.path / name


def _names_of(entry: Entry, finals: list[Final]) -> Iterator[str]:
    """Paths below the entry."""
    yield from entry.declared_files
    yield entry.starts.name
    if entry.measured.exists():
        yield entry.measured.name
    for name in entry.trial_names:
        _require_unbroken(entry.tuning_runs / name)
        yield from _log_of(entry, entry.tuning_runs / name)
    for folder in sorted(entry.ladder.glob("*")):
        if folder.is_dir():
            yield from _log_of(entry, folder)
            for file in sorted((folder / evaluations.FOLDER).glob("*.json")):
                yield _below(entry, file)
    for final in finals:
        folder = final.run.path
        yield from _log_of(entry, folder)
        for name in sorted(_own_code(final.run)):
            yield _below(entry, folder / CODE_FOLDER / name)
        if final.export is not None:
            yield _below(entry, final.evaluation)
            yield _below(entry, final.documents)
            for name in (MANIFEST, *sorted(final.export.manifest.files)):
                yield _below(entry, folder / EXPORT / name)


def _log_of(entry: Entry, run_dir: Path) -> list[str]:
    return [_below(entry, run_dir / name) for name in (CONFIG, METRICS)]


def _own_code(run: Run) -> set[str]:
    """The names of the files that a run keeps beside its config.yaml."""
    names: set[str] = set()
    for block in ARGUMENTS_OF:
        names.update((run.config.get(block) or {}).get("files") or ())
    return names


def _below(entry: Entry, path: Path) -> str:
    return path.relative_to(entry.path).as_posix()


def _require_inside(folder: Path, name: str) -> None:
    """Raise UserError where a file, or a folder on the way to it, is a link or missing."""
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, and what it leads to may change",
                mend="put the file itself there",
            )
    if not path.is_file():
        raise UserError(f"{path} is missing", mend="bring it back")


def _copy(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file into the pack; returns its {"size", "sha256"}. Raises UserError where it cannot
    be read, or is no weights as they were exported."""
    digest = hashlib.sha256()
    size = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = open_regular(source)
    except OSError as error:
        raise UserError(in_brief(error, source), mend="have it made readable") from error
    with file, open(target, "xb") as copy:
        while block := file.read(BLOCK):
            copy.write(block)
            digest.update(block)
            size += len(block)
    facts = {"size": size, "sha256": digest.hexdigest()}
    _require_as_exported(source, facts)
    return facts


def _require_as_exported(source: Path, facts: Mapping[str, Any]) -> None:
    """Raise UserError where a file of an export is not the one that its manifest tells."""
    if source.parent.name != EXPORT or source.name == MANIFEST:
        return
    if Checkpoint.open(source.parent).manifest.files.get(source.name) != facts:
        raise UserError(
            f"{source} is not as it was exported",
            mend=_EXPORT_AGAIN,
        )


# ---- What it says of itself


def _content(
    entry: Entry,
    verdict: Judgement,
    finals: list[Final],
    trainer: Mapping[str, Any],
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """Of pack.json."""
    return {
        "format": seal.FORMAT,
        "entry": entry.name,
        "made": round(time.time(), 3),
        "trainer": dict(trainer),
        "runs": {final.name: asdict(_sealed(final)) for final in finals},
        "judgement": judgement.as_dict(verdict),
        "environment": {
            "runs": {final.name: _process_of(final.run) for final in finals},
            "pack": {
                "host": platform.node(),
                "processor": hardware.processor(),
                "versions": hardware.versions(),
            },
        },
        "files": dict(sorted(files.items())),
    }


def _sealed(final: Final) -> SealedRun:
    run = final.run
    sums: dict[str, float] = {}
    documents = weights_sha256 = None
    if final.score is not None and final.export is not None:
        sums = {name: getattr(final.score, name) for name in SUMS}
        documents = (run.config["dataset"].get("scored") or {}).get("documents")
        weights_sha256 = final.export.manifest.files[WEIGHTS]["sha256"]
    head = chain.head(run.path / METRICS)
    assert head is not None, "a log without a chain is refused"
    return SealedRun(
        side=final.side,
        seed=final.seed,
        step=run.last_step,
        sums=sums,
        documents=documents,
        weights_sha256=weights_sha256,
        curve=digest_with_seed(run.config),
        chain=head,
    )


def _process_of(run: Run) -> dict[str, Any]:
    """What the last process that trained a run told of itself."""
    processes = run.events.get(events.START) or [{}]
    return {name: processes[-1].get(name) for name in OF_A_PROCESS}


def _in_words(
    out: Path,
    entry: Entry,
    verdict: Judgement,
    trainer: Mapping[str, Any],
    files: Mapping[str, Any],
) -> str:
    size = sum(facts["size"] for facts in files.values())
    lines = [
        f"{out}: {plural(len(files), 'file')}, {size / 1e6:,.1f} MB",
        verdict.sentence,
        f"sha256 of {out / seal.FILE}, which seals all the rest and can be published beside a"
        f" claim: {hash_file(out / seal.FILE)['sha256']}",
        f"notice: {pack_readme.PRIVATE}",
    ]
    if trainer["commit"] is None or trainer["dirty"]:
        lines.append(
            "notice: the runs were trained by code that no commit holds, so nobody else can check"
            " it out"
        )
    trust = f" {TRUST}" if pack_readme.own_code(entry) else ""
    lines.append(f"next: python tools/referee.py verify {out} --replay 50{trust}")
    return "\n".join(lines)
