"""What bench.py and bench_checkpoint.py measure, and the plain model that they compare with."""
