"""Weights that are evaluated: a consolidated file, or the checkpoints of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.architecture.architecture import Model
from gpt.checkpoint import folders
from gpt.checkpoint.checkpoint import Checkpoint
from gpt.checkpoint.code_files import require_trust
from gpt.checkpoint.manifest import MANIFEST
from gpt.checkpoint.weights import load_checkpoint, load_model, require_our_layout
from gpt.config.code import code_of
from gpt.config.saved import CONFIG, model_config, read_config
from gpt.config.shape import ModelConfig
from gpt.data.manifests import TOKENIZER
from gpt.errors import UserError

Notify = Callable[[str], object]  # gets sentences of which the user should know
# parts of the code that a model computes with
COMPUTING = ("model", "kernels")


@dataclass(frozen=True)
class Source:
    """Weights to evaluate, and what stands beside them."""

    name: str  # what results call them
    config: dict[str, Any]
    config_file: Path  # where `config` was read
    tokenizer: Path
    step: int | None
    checkpoint: Checkpoint | None  # their folder; None where no manifest vouches for it
    load: Callable[[], Model]

    @property
    def shape(self) -> ModelConfig:
        """The model's. Raises UserError where config.yaml does not tell it."""
        return model_config(self.config, self.config_file)

    @property
    def trained_on(self) -> dict[str, Any]:
        """What config.yaml says of the dataset, nothing if the model is from elsewhere."""
        block = self.config.get("dataset")
        return block if isinstance(block, dict) else {}


def of_file(
    weights: Path, config_file: str | None, notify: Notify, trusted: bool = False
) -> Source:
    """A model.safetensors. config_file: None for the one beside it. trusted: whether code that came
    with the weights may be run. Raises UserError where it may not and would have to be, and where
    the folder is not whole."""
    if not config_file:
        require_our_layout(weights.parent)
    config_path = Path(config_file or weights.with_name(CONFIG))
    config = read_config(config_path)
    checkpoint = None
    if weights.with_name(MANIFEST).is_file():
        checkpoint = Checkpoint.open(weights.parent).verify()
    require_trust(config, weights.parent, trusted)
    _notice_other_code(config, notify)
    return Source(
        name=str(weights),
        config=config,
        config_file=config_path,
        tokenizer=weights.with_name(TOKENIZER),
        step=checkpoint.step if checkpoint else config.get("step"),
        checkpoint=checkpoint,
        load=lambda: load_model(weights, config, config_path, trusted),
    )


def of_run(run: Path, notify: Notify, trusted: bool = False) -> list[Source]:
    """A run's checkpoints, oldest first; a damaged one is left out, with a notice. trusted: as of
    `of_file`. Raises UserError where none is whole."""
    folder = folders.of_run(run)
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoints", mend="give the folder of a run")
    sources = []
    for tag in folders.course(folder):
        try:
            checkpoint = Checkpoint.open(folder / tag).verify()
            sources.append(_of_checkpoint(checkpoint, notify, trusted))
        except UserError as error:
            notify(f"left out: {error}")
    if not sources:
        raise UserError(f"no checkpoint in {folder} is whole", mend="train first")
    for source in sources:
        require_trust(source.config, source.config_file.parent, trusted)
    _notice_other_code(sources[-1].config, notify)
    return sources


def _of_checkpoint(checkpoint: Checkpoint, notify: Notify, trusted: bool) -> Source:
    def load() -> Model:
        model, doubt = load_checkpoint(checkpoint, trusted)
        if doubt:
            notify(f"{checkpoint.path}: {doubt}")
        return model

    return Source(
        name=str(checkpoint.path),
        config=checkpoint.config,
        config_file=checkpoint.path / CONFIG,
        tokenizer=checkpoint.path / TOKENIZER,
        step=checkpoint.step,
        checkpoint=checkpoint,
        load=load,
    )


def _notice_other_code(config: Mapping[str, Any], notify: Notify) -> None:
    code = config.get("code")
    if not isinstance(code, dict) or not isinstance(code.get("parts"), dict):
        return
    parts = code["parts"]
    now = code_of()["parts"]
    changed = [part for part in COMPUTING if parts.get(part) not in (None, now[part])]
    if changed:
        notify(
            f"the model was trained by other code than is here ({', '.join(changed)}; commit"
            f" {code.get('commit')}): its figures here need not be those of its run"
        )
