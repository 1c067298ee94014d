"""The optimizer of a run, handed over to DeepSpeed.

Part of the boundary that gpt/engine/boundary.py is: what it needs of DeepSpeed is passed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from gpt.config.optimizer_keys import LION, LR_SCALE, MUON
from gpt.config.run_config import Config
from gpt.optimizers.groups import Group
from gpt.optimizers.lion import Lion
from gpt.optimizers.own import Shapes, build_for_zero, build_optimizer

# torch.nn.Parameter, which ZeRO 3 has cut up
Parameters = Mapping[str, Any]
# keys of optimizer.params that are ours, and make groups
OWN_KEYS = ("decay_matrices_only", "adam_lr_scale")
# of Muon's group, and of those of its AdamW
OF_MUON = ("lr", "momentum", "weight_decay", "ns_method")
OF_ADAM = ("lr", "betas", "eps", "weight_decay")


def initialize_arguments(
    config: Config,
    settings: dict[str, Any],
    parameters: Parameters,
    shapes: Shapes,
    groups: list[Group],
    make_muon: Callable[[list[dict]], torch.optim.Optimizer],
) -> dict[str, Any]:
    """Arguments of deepspeed.initialize: the configuration and the model's parameters, and the
    optimizer where DeepSpeed would not make that by itself.

    settings: DeepSpeed's configuration. shapes: of the parameters while they are whole. groups: of
    gpt.optimizers.groups. make_muon: from groups to DeepSpeed's Muon.
    """
    code = config.optimizer_code
    if code is not None:
        options = config.options.optimizer_options or {}
        if config.zero_stage:
            optimizer = build_for_zero(code, options, shapes, parameters)
        else:
            optimizer = build_optimizer(code, options, parameters.items())
        return {"config": settings, "optimizer": optimizer}
    block = settings["optimizer"]
    params = {name: value for name, value in block["params"].items() if name not in OWN_KEYS}
    split = [
        {**group.settings, "params": [parameters[name] for name in group.names]} for group in groups
    ]
    if block["type"] not in (MUON, LION):
        block = {**block, "params": params}
        is_one = len(split) == 1
        optimizer_groups = split[0]["params"] if is_one else split
        return {"config": {**settings, "optimizer": block}, "model_parameters": optimizer_groups}
    others = {name: value for name, value in settings.items() if name != "optimizer"}
    if block["type"] == LION:
        return {"config": others, "optimizer": Lion(split, **params)}
    return {"config": others, "optimizer": make_muon([_of_muon(group, params) for group in split])}


def _of_muon(group: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """A group as DeepSpeed's Muon takes it, each with all its settings."""
    keys = OF_MUON if group["use_muon"] else OF_ADAM
    settings = {key: params[key] for key in keys if key in params}
    if "lr" in settings:
        settings["lr"] *= group.get(LR_SCALE, 1.0)
    return {**settings, **group}


def mark_for_muon(parameters: Parameters, matrices: Mapping[str, int]) -> None:
    """Tell DeepSpeed's ZeRO which parameters Muon updates, and how many matrices lie in each.

    matrices: of gpt.optimizers.groups.
    """
    for name, parameter in parameters.items():
        parameter.use_muon = name in matrices
        count = matrices.get(name, 1)
        parameter.muon_num_heads = count if count > 1 else None


def tell_names(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> None:
    """Have an optimizer of several groups keep the names of its parameters in its checkpoints,
    where they bear only numbers. names: {parameter: name}."""
    if len(optimizer.param_groups) > 1:
        for group in optimizer.param_groups:
            group["param_names"] = [names[parameter] for parameter in group["params"]]


@contextmanager
def without_steps(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimizer's `step` does nothing: one of a user's own may decay weights, or count,
    without gradients too."""
    own = vars(optimizer)
    step = own.get("step")
    own["step"] = lambda *_, **__: None
    try:
        yield
    finally:
        del own["step"]
        if step is not None:
            own["step"] = step
