"""Keys of the blocks "scheduler" and "optimizer": their types, and the parameters of each."""

from gpt.config.keys import PAIR, REQUIRED, Key

# the trainer's own schedules; all other schedulers are DeepSpeed's
COSINE = "LanguiniCosineLR"
COOLDOWN = "LinearCooldownLR"
OWN_SCHEDULERS = (COSINE, COOLDOWN)
# DeepSpeed's defaults: of warmup_num_steps, of cycle_first_step_size
WARMUP_STEPS = 1000
CYCLE_STEPS = 2000

_COSINE = {
    "max_lr": Key(
        float,
        6e-4,
        "where the cosine starts; warm-up multiplies the cosine already under way",
        above=0,
    ),
    "min_lr": Key(float, 6e-6, "learning rate from decay_steps on", minimum=0),
    "warmup_steps": Key(int, 200, "steps of linear warm-up", minimum=0),
    "decay_steps": Key(int, REQUIRED, "steps until the cosine reaches min_lr", minimum=1),
}
_COOLDOWN = {
    "max_lr": Key(float, 6e-4, "where warm-up ends, and the rate until the cooldown", above=0),
    "min_lr": Key(float, 6e-6, "learning rate at the end of the cooldown", minimum=0),
    "warmup_steps": Key(int, 200, "steps of linear warm-up", minimum=0),
    "decay_steps": Key(int, REQUIRED, "steps until the cooldown reaches min_lr", minimum=1),
    "cooldown_share": Key(
        float,
        0.2,
        "part of decay_steps, its last, in which the rate falls in a straight line to min_lr; 0: "
        "it stays",
        minimum=0,
        maximum=1,
    ),
}
_WARMUP = {
    "warmup_num_steps": Key(
        int, doc=f"steps of warm-up, default {WARMUP_STEPS}; 1 counts as 2", minimum=1
    ),
    "warmup_type": Key(
        str,
        doc="how the rate rises: log (default), with the logarithm of the step; linear, with it",
        choices=("log", "linear"),
    ),
}
_WARMUP_LR = {
    **_WARMUP,
    "warmup_min_lr": Key(float, doc="rate at which warm-up begins, default 0", minimum=0),
    "warmup_max_lr": Key(
        float,
        doc=(
            "rate at which warm-up ends; default: optimizer.params.lr. Of WarmupDecayLR it must be "
            "given"
        ),
        above=0,
    ),
}

# type -> parameters; all but the first two are DeepSpeed's own
SCHEDULERS = {
    COSINE: _COSINE,
    COOLDOWN: _COOLDOWN,
    "WarmupLR": _WARMUP_LR,
    "WarmupDecayLR": {
        **_WARMUP_LR,
        "total_num_steps": Key(
            int,
            REQUIRED,
            "steps until the rate, falling in a straight line after warm-up, is 0",
            minimum=1,
            when_missing="",
        ),
    },
    "WarmupCosineLR": {
        **_WARMUP,
        "total_num_steps": Key(
            int,
            REQUIRED,
            "steps until the cosine that follows warm-up reaches cos_min_ratio",
            minimum=1,
            when_missing="",
        ),
        "warmup_min_ratio": Key(
            float,
            doc="rate at which warm-up begins, as a share of optimizer.params.lr, default 0",
            minimum=0,
            maximum=1,
        ),
        "cos_min_ratio": Key(
            float,
            doc="rate at the end and ever after, as a share of optimizer.params.lr, default 0.0001",
            minimum=0,
            maximum=1,
        ),
    },
    "OneCycle": {
        "cycle_min_lr": Key(
            float,
            REQUIRED,
            "rate at both ends of the cycle, and where decay begins",
            minimum=0,
            when_missing="",
        ),
        "cycle_max_lr": Key(float, REQUIRED, "rate at the cycle's peak", above=0, when_missing=""),
        "decay_lr_rate": Key(
            float,
            doc=(
                "r in cycle_min_lr / (1 + r n / decay_step_size), the rate n steps after the "
                "cycle; default 0: no decay"
            ),
            minimum=0,
        ),
        "cycle_first_step_size": Key(
            int, doc=f"steps of the rise, default {CYCLE_STEPS}", minimum=1
        ),
        "cycle_second_step_size": Key(
            int, doc="steps of the fall; default: as many as of the rise", minimum=0
        ),
        "cycle_first_stair_count": Key(
            int, doc="stairs of equal height in the rise; default 0: smooth", minimum=0
        ),
        "cycle_second_stair_count": Key(
            int, doc="stairs in the fall, 0: smooth; default: as many as in the rise", minimum=0
        ),
        "decay_step_size": Key(int, doc="steps, see decay_lr_rate; default 0: no decay", minimum=0),
        "cycle_momentum": Key(
            bool, doc="must be false: DeepSpeed's default, true, replaces the optimizer's betas"
        ),
        "cycle_min_mom": Key(float, doc="no effect without cycle_momentum", minimum=0, maximum=1),
        "cycle_max_mom": Key(float, doc="no effect without cycle_momentum", minimum=0, maximum=1),
        "decay_mom_rate": Key(float, doc="no effect without cycle_momentum", minimum=0),
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": Key(float, doc="rate at the start, default 0.001", above=0),
        "lr_range_test_step_size": Key(
            int,
            doc="steps of a growth by step_rate times min_lr, default 2000",
            minimum=1,
        ),
        "lr_range_test_step_rate": Key(
            float, doc="growth per step_size, in units of min_lr, default 1.0", minimum=0
        ),
        "lr_range_test_staircase": Key(
            bool, doc="grow once every step_size steps; default false: a little at every step"
        ),
    },
}

_LEARNING_RATE = {
    "lr": Key(
        float, doc=f"learning rate; not with {' or '.join(OWN_SCHEDULERS)}, which own it", above=0
    )
}
_DECAY_MATRICES_ONLY = {
    "decay_matrices_only": Key(
        bool,
        doc=(
            "weight decay on parameters of two and more dimensions alone, not on biases and the "
            "weights of norms; default false"
        ),
    )
}
_ADAM = {
    **_LEARNING_RATE,
    **_DECAY_MATRICES_ONLY,
    "betas": Key(PAIR, [0.9, 0.95], "decay of the first and second moment"),
    "eps": Key(float, 1e-8, "added to the root of the second moment", minimum=1e-38),
    "weight_decay": Key(float, 0.0, "decoupled weight decay", minimum=0),
    "torch_adam": Key(
        bool, True, "torch's fused Adam; false: DeepSpeed's, which is compiled on first use"
    ),
    "adam_w_mode": Key(
        bool,
        doc=(
            "decoupled weight decay (DeepSpeed's default, for Adam too); false: of Adam, the "
            "decay is added to the gradient. AdamW ignores it"
        ),
    ),
    "amsgrad": Key(
        bool,
        doc=(
            "divide by the root of the largest second moment so far, default false; only with "
            "torch_adam, DeepSpeed's Adams cannot"
        ),
    ),
    "fused": Key(bool, True, "one kernel for all parameters, with torch_adam"),
}
_LION = {
    **_LEARNING_RATE,
    **_DECAY_MATRICES_ONLY,
    "betas": Key(
        PAIR, [0.9, 0.99], "share of the momentum in a step, and decay of the momentum itself"
    ),
    "weight_decay": Key(float, 0.0, "decoupled weight decay", minimum=0),
}
_MUON = {
    "lr": Key(
        float,
        doc="learning rate of the blocks' matrices; not with "
        f"{' or '.join(OWN_SCHEDULERS)}, which own it",
        above=0,
    ),
    **_DECAY_MATRICES_ONLY,
    "adam_lr_scale": Key(
        float,
        0.1,
        "all parameters but the blocks' matrices have so many times the learning rate, under AdamW",
        above=0,
    ),
    "momentum": Key(
        float, 0.95, "decay of the sum of past gradients, Nesterov's", minimum=0, maximum=1
    ),
    "betas": Key(PAIR, [0.9, 0.95], "of AdamW: decay of the first and second moment"),
    "eps": Key(float, 1e-8, "of AdamW: added to the root of the second moment", minimum=1e-38),
    "weight_decay": Key(float, 0.0, "decoupled weight decay, of Muon and AdamW", minimum=0),
    "ns_method": Key(
        str,
        "gram",
        "Newton-Schulz iteration: standard, in bf16; gram, the same on the smaller Gram matrix, "
        "in fp16, or in fp32 where the device has no fp16",
        choices=("gram", "standard"),
    ),
}
MUON = "Muon"
LION = "Lion"
# what a group of parameters has its learning rate multiplied by
LR_SCALE = "lr_scale"
# type -> parameters
OPTIMIZERS = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": {
        **_LEARNING_RATE,
        "momentum": Key(
            float, doc="decay of the sum of past gradients; default 0: none", minimum=0, maximum=1
        ),
        "dampening": Key(
            float,
            doc="share of a gradient that is kept out of that sum, default 0",
            minimum=0,
            maximum=1,
        ),
        "weight_decay": Key(
            float, doc="times the weights, added to the gradient, default 0", minimum=0
        ),
        "nesterov": Key(bool, doc="Nesterov's momentum, default false; needs momentum above 0"),
    },
    MUON: _MUON,
    LION: _LION,
}
