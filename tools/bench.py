"""How fast a training step is here, and which share of this device's own matmul rate it reaches.

    python tools/bench.py --preset mini --micro_batch 4 --accumulation 2

Forward, backward and fused Adam of the model, without DeepSpeed, and in turn with them the same steps of the same model
written in the most obvious way (tools/plain_gpt.py). The matmul rate is measured in the same process, before and after
each step, so that a noisy machine slows all. FLOPs by the formula in gpt/plan.py.
"""

import json
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, run


def main():
    import torch

    from gpt.config import load_presets
    from gpt.plan import ModelConfig

    parser = Parser(__doc__)
    parser.add_argument("--preset", default="mini", help="model shape (default mini)")
    parser.add_argument("--micro_batch", type=int, default=4, help="sequences per forward pass (default 4)")
    parser.add_argument("--accumulation", type=int, default=2, help="forward passes per step (default 2)")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after two that are not")
    parser.add_argument("--json", metavar="FILE", help="write the result here as well")
    args = parser.parse_args()
    presets = load_presets()
    if args.preset not in presets:
        raise UserError(f"--preset {args.preset}: choose one of {', '.join(presets)}")
    config = ModelConfig(**presets[args.preset], vocab_size=args.vocab_size, seq_len=args.seq_len)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = measure(config, args, device)
    print(f"{args.preset} on {device} ({torch.get_num_threads()} threads), fp32, {args.accumulation} x "
          f"{args.micro_batch} x {args.seq_len} tokens a step, median of {args.steps} steps")
    print(f"  {result['tokens_per_second']:,.0f} tokens/s, {result['flops'] / 1e9:,.1f} GFLOP/s in the step's matrix "
          f"products; {result['ratio_to_plain']:.2f} times the plain model's {result['plain_tokens_per_second']:,.0f}")
    print(f"  {result['matmul_flops'] / 1e9:,.1f} GFLOP/s in a plain matrix product: the step reaches "
          f"{result['share']:.0%} of it")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(config, args, device) -> dict:
    """Medians over steps; the share is the median of each step's own ratio to the matmul rate beside it."""
    import torch

    from gpt.kernels import choose
    from gpt.model import GPT
    from tools.plain_gpt import PlainGPT

    model = GPT(config, kernels=choose("auto", device)[0]).to(device)
    plain = PlainGPT(model).to(device)
    optimizers = {which: torch.optim.AdamW(which.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
                  for which in (model, plain)}  # fmt: skip
    batch = torch.randint(config.vocab_size, (args.accumulation, args.micro_batch, config.seq_len + 1), device=device)

    def step(which=model):
        for micro in batch:
            (which(micro[:, :-1], micro[:, 1:]) / args.accumulation).backward()
        optimizers[which].step()
        optimizers[which].zero_grad()

    square = torch.randn(2048, 2048, device=device)
    product = torch.empty_like(square)

    def seconds(work):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def matmul_rate():
        return 2 * 2048**3 / seconds(lambda: torch.mm(square, square, out=product))

    for _ in range(2):
        seconds(step), seconds(lambda: step(plain)), matmul_rate()
    tokens = batch[..., 1:].numel()
    flops = tokens * config.matmul_flops_per_token()
    times, rates, plain_times = [], [], []
    for _ in range(args.steps):
        before = matmul_rate()
        times.append(seconds(step))
        rates.append((before + matmul_rate()) / 2)
        plain_times.append(seconds(lambda: step(plain)))
    return {
        "device": device, "tokens_per_second": tokens / statistics.median(times),
        "flops": flops / statistics.median(times), "matmul_flops": statistics.median(rates),
        "plain_tokens_per_second": tokens / statistics.median(plain_times),
        "ratio_to_plain": statistics.median(slow / fast for slow, fast in zip(plain_times, times)),
        "share": statistics.median(flops / t / rate for t, rate in zip(times, rates)),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
