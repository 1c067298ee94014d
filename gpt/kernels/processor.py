"""What a CPU multiplies fast, as Linux tells it. Needs no torch."""

import functools

CPU_FACTS = "/proc/cpuinfo"


@functools.cache
def has_fast_bf16() -> bool:
    """Whether the processor multiplies bf16 by instructions of its own: AVX512-BF16, which those
    with AMX have as well. False where the system does not tell."""
    return "avx512_bf16" in _flags()


def _flags() -> list[str]:
    """The first processor's."""
    try:
        with open(CPU_FACTS, encoding="utf-8", errors="replace") as facts:
            for line in facts:
                if line.startswith("flags"):
                    return line.partition(":")[2].split()
    except OSError:
        pass
    return []
