"""What a run keeps on disk, and fp32 weights out of it."""
