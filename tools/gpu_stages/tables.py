"""The tables of the report of tools/gpu_check.py: which rows of the findings, and how their columns
are shown."""


def _shown(key, form="{}", factor=1.0):
    """A column: the row's value at `key`, times `factor`, or a dash."""

    def show(row, findings):
        value = row.get(key)
        if value is None:
            return "–"
        return form.format(value if factor == 1.0 else value * factor)

    return show


def attained(row, findings):
    """Of the rate that a large product or a copy attained on this device."""
    for key in ("flops_per_second", "bytes_per_second"):
        rates = [finding for finding in findings if finding.get("table") == "rates"]
        best = max((rate[key] for rate in rates if rate.get(key)), default=None)
        if row.get(key) and best:
            return f"{row[key] / best:.0%}"
    return "–"


def _against_estimate(row, findings):
    if not row.get("peak_bytes") or not row.get("estimated_bytes"):
        return "–"
    return f"{row['peak_bytes'] / row['estimated_bytes'] - 1:+.0%}"


def _parts(row, findings):
    return ", ".join(f"{part} {ms:.1f}" for part, ms in row.get("parts_ms", {}).items())


def _losses(row, findings):
    return " ".join(f"{loss:.3f}" for loss in row["losses"])


PRESET = ("model", _shown("preset"))
PRECISION = ("precision", _shown("precision"))
MICRO = ("micro-batch", _shown("micro_batch"))
SPEED = [
    ("ms", _shown("ms", "{:.2f}")),
    ("tokens/s", _shown("tokens_per_second", "{:,.0f}")),
    ("MFU", _shown("mfu", "{:.1%}")),
    ("tokens/s on paper", _shown("tokens_on_paper", "{:,.0f}")),
]
PEAK = ("peak GiB", _shown("peak_bytes", "{:.2f}", 2**-30))
LAUNCHES = ("launches", _shown("launches", "{:,}"))
IDLE = ("device idle", _shown("idle", "{:.1%}"))
RATES = [
    ("TFLOP/s", _shown("flops_per_second", "{:.1f}", 1e-12)),
    ("GB/s", _shown("bytes_per_second", "{:,.0f}", 1e-9)),
]

# (title, what a reader needs to know, table, [(column, how it is shown)])
TABLES = [
    (
        "Training steps without DeepSpeed",
        (
            "Two micro-batches and one fused AdamW step of `small` in bf16, all in turn in one "
            "process: medians. MFU is the share of the data sheet's peak, by the FLOPs of "
            "gpt/config/shape.py; peak memory is that of a step beside what lasts;"
            " on paper is what `bench.py --paper` computes."
        ),
        "models",
        [
            ("model", _shown("model")),
            MICRO,
            *SPEED,
            PEAK,
            LAUNCHES,
            IDLE,
            ("ready after s", _shown("ready_seconds", "{:.0f}")),
        ],
    ),
    (
        "Training steps of a run",
        (
            "The engine at ZeRO 1, four micro-batches a step. Idle is the share of a step in which"
            " no kernel runs; waits are those of the host for the device. The estimate is what"
            " --dry_run prints."
        ),
        "engine",
        [
            PRESET,
            PRECISION,
            MICRO,
            *SPEED,
            PEAK,
            ("estimated GiB", _shown("estimated_bytes", "{:.2f}", 2**-30)),
            ("measured to estimated", _against_estimate),
            LAUNCHES,
            ("waits", _shown("waits")),
            IDLE,
            ("ms by part", _parts),
            ("updates left out", _shown("left_out")),
        ],
    ),
    (
        "The heaviest kernels of a run's step",
        "",
        "heaviest",
        [
            PRESET,
            PRECISION,
            ("kernel", _shown("name", "`{}`")),
            ("launches", _shown("count")),
            ("ms a step", _shown("ms", "{:.3f}")),
        ],
    ),
    (
        "By micro-batch",
        "Steps without DeepSpeed, ours eager in bf16.",
        "sweep",
        [PRESET, MICRO, *SPEED[1:], PEAK],
    ),
    (
        "As one CUDA graph",
        "Optimiser steps under DeepSpeed in bf16, without and with `--cuda_graph`.",
        "graph",
        [
            ("model", _shown("model")),
            MICRO,
            ("eager ms", _shown("eager_ms", "{:.3f}")),
            ("graph ms", _shown("graph_ms", "{:.3f}")),
            ("gain", _shown("gain", "{:.1%}")),
            ("no graph, for", _shown("notice")),
        ],
    ),
    (
        "What the device attains",
        "",
        "rates",
        [("what", _shown("what")), ("size", _shown("shape")), *RATES],
    ),
    (
        "Single operations",
        (
            "bf16, 32 x 512 tokens, inputs not in the L2 cache. Attained: of the rate of the large "
            "product, or of the copy, in the table above."
        ),
        "operations",
        [
            PRESET,
            ("operation", _shown("what")),
            ("ms", _shown("ms", "{:.4f}")),
            ("ms on paper", _shown("ms_on_paper", "{:.4f}")),
            *RATES,
            ("attained", attained),
        ],
    ),
    (
        "What a call costs the host",
        "",
        "host",
        [("call", _shown("what")), ("µs", _shown("microseconds", "{:.1f}"))],
    ),
    (
        "All-reduce of two ranks",
        "",
        "all_reduce",
        [
            ("bytes", _shown("bytes", "{:,}")),
            ("ms", _shown("milliseconds", "{:.3f}")),
            ("GB/s", _shown("bytes_per_second", "{:.1f}", 1e-9)),
        ],
    ),
    (
        "Curves of the short trainings",
        "",
        "curves",
        [PRECISION, ("losses", _losses), ("last", _shown("last", "{:.4f}"))],
    ),
    ("Facts", "", "facts", [("fact", _shown("fact")), ("value", _shown("value"))]),
]
STAGE_OF = {
    "models": "models",
    "engine": "engine-bf16",
    "heaviest": "engine-bf16",
    "sweep": "sweep",
    "graph": "graph",
    "rates": "facts",
    "operations": "operations",
    "host": "facts",
    "all_reduce": "ranks",
    "curves": "training",
    "facts": "facts",
}
