"""Files of safetensors: written one tensor at a time, read tensor by tensor; and their mean."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gpt.checkpoint.manifest import WEIGHTS
from gpt.errors import UserError, in_brief
from gpt.reading import name_of_open, open_regular


def write_tensors(path: Path, weights: Mapping[str, torch.Tensor], metadata: dict) -> None:
    """Write fp32 tensors in the format of safetensors, one at a time: the header's length in 8
    bytes, a JSON header, the values. Raises OSError, as on a full disk, which the library tells as
    an error of its own."""
    header = {"__metadata__": metadata}
    end = 0
    for name, weight in weights.items():
        start = end
        end += 4 * weight.numel()
        shape = list(weight.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(weight.contiguous().numpy().data.cast("B"))


class WeightsFile(Mapping):
    """{name: tensor} of a safetensors file, each read when it is asked for. Raises UserError where
    it is none."""

    def __init__(self, path: Path | str):
        try:
            self._open_file = open_regular(path)
            # the library itself takes no name that is not UTF-8, and waits for a pipe's writer
            self._tensors = safe_open(name_of_open(self._open_file.fileno()), framework="pt")
        except FileNotFoundError as error:
            raise UserError(
                f"{path} does not exist",
                mend="consolidate a checkpoint with `python tools/zero_to_fp32.py CHECKPOINT_DIR"
                " OUTPUT_DIR`",
            ) from error
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is not a safetensors file ({in_brief(error)})",
                mend=f"give the {WEIGHTS} that tools/zero_to_fp32.py wrote; files with pickles are"
                " never loaded",
            ) from error
        self._names = dict.fromkeys(self._tensors.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Mean(Mapping):
    """{name: fp32 tensor}, the mean of equally named tensors, summed in float64 when it is asked
    for."""

    def __init__(self, weights: Sequence[Mapping[str, torch.Tensor]]):
        self._weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        total = self._weights[0][name].double()
        for other in self._weights[1:]:
            total = total + other[name]
        return (total / len(self._weights)).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights[0])

    def __len__(self) -> int:
        return len(self._weights[0])
