"""How long the host of a GPU needs to launch one micro-batch, on paper. Imports no torch.

Every kernel of a forward and backward pass is launched by the host: Python, autograd, torch's
dispatcher, CUDA. That takes as long for a small micro-batch as for a large one, so below some size
a GPU waits for its host. Launches are counted; the seconds of each are assumed, within a factor of
RANGE to either side, and were measured on no GPU.

Not counted: the update, evaluation, data. Under torch.compile there are fewer launches, and how
many is not known here; nor is it of a model file.
"""

from dataclasses import dataclass

from gpt.config.run_config import Config
from gpt.config.shape import ModelConfig

LAUNCH_SECONDS = 10e-6  # of an operation of torch, with its share of Python and autograd
CUSTOM_SECONDS = 75e-6  # of an operation of gpt/kernels, which goes through Python twice
GATHER_SECONDS = 100e-6  # ZeRO 3: to fetch and release a parameter tensor, both ways
RANGE = 1.5

# Launches of one micro-batch: of a block, and of embeddings, last LayerNorm and head (its ends).
BLOCK = 21
ENDS = 24
# Of a block under activation checkpointing: its forward pass again, and three sums outside of it.
BLOCK_AGAIN = 11
# of them gpt/kernels': two LayerNorms and a GELU, both ways, and the gradients of heads; at the
# ends a LayerNorm both ways, cross-entropy, and the embedding, whose gradients are two
CUSTOM_BLOCK = 7
CUSTOM_ENDS = 6
CUSTOM_FORWARD = 3
# parameter tensors
TENSORS_BLOCK = 12
TENSORS_ENDS = 5
# per gradient tensor, ZeRO 0 to 3: to add it up, to copy it into buckets
PER_TENSOR = (1, 1, 3, 2)


@dataclass(frozen=True)
class Launches:
    """What a host does for one micro-batch."""

    torch: int  # operations of torch
    custom: int  # operations of gpt/kernels
    gathered: int = 0  # parameter tensors that ZeRO 3 fetches and releases

    @property
    def seconds(self) -> float:
        launching = LAUNCH_SECONDS * self.torch + CUSTOM_SECONDS * self.custom
        return launching + GATHER_SECONDS * self.gathered


def launches(model: ModelConfig, stage: int, checkpointing: bool) -> Launches:
    """Of one micro-batch, forward and backward. checkpointing: the blocks compute forward twice."""
    layers = model.n_layers
    tensors = TENSORS_BLOCK * layers + TENSORS_ENDS
    total = BLOCK * layers + ENDS
    custom = CUSTOM_BLOCK * layers + CUSTOM_ENDS
    if checkpointing:
        total += BLOCK_AGAIN * layers
        custom += CUSTOM_FORWARD * layers
    total += PER_TENSOR[stage] * tensors
    return Launches(total - custom, custom, tensors if stage == 3 else 0)


def launching(config: Config, stage: int) -> float | None:
    """Seconds that the host needs to launch a micro-batch; None where that is not known."""
    if config.options.compile != "none" or config.model_code is not None:
        return None
    return launches(config.model, stage, config.options.activation_checkpointing).seconds
