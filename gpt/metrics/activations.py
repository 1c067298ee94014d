"""Statistics of what flows through a GPT: the residual stream before every block, and what the
branches add to it."""

import math

import torch


class ActivationStatistics:
    """Root mean square and largest magnitude of activations, over all forward passes that are made
    inside of it.

    A context manager, entered around each forward pass alone: it hooks the modules of a
    gpt.model.GPT on entering, and leaves nothing behind, so that what the backward pass computes
    again is not counted, and a run without it pays nothing. A compiled model runs eagerly inside.
    Names: blocks.N.stream (as it enters block N), blocks.N.attn and blocks.N.mlp (what they add),
    ln_f.stream (after the last block).
    """

    def __init__(self, model: torch.nn.Module):
        self._watched = {}
        self._found = {}
        for index, block in enumerate(model.blocks):
            self._watched |= {
                f"blocks.{index}.stream": block.ln1,
                f"blocks.{index}.attn": block.attn,
                f"blocks.{index}.mlp": block.mlp,
            }
        self._watched["ln_f.stream"] = model.ln_f

    def __enter__(self):
        self._hooks = [
            module.register_forward_hook(self._note(name)) for name, module in self._watched.items()
        ]
        self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()

    def __exit__(self, *error):
        self._eager.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _note(self, name):
        """A hook that adds a module's output to the sums of `name`, in fp32 without a copy of it;
        AddNorm's is (norm, stream)."""

        def hook(module, inputs, output):
            values = (output[1] if isinstance(output, tuple) else output).detach()
            norm, largest = (
                torch.linalg.vector_norm(values, order, dtype=torch.float32).double()
                for order in (2, math.inf)
            )
            count, squares, largest_so_far = self._found.get(
                name, (0, 0.0, torch.zeros_like(largest))
            )
            self._found[name] = (
                count + values.numel(),
                squares + norm.square(),
                torch.maximum(largest, largest_so_far),
            )

        return hook

    def summary(self, world) -> dict:
        """{"rms": {name: value}, "max_abs": {name: value}} over all ranks, which call it
        together."""
        rows = [
            [count, float(squares), float(largest)]
            for count, squares, largest in map(self._found.get, self._watched)
        ]
        ranks = torch.tensor(world.gather(rows), dtype=torch.float64)  # (ranks, names, 3)
        rms = (ranks[..., 1].sum(0) / ranks[..., 0].sum(0)).sqrt().tolist()
        return {
            "rms": dict(zip(self._watched, rms)),
            "max_abs": dict(zip(self._watched, ranks[..., 2].amax(0).tolist())),
        }
