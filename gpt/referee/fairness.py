"""Whether the two sides of an entry are compared fairly, as far as their configurations and their
data tell: the same text in one pass, scored alike at the end of a schedule, and nothing declared
anew once training has begun."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpt.config.batch import ACCUMULATION, MICRO
from gpt.config.identity import SCORING, differing, identity
from gpt.config.resolve import read
from gpt.config.run_config import Config, leaves
from gpt.config.saved import as_dict
from gpt.data.datasets import Dataset
from gpt.data.manifests import TOKENS
from gpt.data.streams import Streams
from gpt.errors import UserError
from gpt.referee import budget, starts
from gpt.referee.entry import BASELINE, CONTENDER, HOURS, SIDES, Entry
from gpt.training.run_data import RunData
from gpt.training.sweep import CLASSES

ANEW = "make the entry anew with the same for both"


@dataclass(frozen=True)
class Side:
    """One side, resolved."""

    name: str  # one of SIDES
    config: Config
    dataset: Dataset


class Pair(NamedTuple):
    """Both sides of an entry. has_budget: whether they have the steps that equal compute gives
    them; else those of their files."""

    entry: Entry
    baseline: Side
    contender: Side
    has_budget: bool

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.baseline, self.contender


def settle(entry: Entry, has_budget: bool = True) -> Pair:
    """has_budget: of the pair. Raises UserError with the mistakes of a side, or of the budget."""
    sides = {}
    for name in SIDES:
        settings: dict[str, Any] = entry.overrides(name)
        if has_budget:
            settings |= budget.settings(entry, name)
        draft = read(entry.config_file(name), 1, settings)
        data = RunData(draft, may_be_absent=False)
        draft.add(data.mistakes())
        config = draft.settle()
        if data.awaits_sample:
            from gpt.prepare.sample import prepare_sample

            prepare_sample(config.options.data_root)
        sides[name] = Side(name, config, data.open())
    return Pair(entry, sides[BASELINE], sides[CONTENDER], has_budget)


def awaits_measurement(entry: Entry) -> bool:
    return entry.claim.over == HOURS and not entry.measured.exists()


def require_fair(entry: Entry) -> None:
    """Raise UserError with the first check that fails."""
    pair = settle(entry)
    for name, check in CHECKS:
        try:
            check(pair)
        except UserError as error:
            raise UserError(
                f"{entry.path} is no fair comparison: {name}: {error.what}", error.mend
            ) from error
    for side in pair.sides:
        require_trainable(side.config)


def require_trainable(config: Config) -> None:
    """Raise UserError where a file of the user's own builds no model, or no optimizer, that
    training would take: not one of the other side's runs shall be trained to find that out."""
    if config.model_code is not None:
        from gpt.training.start import look_at_model

        look_at_model(config, [])
    if config.optimizer_code is not None:
        from gpt.optimizers.trial import require_optimizer

        require_optimizer(config)


# ---- The checks: each returns what it saw, or raises UserError


def _same_training_text(pair: Pair) -> str:
    baseline, contender = (side.dataset for side in pair.sides)
    if baseline.documents("train") != contender.documents("train"):
        raise UserError(
            f"{baseline.root} and {contender.root} hold other training documents, or the same in"
            " another order",
            mend="prepare both datasets from the same files, and with the same options",
        )
    facts = baseline.facts(pair.baseline.config.options.eval_data_split)["train"]
    return (
        f"both read the same {facts['count']:,} documents of {facts['bytes']:,} bytes, in one order"
    )


def _tokenizers(pair: Pair) -> str:
    baseline, contender = (side.dataset for side in pair.sides)
    split = pair.baseline.config.options.eval_data_split
    if baseline.vocab.fingerprint == contender.vocab.fingerprint:
        for name in ("train", split):
            if _hash_of_tokens(baseline, name) != _hash_of_tokens(contender, name):
                raise UserError(
                    f"{baseline.root} and {contender.root} hold other tokens of {name!r}, of the"
                    " same documents by the same tokenizer",
                    mend="give both the same dataset",
                )
        return f"the same, of {baseline.vocab.size:,} ids"
    for name in ("train", split):
        sizes = [dataset.facts(name)["scored"]["bytes"] for dataset in (baseline, contender)]
        is_hashed = ":" not in baseline.documents(name)
        if not is_hashed or sizes[0] != sizes[1]:
            raise UserError(
                f"two tokenizers, and the bytes of {name!r} are not shown to be the same",
                mend="prepare both datasets from one text with this version",
            )
    return (
        f"two, of {baseline.vocab.size:,} and {contender.vocab.size:,} ids, of documents that are"
        " the same to the byte: figures per token say nothing"
    )


def _hash_of_tokens(dataset: Dataset, split: str) -> int | str:
    return dataset.manifest["splits"][split]["files"][TOKENS]["sha256"]


def _same_held_out_text(pair: Pair) -> str:
    names = [side.config.options.eval_data_split for side in pair.sides]
    documents = [
        side.dataset.documents(name) if name else None for side, name in zip(pair.sides, names)
    ]
    if names[0] != names[1] or documents[0] != documents[1]:
        raise UserError(
            f"the baseline is scored on {names[0]!r} and the contender on {names[1]!r}, of other"
            " documents",
            mend=ANEW,
        )
    if documents[0] == pair.baseline.dataset.documents("train"):
        raise UserError(
            f"both are scored on {names[0]!r}, the very text that they are trained on",
            mend="set gpt.eval_data_split to one that is held out, for both",
        )
    scored = pair.baseline.dataset.facts(names[0])["scored"]
    return f"both are scored on {names[0]!r}, {scored['bytes']:,} bytes"


def _same_scoring(pair: Pair) -> str:
    baseline, contender = (side.config.options for side in pair.sides)
    for name in SCORING:
        if name == "eval_data_split":  # a check of its own
            continue
        values = getattr(baseline, name), getattr(contender, name)
        if values[0] != values[1]:
            raise UserError(
                f"{name} is {values[0]} for the baseline and {values[1]} for the contender",
                mend=ANEW,
            )
    for side in pair.sides:
        if not side.config.options.final_eval:
            raise UserError(
                f"the {side.name} does not score the whole split after its last step",
                mend="set gpt.final_eval to true for both",
            )
        if side.config.options.eval_every <= 0:
            raise UserError(
                f"the {side.name} is never evaluated before training, which tells whether seeds can"
                " be paired",
                mend="set gpt.eval_every above 0 for both",
            )
    lengths = [side.config.model.seq_len for side in pair.sides]
    context = f"last_n {baseline.last_n}, the whole split after the last step"
    if lengths[0] != lengths[1]:
        return f"{context}; contexts of {lengths[0]} and {lengths[1]} tokens, which is a method"
    return f"{context}, contexts of {lengths[0]} tokens"


def _one_pass(pair: Pair) -> str:
    parts = []
    for side in pair.sides:
        steps = side.config.options.max_train_steps
        streams = Streams(
            side.dataset.split("train"),
            side.config.batch.train_batch_size,
            side.config.model.seq_len,
        )
        passes = steps * streams.count * streams.seq_len / streams.tokens
        if steps > streams.first_repeat:
            raise UserError(
                f"the {side.name} reads text twice: its {steps:,} steps are {passes:.2f} passes,"
                f" and the first stream begins again after {streams.first_repeat:,}",
                mend="compare shorter runs, or prepare more text",
            )
        parts.append(f"{passes:.1%} of it in the {steps:,} steps of the {side.name}")
    source = "" if pair.has_budget else ", with the steps of the files"
    return f"no text is read twice: {', '.join(parts)}{source}"


def _ends_of_schedules(pair: Pair) -> str:
    for side in pair.sides:
        schedule = side.config.schedule
        if schedule is None:
            raise UserError(
                f"the {side.name} has no schedule of the trainer's own, which would follow its"
                " steps",
                mend="give it LanguiniCosineLR or LinearCooldownLR",
            )
        steps = side.config.options.max_train_steps
        if pair.has_budget and schedule.decay_steps != steps:
            raise UserError(
                f"the schedule of the {side.name} ends at step {schedule.decay_steps:,}, and its"
                f" run at {steps:,}",
                mend=ANEW,
            )
    if not pair.has_budget:
        return "both follow the steps, which are not known yet"
    return "both are evaluated at the end of their schedules"


def _same_beginning(pair: Pair) -> str:
    for name in ("init_from", "branch_from"):
        values = [getattr(side.config.options, name) for side in pair.sides]
        if values[0] != values[1]:
            raise UserError(
                f"{name} is {values[0]} for the baseline and {values[1]} for the contender: one"
                " side begins with more training",
                mend="let both begin with drawn weights",
            )
    first_weights = pair.baseline.config.options.init_from
    return (
        f"both with {first_weights}"
        if first_weights
        else "neither side is given any (init_from, branch_from)"
    )


def _same_precision(pair: Pair) -> str:
    precisions = [side.config.precision for side in pair.sides]
    if precisions[0] != precisions[1]:
        raise UserError(
            f"the baseline trains in {precisions[0]} and the contender in {precisions[1]}",
            mend=ANEW,
        )
    return precisions[0]


def _same_kernels(pair: Pair) -> str:
    baseline, contender = (side.config.options for side in pair.sides)
    for name in ("kernels", "compile", "cuda_graph"):
        values = getattr(baseline, name), getattr(contender, name)
        if values[0] != values[1]:
            raise UserError(
                f"{name} is {values[0]} for the baseline and {values[1]} for the contender:"
                " kernels are measured apart from methods",
                mend=ANEW,
            )
    return f"kernels {baseline.kernels}, compile {baseline.compile}, for both"


def _same_trials(pair: Pair) -> str:
    tuning = pair.entry.tuning
    rates = [side.config.schedule and side.config.schedule.max_lr for side in pair.sides]
    rates_in_words = " and ".join("none" if rate is None else f"{rate:g}" for rate in rates)
    if not tuning.trials:
        return f"nothing is tried: max_lr is {rates_in_words}, as the files say"
    factors = ", ".join(f"{factor:g}" for factor in tuning.factors)
    return (
        f"{tuning.trials} trials of each side, at {factors} times max_lr {rates_in_words}, under"
        f" the seed {tuning.seed}"
    )


def _as_declared(pair: Pair) -> str:
    record = starts.read(pair.entry)
    starts.require_unchanged(pair.entry, record)
    if not record:
        return f"{pair.entry.declaration[:12]}, and nothing was started yet"
    abandoned = sum(start.is_abandoned for start in record)
    return (
        f"{pair.entry.declaration[:12]}, unchanged since the first of {len(record)} starts"
        f" ({abandoned} abandoned)"
    )


class FairnessCheck(NamedTuple):
    name: str
    check: Callable[[Pair], str]


CHECKS = (
    FairnessCheck("data", _same_training_text),
    FairnessCheck("tokenizer", _tokenizers),
    FairnessCheck("split", _same_held_out_text),
    FairnessCheck("scoring", _same_scoring),
    FairnessCheck("one pass", _one_pass),
    FairnessCheck("schedule", _ends_of_schedules),
    FairnessCheck("first weights", _same_beginning),
    FairnessCheck("precision", _same_precision),
    FairnessCheck("kernels", _same_kernels),
    FairnessCheck("tuning", _same_trials),
    FairnessCheck("declaration", _as_declared),
)


def differences_from_class(entry: Entry) -> list[tuple[str, Any, Any]] | None:
    """(path, in ds_configs/, in baseline.json) of what makes the baseline another run than the one
    of its name that comes with the trainer; None where none does. The text is not compared."""
    file = CLASSES / f"{entry.claim.baseline}.json"
    if not file.is_file():
        return None
    own = read(entry.config_file(BASELINE), 1, entry.overrides(BASELINE)).settle()
    shipped = read(file, 1, {"gpt.vocab_size": own.model.vocab_size}).settle()
    of_class, of_entry = (identity(as_dict(config)) for config in (shipped, own))
    paths = differing([of_class, of_entry])
    return [(path, of_class.get(path), of_entry.get(path)) for path in paths]


# settings that make no curve another one, and speed
OF_SPEED = (MICRO, ACCUMULATION, "gpt.activation_checkpointing", "zero_optimization")


def differences_of_speed(pair: Pair) -> Iterator[tuple[str, Any, Any]]:
    """The same of what makes no other curve, and may make one side slower than it need be."""
    trees = [dict(leaves(side.config.tree())) for side in pair.sides]
    for path in differing(trees):
        if path.startswith(OF_SPEED):
            baseline, contender = (tree.get(path) for tree in trees)
            yield path, baseline, contender


def differences(pair: Pair) -> Iterator[tuple[str, Any, Any]]:
    """(path, of the baseline, of the contender) of everything in which the sides' runs differ."""
    from gpt.training.start import config_to_save  # it imports torch

    identities = []
    for side in pair.sides:
        config = config_to_save(side.config, side.dataset, kernels=None)
        identities.append(identity(config))
    for path in differing(identities):
        baseline, contender = (settings.get(path) for settings in identities)
        yield path, baseline, contender
