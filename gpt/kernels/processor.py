"""Whether a CPU multiplies bf16 fast, and what a person who trains on it is told. Needs no
torch."""

import functools

CPU_FACTS = "/proc/cpuinfo"  # of Linux

# How training steps of `mini` in bf16 compare with those in fp32: on two cores of an EPYC with
# AVX512-BF16 (`python tools/bench.py step --precision bf16`), and on the same with
# ONEDNN_MAX_CPU_ISA=AVX512_CORE, which hides those instructions from oneDNN.
TIMES_AS_FAST = 1.8
TIMES_AS_SLOW = 2.4


@functools.cache
def has_fast_bf16() -> bool:
    """Whether the processor multiplies bf16 by instructions of its own: AVX512-BF16, which those
    with AMX have as well. False where the system does not tell."""
    try:
        with open(CPU_FACTS, encoding="utf-8", errors="replace") as facts:
            for line in facts:
                if line.startswith("flags"):
                    return "avx512_bf16" in line.split()
    except OSError:
        pass
    return False


def advice_on_bf16(precision: str) -> str | None:
    """What speaks for bf16 on this CPU, or against it, of a run in fp32, fp16 (for which a CPU
    takes fp32) or bf16; None where nothing does."""
    if precision == "bf16" and not has_fast_bf16():
        return (
            "of this CPU no instructions for bf16 are known (AVX512-BF16, AMX), without which a"
            f" model trains up to {TIMES_AS_SLOW} times as fast in fp32 (--bf16.enabled false)"
        )
    if precision != "bf16" and has_fast_bf16():
        return (
            f"this CPU has instructions for bf16, in which a model trains up to {TIMES_AS_FAST}"
            " times as fast as in fp32 (--fp16.enabled false --bf16.enabled true)"
        )
    return None
