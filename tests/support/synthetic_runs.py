"""Run folders with curves known in advance: a real config.yaml, and a metrics.jsonl as the trainer
writes it."""

import hashlib
import json
import math
from pathlib import Path

import yaml
from conftest import tiny_run

from gpt.config import saved
from gpt.config.draft import Draft
from gpt.config.own_code import hash_of
from gpt.config.resolve import complete
from gpt.metrics.chain import linked

TOKENS_PER_STEP = 8 * 32  # of tiny_run
# counted by hand
FLOPS_PER_TOKEN = 3 * (2 * (2 * (4 * 16 * 32 + 2 * 32 * 64) + 2048 * 32) + 2 * 2 * 32 * 16)


def config_yaml(folder, fingerprint="f" * 64, **options):
    """The config.yaml of tiny_run(gpt=options) in a new run's folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tree = tiny_run(gpt={"eval_every": 1, **options})
    lines = {"scheduler.params.max_lr": 7}
    draft = complete(Draft(tree, folder.name, file="tiny.json", lines=lines))
    settled = draft.settle()
    config = saved.as_dict(settled)
    if options.get("tokens_per_second"):
        flops = settled.model.matmul_flops_per_token()
        config["run"]["gpt"]["reference_flops_per_token"] = flops
    config["dataset"] = {"root": "data/sample", "fingerprint": fingerprint, "tokenizer": "t" * 64}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return config


def amend(folder, changes):
    """Set values of a run's config.yaml, {"block/name": value}."""
    path = Path(folder) / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for where, value in changes.items():
        *blocks, name = where.split("/")
        block = config
        for part in blocks:
            if block.get(part) is None:
                block[part] = {}
            block = block[part]
        block[name] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def train(step, loss, **more):
    return {
        "event": "train",
        "step": step,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "loss_scale": 1.0,
        "tokens": step * TOKENS_PER_STEP,
        "tokens_per_second": 1000.0,
        **more,
        "time": 1.7e9 + step,
    }


def evaluation(step, loss, split="test", nats_per_byte=None, scored=1000, **more):
    """An eval line: loss in nats per token, a quarter of it per byte unless told otherwise."""
    nats = loss / 4 if nats_per_byte is None else nats_per_byte
    tokens = scored // 4
    if loss * tokens * (1 + 1e-9) < nats * scored:  # the text is a part of it all
        tokens = math.ceil(nats * scored / loss)
    figures = {
        "tokens": tokens,
        "bytes": scored,
        "total_loss": loss * tokens,
        "text_nats": nats * scored,
        "text_tokens": tokens,
        "loss": loss,
        "ppl": math.exp(loss),
        "normalised_loss": nats,
        "normalised_ppl": math.exp(nats),
        "bits_per_byte": nats / math.log(2),
        "top1": 0.25,
        "top10": 0.5,
    }
    return {
        "event": "eval",
        "step": step,
        "split": split,
        **figures,
        "languini": dict(figures),
        **more,
        "seconds": 0.5,
        "time": 1.7e9 + step,
    }


def write_lines(folder, events, end="\n"):
    text = "".join(
        event if isinstance(event, str) else json.dumps(event) + "\n" for event in events
    )
    (Path(folder) / "metrics.jsonl").write_text(
        text.removesuffix("\n") + end if text else "", encoding="utf-8"
    )


def chain_anew(path):
    """Have the lines of a metrics.jsonl follow from one another, whatever was done to them."""
    before = hashlib.sha256().hexdigest()[:16]
    lines = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        event.pop("chain", None)
        line, before = linked(json.dumps(event).encode(), before)
        lines.append(line.decode() + "\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def synthetic_run(
    folder,
    steps=40,
    loss=lambda step: 8 * (step + 1) ** -0.2,
    final=None,
    measured=True,
    fingerprint="f" * 64,
    **options,
):
    """A finished run of `steps` steps: losses by `loss`, evaluated at every tenth step and the
    last, where the normalised loss is `final`. measured: lines carry their axes, as they do since
    the trainer measures hours."""
    config = config_yaml(folder, fingerprint, max_train_steps=steps, **options)
    reference = config["run"]["gpt"].get("tokens_per_second")

    def axes(step):
        tokens = step * TOKENS_PER_STEP
        hours = {"reference_hours": tokens / reference / 3600 if reference else None}
        return (
            {
                "train_tokens": tokens,
                "flops": tokens * FLOPS_PER_TOKEN,
                "hours": step / 1000,
                **hours,
            }
            if measured
            else {}
        )

    events = [evaluation(0, loss(0), **axes(0))]
    for step in range(1, steps + 1):
        events.append(train(step, loss(step), **axes(step)))
        if step % 10 == 0 or step == steps:
            events.append(
                evaluation(
                    step, loss(step), nats_per_byte=final if step == steps else None, **axes(step)
                )
            )
    write_lines(folder, events)
    return Path(folder)


CODE = {"hash": "aaaaaaaaaaaa", "parts": {"model": "111111111111", "engine": "111111111111"}}


def identified_run(folder, steps=12, **options):
    """The same, with a config.yaml that tells its code and its documents: 2,000 tokens of training
    text, and a held-out split of 5,000 tokens and 20,000 bytes."""
    synthetic_run(folder, steps, **options)
    facts = {
        "code": CODE,
        "kernels": "torch",
        "run/scheduler/params/decay_steps": steps,
        "dataset/train": {"documents": "1" * 64, "tokens": 2000},
        "dataset/scored": {"split": "test", "documents": "2" * 64, "tokens": 5000, "bytes": 20000},
    }
    amend(folder, facts)
    return Path(folder)


def give_own_code(folder, text, block="model_file", name="rope.py", **arguments):
    """Have a run's config.yaml tell that a file of the user's own made it. block: or
    "optimizer_file"."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    facts = {"name": name, "hash": hash_of(name, {name: digest}), "files": {name: digest}}
    if block == "model_file":
        facts |= {"flops_per_token": FLOPS_PER_TOKEN, "flops_counted": FLOPS_PER_TOKEN}
    of_build = {"model_file": "model_options", "optimizer_file": "optimizer_options"}[block]
    amend(folder, {block: facts, f"run/gpt/{block}": f"mine/{name}"})
    if arguments:
        amend(folder, {f"run/gpt/{of_build}": arguments})
    return Path(folder)
