"""The boundary to DeepSpeed: no other module imports it.

`connect()` joins the process group, `Engine` wraps a model, and nothing of DeepSpeed's own types
leaves this folder.
"""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # which torch reads when it is imported
if "PYTORCH_ALLOC_CONF" not in os.environ:
    # An evaluation's batches have other shapes than training's: segments that grow leave no holes.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
import torch.distributed

from gpt.architecture.architecture import Model
from gpt.checkpoint.zero_files import FullState, load_weights_only, why_not_written
from gpt.cluster.launch import Launch, launched
from gpt.cluster.roll_call import JOIN_SECONDS, Deadline, require_interfaces, roll_call
from gpt.cluster.watchdog import STARTING_SECONDS
from gpt.cluster.world import World, to_device
from gpt.compute.hardware import DTYPES, keep_freed_memory, share_cores
from gpt.compute.memory import is_offloaded
from gpt.config.run_config import Config
from gpt.engine import acceptance, cuda_graph, loss_scale, muon, read_back
from gpt.engine.acceptance import settings_of
from gpt.engine.device import prepare_gpu
from gpt.engine.gradients import find_by_norm, sum_in_fp32
from gpt.engine.layouts import shards_of
from gpt.engine.nonfinite import first_nonfinite
from gpt.engine.optimizer import initialize_arguments, mark_for_muon, tell_names
from gpt.engine.placement import keeping_buffers, place
from gpt.engine.read_back import keeping_settings, reading
from gpt.engine.schedule import Schedule, set_lr
from gpt.engine.step import StepResult, Steps
from gpt.errors import RunError, UserError
from gpt.model import GPT, Block
from gpt.optimizers.groups import groups_of, muon_matrices


def _only_errors(record: logging.LogRecord):
    return record.levelno >= logging.ERROR


# DeepSpeed speaks from its import on; connect(verbose=True) lets it.
logging.getLogger("DeepSpeed").addFilter(_only_errors)
warnings.filterwarnings("ignore", category=FutureWarning)

try:
    import deepspeed
except ValueError as refusal:
    if "DS_ACCELERATOR" not in os.environ:
        raise
    raise UserError(
        f"the environment's DS_ACCELERATOR is {os.environ['DS_ACCELERATOR']!r} ({refusal})",
        mend="unset it, and DeepSpeed takes the device that is there",
    ) from refusal
import deepspeed.ops
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime import compiler, lr_schedules
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

with muon.left_uncompiled(compiler):
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

LEAVE_SECONDS = 60.0
# As other versions of Python do it: 3.11.2 pickles a member of an enumeration as a call of getattr,
# which no checkpoint is read with.
ZeroStageEnum.__reduce_ex__ = lambda stage, protocol: (ZeroStageEnum, (stage.value,))
# types in DeepSpeed's optimizer files
_PICKLED = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)


def has_fp16() -> bool:
    """Whether this machine's accelerator computes in fp16."""
    return deepspeed.accelerator.get_accelerator().is_fp16_supported()


def local_device() -> torch.device:
    """The device that this rank computes on: the GPU that LOCAL_RANK names, or the CPU where
    DeepSpeed (or DS_ACCELERATOR) takes that."""
    name = deepspeed.accelerator.get_accelerator().device_name()
    if name == "cpu":
        return torch.device(name)
    return torch.device(name, int(os.environ["LOCAL_RANK"]))


def connect(
    verbose: bool = False,
    launch: Launch | None = None,
    facts: Mapping[str, str | None] | tuple = (),
    step_timeout: float = 0.0,
) -> World:
    """Join the process group that the launcher announced, once all ranks have come.

    launch: asked for where it is None. facts: {what: text} that must be the same on all ranks.
    step_timeout: seconds after which a watchdog ends the run. Raises UserError and RunError as
    gpt.cluster.roll_call does.
    """
    launch = launch or launched()
    if verbose:
        logging.getLogger("DeepSpeed").removeFilter(_only_errors)
        deepspeed.utils.set_log_level_from_string("info")
    accelerator = deepspeed.accelerator.get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    local_rank = int(os.environ["LOCAL_RANK"])
    if not on_cpu and local_rank >= accelerator.device_count():
        raise UserError(
            f"rank {launch.rank} has the local rank {local_rank} on {socket.gethostname()}, where"
            f" it sees {accelerator.device_count()} device(s)",
            mend="start at most so many ranks there (slots in the hostfile, --num_gpus,"
            " --ntasks-per-node), and let each see all devices",
        )
    if on_cpu:
        require_interfaces()
    meeting = roll_call(launch, dict(facts))
    hosts = meeting.hosts
    if on_cpu:
        # The first init_distributed on a CPU would compile an operator that only inference uses:
        # minutes, and a compiler.
        deepspeed.ops.__compatible_ops__ = {}
        share_cores(hosts.count(hosts[launch.rank]))
        keep_freed_memory()
    else:
        prepare_gpu(accelerator, local_rank)
    # The group's own limit names nobody, so the watchdog's comes first.
    timeout = timedelta(seconds=2 * max(step_timeout, STARTING_SECONDS))
    too_late = (
        f"all ranks have come, but rank {launch.rank} on {hosts[launch.rank]} could not connect to"
        f" all others within {JOIN_SECONDS:g} s: their hosts must reach each other on every port;"
        " tools/preflight.py looks into it"
    )
    with Deadline(JOIN_SECONDS, too_late):
        deepspeed.init_distributed(
            verbose=verbose, timeout=timeout, init_method=meeting.init_method
        )
    return World(launch.rank, launch.size, local_device(), hosts, meeting.board)


def disconnect() -> None:
    """Leave the process group of a run that is over: a rank that is gone, or that does not answer,
    is waited for no longer than LEAVE_SECONDS."""
    if torch.distributed.is_initialized():
        sentence = "the run is over; other ranks do not answer any more, so this one ends alone"
        with Deadline(LEAVE_SECONDS, sentence, code=0):
            torch.distributed.destroy_process_group()


def require_acceptable(config: Config) -> None:
    """Raise UserError where this machine or DeepSpeed refuse a configuration."""
    device = deepspeed.accelerator.get_accelerator().device_name()
    acceptance.require_machine(
        config, device, lambda: AsyncIOBuilder().is_compatible(verbose=False)
    )
    acceptance.require_deepspeed(config, DeepSpeedConfig, lr_schedules)


def _gather_by_block(model: torch.nn.Module) -> None:
    """Under ZeRO 3, have a whole block's weights gathered together, not those of each layer in it:
    a hook per layer costs the host more time than a small block's forward pass costs a GPU, and
    stands in a compiler's way.

    Of the GPT alone: of blocks that return something else than tensors, are called by keyword, or
    more than once, DeepSpeed would miss gradients in silence.
    """
    if isinstance(model, GPT):
        deepspeed.utils.set_z3_leaf_modules(model, [Block])


def _make_muon(groups: list[dict]) -> torch.optim.Optimizer:
    """DeepSpeed's Muon, and torch's AdamW for the groups without `use_muon`."""
    return MuonWithAuxAdam(groups, torch.optim.AdamW, {"fused": True})


class Engine:
    """A model under DeepSpeed: optimiser steps over global batches, norms, checkpoints.

    weights: (name, fp32 tensor) of every parameter of a model that is on torch's meta device, in
    their order. Each is brought to its place before the next is asked for, so that under ZeRO 3 no
    rank ever holds the whole model.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        world: World,
        weights: Iterable[tuple[str, torch.Tensor]] = (),
    ):
        require_acceptable(config)
        settings = settings_of(config)
        self._stage = config.zero_stage
        if is_offloaded(config.deepspeed["zero_optimization"], "offload_optimizer"):
            # Its Adam runs on the cores, whatever the model runs on.
            share_cores(world.hosts.count(world.hosts[world.rank]))
        # DeepSpeed is told of fp32 sums by other means then: gpt.engine.gradients
        sums_set_by_hand = config.precision == "bf16" and config.fp32_sums and self._stage == 1
        if sums_set_by_hand:
            del settings["data_types"]
        dtype = DTYPES[config.precision]
        groups = groups_of(model, config)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        is_muon = any(group.settings.get("use_muon") for group in groups)
        matrices = muon_matrices(model) if is_muon else {}
        place(model, weights, dtype, world.device, settings, deepspeed.zero.Init)
        if self._stage == 3:
            _gather_by_block(model)
        schedule = config.schedule
        parameters = dict(model.named_parameters())
        if is_muon:
            mark_for_muon(parameters, matrices)
        with keeping_buffers(model):
            self._ds, *_ = deepspeed.initialize(
                model=model,
                lr_scheduler=None if schedule is None else lambda inner: Schedule(inner, schedule),
                **initialize_arguments(config, settings, parameters, shapes, groups, _make_muon),
            )
        if sums_set_by_hand:
            sum_in_fp32(self._ds.optimizer)
        # a second zero_to_fp32.py, which loads pickles as code
        self._ds._copy_recovery_script = lambda folder: None
        self._files = self._ds.checkpoint_engine = _CarefulFiles(self._ds._config)
        self.world = world
        self.module = self._ds.module
        self._names = {parameter: name for name, parameter in self.module.named_parameters()}
        gradient_norms = {}
        if self._stage:
            find_by_norm(self._ds.optimizer, world)
            if is_muon:
                gradient_norms = muon.keep_gradient_norms(self._ds.optimizer, self._stage, world)
        else:
            tell_names(self._ds.optimizer, self._names)
        self._shards = shards_of(
            self._stage,
            self._ds,
            self._names,
            world,
            gradient_norms,
            config.optimizer_code is not None,
        )
        graphed = None
        # what a user should know of how the steps are made
        self.notices: list[str] = []
        if config.options.cuda_graph:
            shape = config.batch.micro_size, config.model.seq_len + 1
            graphed, hindrance = cuda_graph.capture(self._ds, self._names, shape, world)
            self.notices += [hindrance] if hindrance else []
        self._steps = Steps(self._ds, self._stage, self._shards, self._names, world, graphed)
        differences = read_back.differences(self._ds, config, groups)
        if differences:
            raise RunError(
                "DeepSpeed would run something else than the config says, so nothing was trained: "
                + "; ".join(differences)
            )

    @property
    def lr(self) -> float:
        """Learning rate of the next optimiser step, before a group's lr_scale."""
        schedule = self._ds.lr_scheduler
        return schedule.lr if isinstance(schedule, Schedule) else self._ds.get_lr()[0]

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless in fp16."""
        return loss_scale.current(self._ds)

    def step(
        self,
        batch: np.ndarray,
        want_norms: bool = False,
        accept: Callable[[float], bool] | None = None,
        mark: Callable[[str], None] = lambda part: None,
        watch: AbstractContextManager | None = None,
    ) -> StepResult:
        """One optimizer step on this rank's part of a global batch.

        batch: int64 (accumulation, micro batch, seq_len + 1). All ranks call it together, with the
        same wishes. accept: called on all ranks with the global batch's mean loss before the
        update, False leaves the update out. mark: called after every "forward", "backward" and
        "step" of a micro-batch. watch: entered around each forward.
        """
        return self._steps.take(batch, want_norms, accept, mark, watch)

    def first_nonfinite(self, batch: np.ndarray) -> str | None:
        """Where the first value that is not finite arises in a forward and backward pass on this
        rank's batch: in a module's output, or in the gradient that reaches it; None if all are
        finite. All ranks together.

        For a run that gives up: the gradients of these passes stay behind.
        """

        def run_passes() -> None:
            for micro_batch in to_device(batch, self.world.device):
                self._ds.backward(self._ds(micro_batch[:, :-1], micro_batch[:, 1:]))

        return first_nonfinite(self.module, run_passes)

    def probe(self, tokens: np.ndarray) -> float:
        """Loss of the present weights on tokens, int64 (rows, seq_len + 1); all ranks together on
        the same tokens."""
        rows = to_device(tokens, self.world.device)
        with torch.no_grad():
            return self.module(rows[:, :-1], rows[:, 1:]).item()

    def first_nonfinite_state(self) -> str | None:
        """What is not finite of this rank's weights, as the optimizer has them, and of its states:
        "exp_avg of blocks.0.mlp.c_fc.weight"; None if all is."""
        return self._shards.first_nonfinite()

    def save(self, folder: Path | str, tag: str, state: dict) -> str | None:
        """Write this rank's part of a checkpoint into folder/tag; `state` is plain values. All
        ranks together.

        Returns what went wrong on this rank, or None. Whatever it is, the other ranks are not left
        waiting.
        """
        self._files.failure = None
        self._ds.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
        return self._files.failure

    def load(self, folder: Path | str, tag: str) -> None:
        """Load the checkpoint folder/tag of the same world size and ZeRO stage. Settings stay the
        configuration's. Raises UserError where its files do not fit the engine, or each other."""
        with reading(Path(folder) / tag, self.world):
            with keeping_settings(self._ds):
                path, _ = self._ds.load_checkpoint(str(folder), tag=tag)
            assert path is not None, "DeepSpeed found nothing"
            misfit = self._shards.first_misfit()
            if misfit:
                raise ValueError(misfit)
        set_lr(self._ds)

    def adopt(self, full: FullState, scale: float) -> None:
        """Take over whole tensors of a run on other ranks or at another ZeRO stage, or weights
        alone, where moments and scheduler are empty. scale: of that run's loss. Raises UserError
        where they do not fit the engine."""
        with reading(full.source, self.world):
            self._shards.adopt(full)
            if self._ds.lr_scheduler is not None and full.scheduler is not None:
                self._ds.lr_scheduler.load_state_dict(full.scheduler)
        set_lr(self._ds)
        loss_scale.take_over(self._ds, scale)


class _CarefulFiles(TorchCheckpointEngine):
    """DeepSpeed's files: read without running code from their pickles; a write that fails is noted,
    not raised, so that DeepSpeed's own barriers still bring all ranks together."""

    failure = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._noting_failure(path, lambda: super(_CarefulFiles, self).makedirs(path, exist_ok))

    def save(self, state_dict: dict, path: str) -> None:
        self._noting_failure(path, lambda: super(_CarefulFiles, self).save(state_dict, path))

    def _noting_failure(self, path: str, work: Callable[[], None]):
        try:
            work()
        except Exception as error:
            self.failure = self.failure or why_not_written(error, path)

    def load(self, path: str, map_location: Any = None):
        return load_weights_only(path, _PICKLED, map_location)
