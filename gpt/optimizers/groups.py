"""Parameters in the groups that an optimizer treats alike: Muon's and AdamW's, with weight decay
and without."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from gpt.architecture.architecture import Model
from gpt.architecture.blocks import blocks_of
from gpt.config.optimizer_keys import MUON
from gpt.config.run_config import Config
from gpt.errors import UserError


class Group(NamedTuple):
    """Parameters that an optimizer treats alike."""

    names: tuple[str, ...]
    settings: dict[str, Any]  # in which they differ from optimizer.params


def groups_of(model: Model, config: Config) -> list[Group]:
    """The groups of a model's parameters, in the order that an optimizer gets them in; [] for an
    optimizer of the user's own, which makes its groups itself.

    model: with its parameters whole, on whatever device. Raises UserError where Muon finds no
    matrix in it.
    """
    optimizer = config.deepspeed.get("optimizer")
    if optimizer is None:
        return []
    sizes = dict(model.named_parameters())
    only_matrices = bool(optimizer["params"].get("decay_matrices_only"))
    if optimizer["type"] != MUON:
        return _by_decay(sizes, sizes, only_matrices, {})
    matrices = muon_matrices(model)
    if not matrices:
        raise UserError(
            f"optimizer.type is {MUON}, for the matrices of the model's blocks, and it has none:"
            " no nn.ModuleList with a parameter of two dimensions in it",
            mend="keep the blocks in one, or use another optimizer",
        )
    rest = [name for name in sizes if name not in matrices]
    adam = {"use_muon": False, "lr_scale": optimizer["params"]["adam_lr_scale"]}
    return [
        Group(tuple(matrices), {"use_muon": True}),
        *_by_decay(rest, sizes, only_matrices, adam),
    ]


def _by_decay(
    names: Iterable[str],
    parameters: dict[str, nn.Parameter],
    only_matrices: bool,
    settings: dict[str, Any],
) -> list[Group]:
    """One group, or those with and without weight decay."""
    if not only_matrices:
        return [Group(tuple(names), settings)]
    decayed = tuple(name for name in names if parameters[name].dim() >= 2)
    others = tuple(name for name in names if parameters[name].dim() < 2)
    groups = [Group(decayed, settings), Group(others, {**settings, "weight_decay": 0.0})]
    return [group for group in groups if group.names]


def muon_matrices(model: Model) -> dict[str, int]:
    """{name: number of matrices that lie one under the other in it} of the parameters that Muon
    updates: those of two dimensions in the blocks, but for embeddings and the output layer, tied
    or not."""
    left_out = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    if model.head is not None:
        left_out.add(model.head.weight)
    of_blocks = {parameter for block in blocks_of(model) for parameter in block.parameters()}
    fused = model.fused_matrices
    matrices = {}
    for name, parameter in model.named_parameters():
        # of a module that makes logits itself, only the shape tells the output layer
        may_be_output = model.head is None and parameter.shape[0] == model.config.vocab_size
        is_matrix = parameter.dim() == 2 and parameter in of_blocks
        if is_matrix and parameter not in left_out and not may_be_output:
            matrices[name] = fused.get(name, 1)
    return matrices
