"""Keys of DeepSpeed's own observers, and of its traffic with files."""

from gpt.config.keys import TEXTS, Key

_MONITOR = {
    "output_path": Key(str, "", "folder; empty: the current one"),
    "job_name": Key(str, doc="folder in that, default DeepSpeedJobName"),
}

OBSERVER_KEYS = {
    "flops_profiler": {
        "enabled": Key(
            bool,
            doc=(
                "count and time one step's operations by module, on rank 0; switches "
                "wall_clock_breakdown on. Default false"
            ),
        ),
        "profile_step": Key(
            int, doc="optimiser steps before the one that is counted, default 1", minimum=1
        ),
        "module_depth": Key(
            int,
            doc="levels of nested modules to sum up by, default -1: all of them",
            minimum=-1,
            maximum=4,
        ),
        "top_modules": Key(int, doc="modules named for each level, default 1", minimum=1),
        "detailed": Key(bool, doc="print the figures of every module too, default true"),
        "output_file": Key(str, doc="file for the figures; default: the terminal"),
        "recompute_fwd_factor": Key(
            float,
            doc=(
                "forward passes that the backward pass is taken to repeat, 1.0 with activation "
                "checkpointing; default 0.0"
            ),
            minimum=0,
        ),
    },
    "comms_logger": {
        "enabled": Key(
            bool,
            doc=(
                "time the calls between ranks, each of which then waits for the GPU; default false"
            ),
        ),
        "verbose": Key(
            bool,
            doc="log each call's time and size, the only output, with --verbose; default false",
        ),
        "prof_all": Key(bool, doc="time all calls, default true"),
        "prof_ops": Key(
            TEXTS, doc='calls to time without prof_all, such as ["all_reduce"], default none'
        ),
        "debug": Key(bool, doc="log the name of the calling function too, default false"),
    },
    "tensorboard": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to TensorBoard; default false"
        ),
        **_MONITOR,
    },
    "csv_monitor": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to CSV files; default false"
        ),
        **_MONITOR,
    },
    "wandb": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to a run of wandb; default false"
        ),
        "group": Key(str, doc="wandb's group of runs, default none"),
        "team": Key(str, doc="wandb's entity; default: the user's"),
        "project": Key(str, doc="wandb's project, default deepspeed"),
    },
    "comet": {
        "enabled": Key(
            bool, doc="learning rate and loss scale, by sequences, to Comet; default false"
        ),
        "samples_log_interval": Key(
            int, doc="sequences between two values, default 100", minimum=1
        ),
        "project": Key(str, doc="Comet's project; default: of Comet's own settings"),
        "workspace": Key(str, doc="Comet's workspace; default: of Comet's own settings"),
        "experiment_name": Key(str, doc="name shown for the run; default: Comet chooses"),
        "experiment_key": Key(str, doc="Comet's id of the run, 32 to 50 letters and digits"),
        "online": Key(bool, doc="false: keep the values on this machine; default: send them"),
        "mode": Key(
            str,
            doc="get, create or get_or_create: whether experiment_key must be there, or new",
            choices=("get", "create", "get_or_create"),
        ),
    },
    "aio": {
        "block_size": Key(int, doc="device nvme: bytes of one request, default 1048576", minimum=1),
        "queue_depth": Key(
            int, doc="requests under way at a time, per thread, default 8", minimum=1
        ),
        "intra_op_parallelism": Key(
            int, doc="threads that share one read or write, default 1", minimum=1
        ),
        "single_submit": Key(
            bool, doc="hand requests to the system one by one, not a queue at once; default false"
        ),
        "overlap_events": Key(
            bool, doc="refill the queue as requests end, not once all have ended; default true"
        ),
        "use_gds": Key(
            bool, doc="offload_param: GPUDirect Storage, past host memory, on CUDA; default false"
        ),
    },
}
