"""What a model costs: parameters, FLOPs of training, memory of its activations. Those of the GPT by
formula, without torch; those of a model file measured on the module that it builds."""

from dataclasses import dataclass
from typing import Protocol

from gpt.config.run_config import Config
from gpt.config.shape import ModelConfig


class Costs(Protocol):
    """Of one model in one shape."""

    @property
    def shape(self) -> ModelConfig: ...

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""

    @property
    def blocks(self) -> int:
        """Number of blocks, whose weights ZeRO 3 fetches one after the other."""

    @property
    def block_parameters(self) -> int:
        """Number of trained parameters of the largest block."""

    @property
    def flops_per_token(self) -> int:
        """FLOPs of one token's forward and backward matrix products, as
        ModelConfig.matmul_flops_per_token counts them."""

    @property
    def flops_counted(self) -> int | None:
        """The same as it was counted; None where the model's own word is all there is."""

    @property
    def notices(self) -> list[str]:
        """Why the FLOPs may not tell what it costs, a sentence each."""

    @property
    def output_width(self) -> int | None:
        """Of the hidden states that the output layer takes; None where the model makes logits by
        itself."""

    @property
    def is_capped(self) -> bool:
        """Whether there is a logit cap."""

    def activations(self, micro_size: int, precision: str, checkpointing: bool) -> int | None:
        """Bytes that a micro-batch keeps for the backward pass.

        precision: fp32, fp16 or bf16. checkpointing: of a block its input alone is kept, but of the
        one under way. None where they are not known here, or where there are no blocks.
        """


@dataclass(frozen=True)
class GPTCosts:
    """The GPT's, by formula."""

    shape: ModelConfig
    is_capped = False

    @property
    def parameters(self) -> int:
        return self.shape.parameters()

    @property
    def blocks(self) -> int:
        return self.shape.n_layers

    @property
    def block_parameters(self) -> int:
        return self.shape.block_parameters()

    @property
    def flops_per_token(self) -> int:
        return self.shape.matmul_flops_per_token()

    @property
    def flops_counted(self) -> int | None:
        return self.flops_per_token

    @property
    def notices(self) -> list[str]:
        return []

    @property
    def output_width(self) -> int | None:
        return self.shape.h_dim

    def activations(self, micro_size: int, precision: str, checkpointing: bool) -> int:
        """Of a block: inputs and outputs of both LayerNorms; q, k, v and attention's output; the
        MLP's hidden layer before and after GELU; in fp32 the LayerNorms' statistics and attention's
        log-sum-exp."""
        shape = self.shape
        width = bytes_of(precision)
        attention = shape.n_heads * shape.head_dim
        elements = 4 * shape.h_dim + 4 * attention + 2 * shape.mlp_dim
        block = elements * width + 4 * (4 + shape.n_heads)
        block_input = shape.h_dim * width
        if checkpointing:
            blocks = shape.n_layers * block_input + block
        else:
            blocks = shape.n_layers * block
        # input and statistics of the last LayerNorm, gradient of the hidden states
        final = 2 * shape.h_dim * width + 8
        return micro_size * shape.seq_len * (blocks + final)


def bytes_of(precision: str) -> int:
    """Of a number in fp32, fp16 or bf16."""
    return 4 if precision == "fp32" else 2


def costs_of(config: Config) -> Costs:
    """What the model of a run costs. Raises UserError where a model file does not work."""
    if config.model_code is None:
        return GPTCosts(config.model)
    # which loads torch
    from gpt.compute.own_costs import own_costs_of

    return own_costs_of(config)
