"""The top level of a run's JSON: every key with its type, range and meaning.

DeepSpeed accepts unknown top-level keys and misspelt optimizer parameters in silence; here they are
mistakes.
"""

from typing import Any

from gpt.config.keys import REQUIRED, Key
from gpt.config.observer_keys import OBSERVER_KEYS
from gpt.config.optimizer_keys import OPTIMIZERS, OWN_SCHEDULERS, SCHEDULERS
from gpt.config.options import GPT_KEYS
from gpt.config.zero_keys import BF16_KEYS, FP16_KEYS, ZERO_KEYS

TOP_KEYS: dict[str, Any] = {
    "gpt": GPT_KEYS,
    "train_batch_size": Key(
        int, doc="sequences per optimiser step, over all GPUs", minimum=1, maximum=10**7
    ),
    "train_micro_batch_size_per_gpu": Key(
        int,
        doc=(
            "sequences per forward pass of a GPU, at most: the largest divisor of its share "
            "of the batch is taken; beside gradient_accumulation_steps exactly so many"
        ),
        minimum=1,
        maximum=10**7,
    ),
    "gradient_accumulation_steps": Key(
        int,
        doc="forward passes per optimiser step and GPU, exactly; solved where absent",
        minimum=1,
        maximum=10**7,
    ),
    "gradient_clipping": Key(
        float, 0.0, "largest norm of the whole gradient; 0: no clipping", minimum=0
    ),
    "fp16": FP16_KEYS,
    "bf16": BF16_KEYS,
    "zero_optimization": ZERO_KEYS,
    "optimizer": {
        "type": Key(
            str,
            REQUIRED,
            "Adam is AdamW unless adam_w_mode is false; Muon: for the blocks' matrices, AdamW for "
            "the rest; without this block: Adam",
            choices=tuple(OPTIMIZERS),
            when_missing="",
        ),
        "params": OPTIMIZERS,
    },
    "scheduler": {
        "type": Key(
            str,
            REQUIRED,
            f"learning rate by step; {' and '.join(OWN_SCHEDULERS)} are the trainer's own, the "
            "rest DeepSpeed's",
            choices=tuple(SCHEDULERS),
            when_missing="",
        ),
        "params": SCHEDULERS,
    },
    "prescale_gradients": Key(
        bool,
        doc=(
            "divide gradients by the number of ranks before they are summed, not after; default "
            "false. Unless reduce_scatter is false, stage 1 ignores it, 2 and 3 refuse it"
        ),
    ),
    "gradient_predivide_factor": Key(
        float,
        doc=(
            "divisor of gradients before their sum over ranks, the rest of the division comes "
            "after; default 1.0. Stages 1 to 3 treat it as they do prescale_gradients"
        ),
        above=0,
    ),
    "communication_data_type": Key(
        str,
        doc="type in which gradients are summed over ranks; default: the run's precision",
        choices=("fp16", "bf16", "fp32"),
    ),
    "zero_allow_untested_optimizer": Key(
        bool,
        doc="let ZeRO take an optimizer that DeepSpeed does not list; default: true where the "
        "trainer knows it to be right",
    ),
    "zero_force_ds_cpu_optimizer": Key(
        bool, doc="no effect: of optimizers that a program hands over, as none does here"
    ),
    "wall_clock_breakdown": Key(
        bool,
        doc=(
            "print the milliseconds of forward, backward, reduction and step for every "
            "micro-batch, waiting for the GPU; default false"
        ),
    ),
    "memory_breakdown": Key(
        bool,
        doc=(
            "print the GPU's and the host's memory around every pass and step, on rank 0, and "
            "set torch's peak back; default false"
        ),
    ),
    "dump_state": Key(
        bool,
        doc="log the attributes of DeepSpeed's engine at the start, with --verbose; default false",
    ),
    "disable_allgather": Key(bool, doc="no effect: DeepSpeed reads it and never asks for it"),
    "disable_python_gc": Key(
        bool, doc="switch Python's collection of cyclic garbage off for the run, default false"
    ),
    **OBSERVER_KEYS,
    "data_types": {
        "grad_accum_dtype": Key(
            str,
            doc=(
                "what gradients of a step's micro-batches are summed in; where absent fp32 "
                "for bf16 with accumulation, else the run's precision"
            ),
            choices=("fp16", "bf16", "fp32"),
        )
    },
}
