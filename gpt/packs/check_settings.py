"""Checks of what was trained on what: settings, text, vocabulary, code."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt.checkpoint.folders import CODE_FOLDER
from gpt.config.code import code_of
from gpt.config.identity import ARGUMENTS_OF, CODE, MODEL_FILE, differing, identity
from gpt.config.own_code import MOST_BYTES, hash_of
from gpt.config.resolve import read
from gpt.config.run_config import Config
from gpt.config.saved import CONFIG, as_dict
from gpt.data.datasets import Dataset
from gpt.data.manifests import TOKENIZER
from gpt.data.vocab import Vocab
from gpt.errors import UserError, in_brief
from gpt.packs.evidence import Declared, Evidence, LeftOut, of_each
from gpt.reading import read_bytes
from gpt.referee import tuning
from gpt.referee.entry import EXPORT, SIDES
from gpt.wording import listed

SHOWN = 5  # settings that differ
# of a config.yaml, what the entry's files do not tell: it is of the machine, or of the dataset
OF_THE_RUN = ("kernels", "parameters", CODE, "dataset", "began_from")
# of its dataset, what all runs have in common, whatever their tokenizers
OF_THE_TEXT = (
    "train.documents",
    "train.bytes",
    "scored.split",
    "scored.documents",
    "scored.bytes",
)


def follow_from_the_entry(evidence: Evidence, problems: list[str]) -> str:
    """Each run is what its side's JSON, the equal compute and the tuning make: in its steps, its
    schedule and all that makes its curve."""
    expected = expected_settings(evidence, problems)

    flops = flops_per_token(evidence)

    def look(run: Declared) -> Iterator[str]:
        if run.side in expected:
            yield from _otherwise(evidence, run, expected[run.side])

    def look_at_trial(trial: Declared) -> Iterator[str]:
        entry = evidence.entry
        _, factor = entry.trial_names[trial.name]
        settings = tuning.trial_settings(entry, trial.side, flops)
        yield from _otherwise(evidence, trial, settings[factor])

    of_each(evidence.present, problems, look)
    of_each(evidence.trials, problems, look_at_trial)
    return _difference_of_sides(evidence)


def _otherwise(evidence: Evidence, run: Declared, settings: Mapping[str, Any]) -> Iterator[str]:
    """Where the config.yaml of a run is not what its side's JSON makes."""
    saved = evidence.config(run.name)
    config = resolved(evidence, run, settings)
    rebuilt = identity(_as_saved(config, saved))
    actual = identity(saved)
    for path in differing([rebuilt, actual])[:SHOWN]:
        yield (
            f"{evidence.folder(run.name) / CONFIG}: {path} is {actual.get(path)}, and"
            f" {run.side}.json at equal {evidence.entry.claim.over} makes it {rebuilt.get(path)}"
        )


def expected_settings(evidence: Evidence, problems: list[str]) -> dict[str, dict[str, Any]]:
    """{side: {dotted path: value} that equal compute and the tuning lay over its JSON}; problems
    gets why there is none of a side."""
    expected: dict[str, dict[str, Any]] = {}
    flops = flops_per_token(evidence)
    for side in SIDES:
        try:
            expected[side] = tuning.settings_of(evidence.entry, side, flops)
        except UserError as error:
            problems.append(str(error))
    return expected


def flops_per_token(evidence: Evidence) -> dict[str, int] | None:
    """{side: FLOPs per token that its runs tell}; None where they may be counted here, by the code
    that came with the pack."""
    if evidence.trusted:
        return None
    flops_of_sides: dict[str, int] = {}
    for run in evidence.present:
        flops = evidence.run(run.name).flops_per_token
        if flops is not None:
            flops_of_sides.setdefault(run.side, flops)
    return flops_of_sides


def resolved(evidence: Evidence, run: Declared, settings: Mapping[str, Any]) -> Config:
    """The configuration that a declared run must have had, on as many ranks. settings: of its side,
    of `expected_settings`. Raises UserError."""
    saved = evidence.config(run.name)
    overrides = {
        **settings,
        "gpt.seed": run.seed,
        "gpt.run_dir": str(evidence.folder(run.name)),
    }
    ranks = (saved.get("batch") or {}).get("world_size") or 1
    draft = read(evidence.entry.config_file(run.side), ranks, overrides)
    if draft.lacks("gpt.vocab_size"):
        draft.put("gpt.vocab_size", saved["model"]["vocab_size"], "derived: from the dataset")
    config = draft.settle()
    if config.precision == "fp16" and saved.get("precision") == "fp32":
        config = config.without_fp16("trained where nothing computes in fp16")
    return config


def _as_saved(config: Config, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The config.yaml of a configuration, with what the run alone can tell from its own."""
    return {**as_dict(config), **{name: saved[name] for name in OF_THE_RUN if name in saved}}


def _difference_of_sides(evidence: Evidence) -> str:
    """In what the contender differs from the baseline, in words."""
    first = {run.side: run for run in reversed(evidence.present)}
    if len(first) < len(SIDES):
        return "each run is what its side's JSON makes"
    paths = differing([identity(evidence.config(first[side].name)) for side in SIDES])
    if not paths:
        return "each run is what its side's JSON makes; the sides differ in nothing"
    return f"each run is what its side's JSON makes; the sides differ in {listed(paths, SHOWN)}"


def one_text_for_all(evidence: Evidence, problems: list[str]) -> str:
    """All runs are trained on one text and scored on one text."""
    texts: dict[str, tuple[str, Any]] = {}

    def look(run: Declared) -> Iterator[str]:
        facts = _facts_of_text(evidence.config(run.name))
        for name in OF_THE_TEXT:
            value = facts[name]
            if value is None:
                yield f"{evidence.folder(run.name) / CONFIG} does not tell dataset.{name}"
                continue
            other, expected = texts.setdefault(name, (run.name, value))
            if value != expected:
                yield f"{run.name} has dataset.{name} {value}, and {other} has {expected}"
        yield from _off_text(evidence, run, facts)

    of_each(evidence.present, problems, look)
    scored = {name: value for name, (_, value) in texts.items()}
    split, size = scored.get("scored.split"), scored.get("scored.bytes")
    return f"one training text, and all are scored on the split {split!r}, {size} bytes"


def _facts_of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    dataset = config.get("dataset") or {}
    facts = {}
    for path in OF_THE_TEXT:
        block, _, name = path.partition(".")
        facts[path] = (dataset.get(block) or {}).get(name)
    return facts


def _off_text(evidence: Evidence, run: Declared, facts: Mapping[str, Any]) -> Iterator[str]:
    """Where other text than config.yaml's is scored, by its settings or by what pack.json says."""
    split = evidence.options(run.name)["eval_data_split"]
    if split != facts["scored.split"]:
        yield (
            f"{run.name} is to be scored on {split!r}, and tells the documents of"
            f" {facts['scored.split']!r}"
        )
    sealed = evidence.pack.runs.get(run.name)
    if sealed is not None and sealed.documents not in (None, facts["scored.documents"]):
        yield (
            f"pack.json has documents {sealed.documents[:12]} of {run.name}, and its {CONFIG}"
            f" {str(facts['scored.documents'])[:12]}"
        )


def dataset_is_the_same(evidence: Evidence, problems: list[str]) -> str:
    """The dataset that is here is that which the runs tell, file by file of the split."""
    places = {}

    def look(run: Declared) -> Iterator[str]:
        dataset = evidence.dataset(run.name)
        places[str(dataset.root)] = dataset
        yield from _off_dataset(evidence, run, dataset)

    of_each(evidence.present, problems, look)
    return f"{', '.join(places)} holds the text of all runs, each file as it was written"


def _off_dataset(evidence: Evidence, run: Declared, dataset: Dataset) -> Iterator[str]:
    of_run = evidence.config(run.name).get("dataset") or {}
    split = evidence.options(run.name)["eval_data_split"]
    actual = dataset.facts(split)
    dataset.split(split).require_as_written()
    for name in ("tokenizer", "train", "scored"):
        if of_run.get(name) != actual[name]:
            which = _which(of_run.get(name), actual[name])
            yield f"{dataset.root} has another {name} than {run.name} was trained with ({which})"


def _which(of_run: Any, actual: Any) -> str:
    """The first fact in which two blocks differ."""
    if isinstance(of_run, dict) and isinstance(actual, dict):
        name = next(name for name in {**actual, **of_run} if of_run.get(name) != actual.get(name))
        return f"{name} {actual.get(name)}, and the run tells {of_run.get(name)}"
    return f"{actual}, and the run tells {of_run}"


def vocabulary_is_whole(evidence: Evidence, problems: list[str]) -> str:
    """The model gives a probability to every id of the tokenizer, and the tokenizer with its
    weights is that which it was trained with."""
    sizes = set()

    def look(run: Declared) -> Iterator[str]:
        path = evidence.folder(run.name) / EXPORT / TOKENIZER
        vocab = Vocab.load(path)
        config = evidence.config(run.name)
        size = config["model"]["vocab_size"]
        sizes.add(size)
        if size != vocab.size:
            yield (
                f"{run.name}: the model tells {size} ids apart, and its tokenizer {path} has"
                f" {vocab.size}: targets beyond would be scored as others"
            )
        trained_with = (config.get("dataset") or {}).get("tokenizer")
        if vocab.fingerprint != trained_with:
            yield (
                f"{path} is another tokenizer ({vocab.fingerprint[:12]}) than the run was trained"
                f" with ({str(trained_with)[:12]})"
            )

    of_each(evidence.scored, problems, look)
    return f"{' and '.join(f'{size:,}' for size in sorted(sizes))} ids, those of each tokenizer"


def own_code_is_as_told(evidence: Evidence, problems: list[str]) -> str:
    """The files of the user's own code, wherever they lie, are those that each run tells."""
    names: set[str] = set()

    def look(run: Declared) -> Iterator[str]:
        config = evidence.config(run.name)
        for block in ARGUMENTS_OF:
            facts = config.get(block)
            if facts is None:
                continue
            names.update(facts["files"])
            if hash_of(facts["name"], facts["files"]) != facts["hash"]:
                yield (
                    f"{evidence.folder(run.name) / CONFIG}: {block}.hash is {facts['hash']}, and"
                    f" its files make another"
                )
            yield from _off_code(evidence.folder(run.name) / CODE_FOLDER, facts["files"])
            if block == MODEL_FILE and run in evidence.scored:
                yield from _off_code(evidence.folder(run.name) / EXPORT, facts["files"])

    of_each(evidence.present, problems, look)
    return f"{listed(sorted(names), SHOWN)}, as each run tells" if names else "the trainer's alone"


def _off_code(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    for name, sha256 in files.items():
        path = folder / name
        if _sha256(path) != sha256:
            yield f"{path} is not the code that the run was trained with (its sha256 differs)"


def _sha256(path: Path) -> str:
    """Of a file of code, as `read_own_code` takes it."""
    try:
        text = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise UserError(in_brief(error, path)) from error
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()


def trainer_is_the_same(evidence: Evidence, problems: list[str]) -> str:
    """One version of the trainer made all runs, and it is the one that is here."""
    versions: dict[str, Mapping[str, Any]] = {}
    for run in evidence.present:
        code = evidence.config(run.name).get(CODE) or {}
        versions.setdefault(str(code.get("hash")), code)
    if len(versions) > 1:
        problems.append(
            f"the runs were made by {len(versions)} versions of the trainer: {', '.join(versions)}"
        )
        return ""
    here = code_of()
    for hash_there, code in versions.items():
        if hash_there != here["hash"]:
            parts = code.get("parts") or {}
            others = [part for part in here["parts"] if parts.get(part) != here["parts"][part]]
            commit = code.get("commit")
            mend = f"check out {commit}" if commit else "no commit is told that holds it"
            raise LeftOut(
                f"the trainer here is another than made the runs, in {', '.join(others)}: {mend}"
            )
    return f"{here['hash']}, the trainer that is here"
