"""A checkpoint on the disk, opened once."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gpt.checkpoint.manifest import MANIFEST, Manifest
from gpt.config.saved import CONFIG, model_config, read_config
from gpt.config.shape import ModelConfig
from gpt.errors import UserError, in_brief
from gpt.files import hash_file


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint of a run, or a folder of consolidated weights."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Raises UserError where there is no manifest, or none that can be read."""
        return cls(Path(path), Manifest.read(path))

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def tag(self) -> str:
        return self.path.name

    @cached_property
    def config(self) -> dict:
        """Its config.yaml. Raises UserError where that cannot be read."""
        return read_config(self.path / CONFIG)

    @cached_property
    def shape(self) -> ModelConfig:
        """The model's. Raises UserError where config.yaml does not tell it."""
        return model_config(self.config, self.path / CONFIG)

    def verify(self) -> "Checkpoint":
        """Raise UserError, with the first that is not, unless every file is as it was written; also
        where its weights were no numbers any more when it was written."""
        mend = "use another checkpoint"
        if self.manifest.made_from is not None:
            mend = (
                "make the folder again, or the mean of checkpoints with `tools/zero_to_fp32.py"
                f" --average`; eval.py takes weights of your own from a folder without {MANIFEST},"
                f" beside copies of {CONFIG} and tokenizer.model"
            )
        if not math.isfinite(self.manifest.probe.loss):
            raise UserError(
                f"{self.path} holds weights of a run that had diverged: their loss was"
                f" {self.manifest.probe.loss} when they were saved",
                mend="use an earlier checkpoint",
            )
        for name, facts in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise UserError(f"{path} is missing", mend=mend)
            try:
                whole = path.stat().st_size == facts["size"] and hash_file(path) == facts
            except OSError as error:
                raise UserError(in_brief(error, path), mend=mend) from error
            if not whole:
                raise UserError(
                    f"{path} is not as it was written (its size or sha256 differs)",
                    mend=mend,
                )
        return self

    def require_facts(self) -> None:
        """Raise UserError where the manifest lacks what a run needs in order to go on."""
        if self.manifest.lacks is not None:
            raise UserError(
                f"{self.path / MANIFEST} does not tell {self.manifest.lacks}",
                mend="another version of the trainer wrote it; go on with that one, or start afresh"
                " in another --run_dir",
            )
