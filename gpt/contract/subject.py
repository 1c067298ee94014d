"""The model that is checked, with weights, and the tokens that it is checked on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from gpt.architecture.architecture import Architecture, set_parameter
from gpt.architecture.language_model import LanguageModel
from gpt.architecture.own_python import telling
from gpt.config.own_code import OwnCode
from gpt.errors import UserError

# added to every weight before a check: what is zero at the start hides nothing then
NOISE_OF_MATRICES = 0.02
NOISE_OF_VECTORS = 0.1


class Subject:
    """A model file's model in a shape. seed: that its weights are drawn with."""

    def __init__(self, architecture: Architecture, seed: int = 0):
        assert architecture.code is not None, "the GPT is no file"
        self.architecture = architecture
        self.code: OwnCode = architecture.code
        self.shape = architecture.shape
        self.seed = seed

    @cached_property
    def first_weights(self) -> dict[str, Tensor]:
        """{parameter name: fp32 tensor} of a run's start."""
        model = self.architecture.build()
        assert isinstance(model, LanguageModel)
        return dict(model.initial_weights(self.seed))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Those of the start with noise, as after some training."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        noisy = {}
        for name, values in self.first_weights.items():
            scale = NOISE_OF_MATRICES if values.dim() > 1 else NOISE_OF_VECTORS
            noisy[name] = values + scale * torch.randn(values.shape, generator=generator)
        return noisy

    def model(
        self, weights: Mapping[str, Tensor] | None = None, activation_checkpointing: bool = False
    ) -> LanguageModel:
        """A new model on the CPU in train mode. weights: None for the noisy ones."""
        model = self.architecture.build(activation_checkpointing=activation_checkpointing)
        assert isinstance(model, LanguageModel)
        for name, values in (weights or self.weights).items():
            set_parameter(model, name, nn.Parameter(values.clone()))
        return model

    def batch(self, rows: int, length: int, seed: int = 0) -> Tensor:
        """Random ids, int64 (rows, length + 1): tokens and targets as views of it, as in a run."""
        generator = torch.Generator().manual_seed(seed)
        size = (rows, length + 1)
        return torch.randint(self.shape.vocab_size, size, generator=generator)

    @cached_property
    def length(self) -> int:
        """Of the windows that most checks take, in tokens."""
        return min(self.shape.seq_len, 64)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, torch's random numbers are those of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield

    def outputs(self, model: LanguageModel, tokens: Tensor) -> Tensor:
        """What the module makes of tokens, without a graph."""
        with self.running(), torch.no_grad():
            return model.outputs(tokens)

    def loss(self, model: LanguageModel, batch: Tensor) -> Tensor:
        """Nats per token of a batch (B, T + 1), as training takes them, with a graph."""
        with self.running():
            loss = model(batch[:, :-1], batch[:, 1:])
        assert isinstance(loss, Tensor)
        return loss

    def backward(self, model: LanguageModel, batch: Tensor) -> Tensor:
        """The same loss without its graph; its gradients are added to the parameters'."""
        loss = self.loss(model, batch)
        with self.running(), telling(self.code, "its backward pass"):
            loss.backward()
        return loss.detach()

    def mistake(self, what: str, mend: str) -> UserError:
        """One about the model file."""
        return UserError(f"{self.code.path}: {what}", mend=mend)


Check = Callable[[Subject], str]  # raises UserError, or tells in a few words what it has seen


def own_name(parameter: str) -> str:
    """A parameter's name in the user's module."""
    return parameter.partition(".")[2]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN at the same places."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def difference(a: Tensor, b: Tensor) -> float:
    """Largest distance of two tensors' numbers, in units of the largest of them."""
    largest = max(a.abs().max().item(), b.abs().max().item())
    distance = (a.double() - b.double()).abs().max().item()
    return distance / largest if largest else distance
