"""A configuration under way: its values, where each comes from, and the mistakes so far."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gpt.config.batch import BatchPlan
from gpt.config.optimizer_keys import MUON
from gpt.config.options import OPTION_KEYS, Options
from gpt.config.own_code import OwnCode
from gpt.config.run_config import Config
from gpt.config.schedule import own_schedule
from gpt.config.shape import SHAPE_KEYS, ModelConfig
from gpt.errors import UserError
from gpt.escaping import in_one_line

# mistakes that a report tells
MOST_TOLD = 100
# the source of its values
COMMAND_LINE = "command line"


class Mistake(NamedTuple):
    """path: dotted path of the value that is wrong, or "" where the sentence says it all."""

    path: str
    sentence: str


def about(path: str, problem: str) -> Mistake:
    """A mistake whose sentence is the path and what is wrong with its value."""
    return Mistake(path, f"{path} {problem}" if path else problem)


class Draft:
    """A configuration under way: ask it for its values, add to its mistakes, and settle it.

    tree: a run's JSON, which is copied. name: of the run. world_size: number of ranks. file: what
    messages call the run's file. lines: {dotted path: line} in that file.
    """

    def __init__(
        self,
        tree: Any,
        name: str,
        world_size: int = 1,
        file: str | None = None,
        lines: dict[str, int] | None = None,
    ):
        self.tree = _without_nulls(tree)
        self.name = name
        self.world_size = world_size
        self.file = file or name
        self.sources = {path: f"{self.file}:{line}" for path, line in (lines or {}).items()}
        self.mistakes: list[Mistake] = []
        # what of the file's model and precision the command line changed
        self.reshaped: list[str] = []
        # what a user should know, though it is no mistake
        self.notices: list[str] = []
        # None: mistaken, or not yet known
        self.batch: BatchPlan | None = None
        # None: the GPT
        self.model_code: OwnCode | None = None
        # None: the block optimizer tells it
        self.optimizer_code: OwnCode | None = None

    def get(self, path: str) -> Any:
        """The value at a dotted path; None where it is absent, or part of a mistake."""
        for mistake in self.mistakes:
            if path == mistake.path or path.startswith(f"{mistake.path}."):
                return None
        value = self.tree
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def put(self, path: str, value: Any, source: str) -> None:
        """Set a value. Where one of the blocks above it is none, nothing is set: the check of the
        whole tree tells that."""
        block = self.tree
        *parents, last = path.split(".")
        for name in parents:
            block = block.setdefault(name, {}) if isinstance(block, dict) else None
        if isinstance(block, dict):
            self._forget_sources(path)
            block[last] = _without_nulls(value)
            self.sources[path] = source

    def remove(self, path: str) -> None:
        """Take out a value, or a block."""
        block = self.tree
        *parents, last = path.split(".")
        for name in parents:
            block = block.get(name) if isinstance(block, dict) else None
        if isinstance(block, dict):
            block.pop(last, None)
        self._forget_sources(path)

    def _forget_sources(self, path: str) -> None:
        """Those of the value at a dotted path, and of all that lies below it."""
        for where in list(self.sources):
            if where == path or where.startswith(f"{path}."):
                del self.sources[where]

    def lacks(self, path: str) -> bool:
        """Whether there is no value at a dotted path, not even a mistaken one."""
        known = self.mistaken()
        return self.get(path) is None and not any(block in known for block in _upwards(path))

    @property
    def model(self) -> ModelConfig | None:
        """The shape; None where it is mistaken, or lacks its vocabulary size."""
        shape = {name: self.get(f"gpt.{name}") for name in SHAPE_KEYS}
        return None if None in shape.values() else ModelConfig(**shape)

    def mistake(self, path: str, problem: str) -> None:
        """Note what is wrong with the value at a dotted path."""
        self.mistakes.append(about(path, problem))

    def add(self, sentences: Iterable[str]) -> None:
        """Note mistakes that were found elsewhere, such as those of the dataset."""
        self.mistakes += [Mistake("", sentence) for sentence in sentences]

    def mistaken(self) -> set[str]:
        """Paths of the values that are wrong."""
        return {mistake.path for mistake in self.mistakes}

    def refuse_mistakes(self) -> None:
        """Raise UserError with all mistakes so far in one report."""
        if self.mistakes:
            raise UserError(self._report())

    def settle(self) -> Config:
        """The frozen configuration. Raises UserError with all mistakes in one report."""
        # what is wrong with the dataset itself is told without a path
        if self.lacks("gpt.vocab_size") and "" not in self.mistaken():
            self.mistake(
                "gpt.vocab_size",
                f"is missing, and no dataset {self.get('gpt.data_root')} is there to take it from:"
                " give --vocab_size",
            )
        self.refuse_mistakes()
        model = self.model
        # None only where there are mistakes
        assert model is not None and self.batch is not None
        self._derive_what_deepspeed_needs(self.batch)
        deepspeed = dict(self.tree)
        gpt = deepspeed.pop("gpt")
        schedule = own_schedule(self.get("scheduler"))
        if schedule is not None:
            del deepspeed["scheduler"]
        return Config(
            name=self.name,
            options=Options(**{name: gpt[name] for name in OPTION_KEYS if name in gpt}),
            model=model,
            batch=self.batch,
            schedule=schedule,
            deepspeed=deepspeed,
            model_code=self.model_code,
            optimizer_code=self.optimizer_code,
            sources=self.sources,
            notices=tuple(self.notices),
        )

    def _derive_what_deepspeed_needs(self, batch: BatchPlan) -> None:
        params = self.tree.get("optimizer", {}).get("params", {})
        kind = self.get("optimizer.type")
        if kind not in ("Adam", "AdamW"):
            # what it does to stretches of parameters is known to be right
            setting = "gpt.optimizer_file" if kind is None else "optimizer.type"
            self.put("zero_allow_untested_optimizer", True, f"derived: from {setting}")
        if kind == MUON and self.get("zero_optimization.stage") == 3:
            # whose stage 3 needs every gradient on all ranks
            self.put("zero_optimization.reduce_scatter", False, "derived: from optimizer.type")
        # bf16 keeps 8 bits of a sum
        sums_bf16 = self.get("bf16.enabled") and batch.accumulation > 1
        if sums_bf16 and self.get("data_types.grad_accum_dtype") is None:
            self.put(
                "data_types.grad_accum_dtype",
                "fp32",
                "derived: from bf16 and gradient_accumulation_steps",
            )
        offloads = "offload_optimizer" in self.tree["zero_optimization"]
        if offloads and params.get("torch_adam"):
            source = "derived: from optimizer.params.torch_adam"
            self.put("zero_force_ds_cpu_optimizer", False, source)
        if params.get("torch_adam") is False:
            # torch's own keys, which DeepSpeed's Adams do not know
            params.pop("fused", None)
            params.pop("torch_adam")

    def _report(self) -> str:
        """All mistakes, each with the place where its value stands."""
        sentences = [self._located(mistake) for mistake in self.mistakes]
        if len(sentences) == 1:
            return sentences[0]
        shown = sentences[:MOST_TOLD]
        lines = [f"  {number}. {sentence}" for number, sentence in enumerate(shown, 1)]
        if len(sentences) > MOST_TOLD:
            lines.append(f"  and {len(sentences) - MOST_TOLD:,} more")
        return "\n".join([f"{self.file}: {len(sentences)} mistakes", *lines])

    def _located(self, mistake: Mistake) -> str:
        if not mistake.path:
            return mistake.sentence
        return in_one_line(f"{self._source(mistake.path)}: {mistake.sentence}")

    def _source(self, path: str) -> str:
        """Where the value at a dotted path comes from, or the innermost block around it."""
        if path.startswith("--"):
            return COMMAND_LINE
        for block in _upwards(path):
            if block in self.sources:
                return self.sources[block]
        # a block that an option by a path made
        inner = [source for where, source in self.sources.items() if where.startswith(f"{path}.")]
        return inner[0] if inner else self.file


def _upwards(path: str) -> Iterator[str]:
    """A dotted path, and those of the blocks around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _without_nulls(tree: Any) -> Any:
    """A copy in which what is null is absent."""
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return copy.deepcopy(tree)
