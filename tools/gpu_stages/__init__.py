"""The stages of tools/gpu_check.py: their names, how long they may take, and what they decide.

A stage is a function of a Lab in a module of this folder, run in a process of its own. Imports no
torch.
"""

from typing import NamedTuple

EVERY = ("fp32", "bf16", "fp16")
HALF = ("bf16", "fp16")
ONE = ("",)
BACKENDS = (
    "flash",
    "cudnn",
    "efficient",
    "math",
)  # of attention, as gpt.kernels.attention.backend names them


class Stage(NamedTuple):
    name: str
    function: str  # MODULE.FUNCTION below this folder
    limit: int  # seconds that it may take on a GPU
    checks: dict = {}  # {what it finds right or wrong: the precisions it tries, or ONE}
    timed: bool = True  # it takes times, so nothing else may run beside it
    warms_up: bool = (
        False  # it compiles beside the others first, and takes its times when they have ended
    )


KERNELS = (
    "add + LayerNorm",
    "add + bias + LayerNorm",
    "LayerNorm",
    "GELU with bias",
    "heads",
    "embedding",
    "misaligned rows",
    "cross-entropy",
    "ranks of targets",
    "head, loss scale 1",
    "head, loss scale 65536",
    "head in several chunks",
    "attention as chosen",
    *(f"attention: {backend}" for backend in BACKENDS),
)

STAGES = [
    *(
        Stage(
            f"kernels-{precision}",
            f"kernels.{precision}",
            120,
            dict.fromkeys(KERNELS, (precision,)),
            timed=False,
        )
        for precision in ("bf16", "fp16", "fp32")
    ),
    Stage(
        "whole-models",
        "whole_models.models",
        60,
        {
            "model of four layers": HALF,
            "small at its real shape": HALF,
            "medium at its real shape": HALF,
        },
        timed=False,
    ),
    Stage("training", "training.curves", 110, {"a training that learns": EVERY}, timed=False),
    Stage("sanitizer", "sanitizer.memory", 110, {"memory accesses": ONE}, timed=False),
    Stage("facts", "facts.facts", 45, {"kernels that auto takes": ONE, "attention is fused": HALF}),
    Stage("models", "models.whole_steps", 300, {"models in turn": ONE}, warms_up=True),
    Stage("engine-bf16", "engines.small_bf16", 80, {"engine, small": ("bf16",)}),
    Stage("operations", "operations.single", 90),
    Stage("engine-fp16", "engines.small_fp16", 60, {"engine, small": ("fp16",)}),
    Stage(
        "ranks",
        "ranks.two",
        110,
        {"all-reduce": ONE, "two ranks learn as one does": ONE, "a killed rank is named": ONE},
    ),
    Stage("graph", "engines.graph", 60, {"steps by a CUDA graph": ONE}),
    Stage("sweep", "models.sweep", 70),
    Stage("engine-medium", "engines.medium_bf16", 70, {"engine, medium": ("bf16",)}),
]
