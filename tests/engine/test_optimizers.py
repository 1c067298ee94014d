"""Optimizers of the engine against the same written down in float64: steps, norms, states, and
checkpoints that go on at another stage, at every ZeRO stage on two ranks."""

import json

import pytest
import torch
from conftest import tiny_run
from forked import fork_ranks
from plain_optimizers import PlainAdamW, PlainLion, PlainMuon

from gpt.architecture.architecture import build
from gpt.checkpoint.zero_files import read_state
from gpt.config.resolve import resolve
from gpt.engine import boundary
from gpt.model import GPT

STEPS = 3
DECAY = 0.1
HALF_OF_IT = """
import torch

class Half(torch.optim.Optimizer):
    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["sum"] = state.get("sum", torch.zeros_like(p)).mul_(0.5).add_(p.grad)
                state["count"] = state.get("count", 0) + 1
                p.sub_(state["sum"], alpha=group["lr"])

def build(named_parameters, lr=0.1, slow=0.5):
    matrices = [p for name, p in named_parameters if p.ndim > 1]
    others = [p for name, p in named_parameters if p.ndim < 2]
    return Half([{"params": others, "lr_scale": slow}, {"params": matrices}], lr)
"""


class PlainHalf:
    def __init__(self):
        self.sums = {}

    def step(self, name, weight, gradient, lr):
        self.sums[name] = 0.5 * self.sums.get(name, 0.0) + gradient
        return weight - lr * self.sums[name]


def block(kind, **params):
    return {"optimizer": {"type": kind, "params": {"decay_matrices_only": True, **params}}}


def update_of(kind):
    """(name, weight, gradient, learning rate) -> weight."""
    matrices, vectors = {
        "AdamW": lambda: (PlainAdamW(weight_decay=DECAY), PlainAdamW()),
        "Lion": lambda: (PlainLion(weight_decay=DECAY), PlainLion()),
        "Muon": lambda: (PlainAdamW(weight_decay=DECAY), PlainAdamW()),
        "own": lambda: (PlainHalf(), PlainHalf()),
    }[kind]()
    muon = PlainMuon(weight_decay=DECAY)

    def update(name, weight, gradient, lr):
        if kind == "Muon" and name.startswith("blocks.") and weight.dim() == 2:
            return muon.step(name, weight, gradient, lr, parts=3 if "qkv" in name else 1)
        if kind == "Muon":
            lr *= 0.1
        if kind == "own" and weight.dim() < 2:
            lr *= 0.5
        return (matrices if weight.dim() > 1 else vectors).step(name, weight, gradient, lr)

    return update


def batches(config, ranks):
    """int64 (STEPS, ranks, accumulation, micro batch, seq_len + 1)"""
    shape = (STEPS, ranks, 2, 8 // (2 * ranks), config.model.seq_len + 1)
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(config.model.vocab_size, shape, generator=drawn)


def plain_run(kind, config, ranks):
    """(weights, norms of the whole gradient) in float64, of one process with whole batches."""
    model = GPT(config.model, 0).double()
    update = update_of(kind)
    norms = []
    for step, batch in enumerate(batches(config, ranks)):
        tokens = batch.flatten(0, 2)
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(sum(g.square().sum() for g in gradients).sqrt().item())
        with torch.no_grad():
            for (name, weight), gradient in zip(model.named_parameters(), gradients):
                weight.copy_(update(name, weight, gradient, config.schedule.lr(step + 1)))
    return {name: weight.detach() for name, weight in model.named_parameters()}, norms


def config_of(kind, stage, folder, ranks):
    options = block(kind, weight_decay=DECAY) if kind != "own" else {}
    gpt = {} if kind != "own" else {"optimizer_file": str(folder / "half.py")}
    schedule = {"max_lr": 0.01, "warmup_steps": 0, "decay_steps": 10}
    zero = {"stage": stage, "sub_group_size": 5000, "reduce_bucket_size": 5000}
    tree = tiny_run(
        zero_optimization=zero,
        scheduler={"type": "LanguiniCosineLR", "params": schedule},
        gpt={"vocab_size": 64, **gpt},
        **options,
    )
    return resolve(tree, "test", ranks)


def engine_of(config, world):
    model = build(config, "torch")
    return boundary.Engine(model, config, world, model.initial_weights(0))


def check(kind, stages, ranks, folder, capfd):
    """Runs at these stages, each of which takes over the state before the last step from that of
    the stage before."""
    (folder / "half.py").write_text(HALF_OF_IT)

    def rank():
        world = boundary.connect()
        # gram's half precision, where this CPU has it
        type(boundary.deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda self: (
            False
        )
        before = None
        for stage in stages:
            config = config_of(kind, stage, folder, ranks)
            engine = engine_of(config, world)
            rows = batches(config, ranks)[:, world.rank].numpy()
            found = {"grad_norm": [], "norms": []}
            for step in range(STEPS):
                if step == STEPS - 1 and before is not None:
                    # another stage's state of this step
                    engine.adopt(read_state(before), 1.0)
                result = engine.step(rows[step], want_norms=True)
                assert result.applied
                found["grad_norm"].append(result.grad_norm.item())
                found["norms"].append(result.norms)
                assert engine.first_nonfinite_state() is None
                if step == STEPS - 2:
                    assert engine.save(folder, f"stage{stage}_half", {"step": step}) is None
            before = folder / f"stage{stage}_half"
            assert engine.save(folder, f"stage{stage}", {"step": STEPS}) is None
            again = engine_of(config, world)
            again.load(folder, f"stage{stage}_half")
            again.step(rows[-1])
            assert again.save(folder, f"stage{stage}_again", {"step": STEPS}) is None
            if world.rank == 0:
                (folder / f"stage{stage}.json").write_text(json.dumps(found))
            engine._ds.destroy()
            again._ds.destroy()
        boundary.disconnect()

    ends = fork_ranks(ranks, rank)
    assert [code for code, _ in ends] == [0] * ranks, capfd.readouterr().err
    weights, norms = plain_run(kind, config_of(kind, 1, folder, ranks), ranks)
    for stage in stages:
        found = json.loads((folder / f"stage{stage}.json").read_text())
        assert found["grad_norm"] == pytest.approx(norms, rel=1e-4), stage
        for whole, of_modules in zip(norms, found["norms"], strict=True):
            of_gradient = of_modules["gradient"].values()
            assert sum(norm**2 for norm in of_gradient) ** 0.5 == pytest.approx(whole, rel=1e-4)
        for tag in (f"stage{stage}", f"stage{stage}_again"):
            full = read_state(folder / tag)
            for name, expected in weights.items():
                # softmax does not see k's bias, whose gradient is but rounding: Lion takes its sign
                if kind == "Lion" and name.endswith("qkv.bias"):
                    continue
                torch.testing.assert_close(
                    full.weights[name].double(),
                    expected,
                    rtol=1e-4,
                    atol=2e-5,
                    msg=lambda m: f"{tag} {name} {m}",
                )


DECAYING = """
import torch

class Decaying(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                count = self.state[p]["count"] = self.state[p].get("count", 0) + 1
                p.mul_(1 - 0.1 * group["lr"])
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"] / count)

def build(named_parameters):
    return Decaying([p for name, p in named_parameters], {"lr": 0.1})
"""


def test_a_step_that_is_left_out_is_none_of_the_optimizers_at_stage_0(tmp_path, capfd):
    (tmp_path / "half.py").write_text(DECAYING)

    def rank():
        engine = engine_of(config_of("own", 0, tmp_path, 1), boundary.connect())
        rows = batches(config_of("own", 0, tmp_path, 1), 1)[:, 0].numpy()
        parameters = dict(engine.module.named_parameters())
        first = {name: p.detach().clone() for name, p in parameters.items()}
        lr = engine.lr
        assert not engine.step(rows[0], accept=lambda loss: False).applied
        assert all(torch.equal(p, first[name]) for name, p in parameters.items())
        assert not engine._ds.optimizer.state
        assert engine.lr == lr
        assert engine.step(rows[0]).applied
        assert not any(torch.equal(p, first[name]) for name, p in parameters.items())
        boundary.disconnect()

    assert [code for code, _ in fork_ranks(1, rank)] == [0], capfd.readouterr().err


@pytest.mark.parametrize("kind, stages", [("Muon", (3, 2)), ("own", (0, 1))])
def test_steps_and_states_are_those_of_the_plain_optimizer(kind, stages, tmp_path, capfd):
    check(kind, stages, 2, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AdamW", "Lion", "Muon", "own"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_steps_and_states_of_every_optimizer(kind, ranks, tmp_path, capfd):
    check(kind, (1, 2, 3) if kind == "Muon" else (0, 1, 2, 3), ranks, tmp_path, capfd)
