"""An engine's weights and states: found where they are no numbers, and refused where a checkpoint's
files do not fit them or each other."""

import math
import resource
import signal

import pytest
import tiny_engines
import torch
from tiny_engines import batch

from gpt.checkpoint.zero_files import load_weights_only
from gpt.engine.boundary import _PICKLED
from gpt.errors import UserError

OPTIMIZER = "*zero_pp_rank_0_mp_rank_00_optim_states.pt"
PARTITIONS = "single_partition_of_fp32_groups"


def trained(world, stage, precision="fp32"):
    engine, config = tiny_engines.make(world, stage, precision)
    engine.step(batch(config, world.rank))
    return engine


def place_of_nonfinite(engine, world, poison):
    """What the ranks find after `poison(parameter's weights or state, of the last rank)`."""
    shards = engine._shards
    if world.rank == world.size - 1:
        parameter, weight = list(shards._held(shards._weight).items())[-1]
        states = dict(shards._states(parameter, weight.numel()))
        with torch.no_grad():
            poison(weight, states)
    return world.gather(engine.first_nonfinite_state())


def poison_weight(weight, states):
    weight[0] = math.nan


def poison_state(weight, states):
    states["exp_avg_sq"][-1] = math.inf


@pytest.mark.parametrize("size, cases", [(1, [(0, "fp32")]), (2, [(1, "bf16"), (3, "bf16")])])
def test_what_is_no_number_is_found_on_the_rank_that_holds_it(size, cases, capfd):
    def work(world, waits):
        places = []
        for stage, precision in cases:
            engine = trained(world, stage, precision)
            assert world.gather(engine.first_nonfinite_state()) == [None] * world.size
            places.append(place_of_nonfinite(engine, world, poison_state)[-1])
            places.append(place_of_nonfinite(engine, world, poison_weight)[-1])
        return places

    places = tiny_engines.on_ranks(size, work, capfd)
    assert places[::2] == ["exp_avg_sq of head.weight"] * (len(places) // 2)
    assert places[1::2] == ["head.weight"] * (len(places) // 2)


def too_short(states):
    states[PARTITIONS] = [part[:-100].clone() for part in states[PARTITIONS]]


def missing(states):
    states[PARTITIONS] = []


def of_whole_numbers(states):
    states[PARTITIONS] = [part.long() for part in states[PARTITIONS]]


def others(states):
    states[PARTITIONS] = [part + 1e-3 for part in states[PARTITIONS]]


def moments_too_short(states):
    for state in states["base_optimizer_state"]["state"].values():
        state["exp_avg"] = state["exp_avg"][:-100].clone()


def no_moments(states):
    del states["base_optimizer_state"]


def no_scaler(states):
    states["loss_scaler"] = "none"


FORGED = {
    "too short": (too_short, "is not what the optimizer updates"),
    "missing": (missing, "is not what the optimizer updates"),
    "whole numbers": (of_whole_numbers, "is not what the optimizer updates"),
    "others": (others, "is not what the optimizer updates"),
    "moments": (moments_too_short, "has another size than the weights"),
    "no moments": (no_moments, "base_optimizer_state"),
    "no scaler": (no_scaler, "dynamic"),
}


def test_a_forged_checkpoint_is_refused(tmp_path, capfd):
    def work(world, waits):
        engine = trained(world, 1, "fp16")
        assert engine.save(tmp_path, "good", {"step": 1}) is None
        tiny_engines.make(world, 1, "fp16")[0].load(tmp_path, "good")
        sentences = {}
        for name, (forge, _) in FORGED.items():
            assert engine.save(tmp_path, name, {"step": 1}) is None
            file = next((tmp_path / name).glob(OPTIMIZER))
            content = load_weights_only(file, _PICKLED)
            forge(content["optimizer_state_dict"])
            torch.save(content, file)
            fresh, _ = tiny_engines.make(world, 1, "fp16")
            try:
                fresh.load(tmp_path, name)
                sentences[name] = "none"
            except UserError as error:
                sentences[name] = str(error)
        return sentences

    sentences = tiny_engines.on_ranks(1, work, capfd)
    for name, (_, words) in FORGED.items():
        assert sentences[name].startswith(
            f"{tmp_path / name} is not a whole checkpoint of such a run ("
        )
        assert words in sentences[name] and "\n" not in sentences[name], name


def test_a_file_that_cannot_grow_is_told_as_such(tmp_path, capfd):
    def work(world, waits):
        engine = trained(world, 1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        reason = engine.save(tmp_path, "global_step1", {"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return reason

    reason = tiny_engines.on_ranks(1, work, capfd)
    assert reason == (
        f"{tmp_path}/global_step1/mp_rank_00_model_states.pt: the disk is full, or a file may not"
        " grow so large (ulimit -f)"
    )
