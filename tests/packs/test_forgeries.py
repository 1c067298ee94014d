"""Forgeries of a pack, each named: plain ones by its seal, and those of a forger who renews all
hashes by what they contradict."""

import json
import shutil

import pytest
import small_tokenizers
import torch
from entry_runs import STEPS, VOCAB
from forger import (
    amend_config,
    amend_json,
    amend_pack,
    amend_run,
    amend_starts,
    lines_of,
    renew_head,
    renew_manifest,
    renew_seal,
    write_log,
)
from safetensors.torch import load_file, save_file

from gpt.checkpoint import sources
from gpt.checkpoint.manifest import read_content, write_content
from gpt.files import hash_file
from gpt.packs import verify
from gpt.packs.evidence import Evidence
from gpt.quantities import quantities

RUN = "contender-seed0"
OTHER = "contender-seed1"


def failed_lines(pack, names):
    """{name of a check that fails: its sentences}, of those that are named."""
    every_check = verify.checks(0)
    evidence = Evidence(pack, trusted=True)
    checks = {name: every_check[name] for name in names}
    results = verify.make(evidence, checks, lambda result: None)
    return {result.name: result.lines for result in results if result.state == verify.FAILED}


def run_of(pack, name=RUN):
    return pack / "runs" / name


def evaluation_of(pack, name=RUN):
    return next(run_of(pack, name).glob("evaluations/*-step*[0-9].json"))


def better(figures, factor=0.9):
    """An evaluation's figures with fewer nats, all of which follow from their sums."""
    sums = {name: figures[name] for name in ("total_loss", "tokens", "text_nats", "text_tokens")}
    sums |= {"total_loss": factor * sums["total_loss"], "text_nats": factor * sums["text_nats"]}
    return {**figures, **quantities(**sums, bytes=figures["bytes"])}


# ---- The ten. Each changes a pack as somebody would who wants its contender to look better, and
# with `thorough` all hashes as well; then it returns the check that names it, and what that says


def edited_metrics(pack, thorough):
    run = run_of(pack)
    lines = [better(line) if line["event"] == "final_eval" else line for line in lines_of(run)]
    write_log(run, lines, chained=thorough)
    if thorough:
        renew_head(pack, RUN)
        return "sums", f"{RUN}: total_loss is "
    return "metrics", " does not follow from the line before it"


def other_weights(pack, thorough):
    export = run_of(pack) / "export"
    _change_weights(export)
    if not thorough:
        return "weights", "model.safetensors is not as it was written"
    renew_manifest(export)
    weights_sha256 = hash_file(export / "model.safetensors")["sha256"]
    amend_run(pack, RUN, weights_sha256=weights_sha256)
    return "probe", f"{export}: its weights give the loss "


def other_weights_and_their_probe(pack, thorough):
    name, words = other_weights(pack, thorough)
    if not thorough:
        return name, words
    export = run_of(pack) / "export"
    content = {name: value for name, value in read_content(export).items() if name != "sha256"}
    probe = content.pop("probe")
    # without one, the model is loaded whatever its loss
    write_content(export, content)
    source = sources.of_file(export / "model.safetensors", None, str, trusted=True)
    tokens = torch.tensor(probe["tokens"])
    with torch.no_grad():
        probe["loss"] = source.load()(tokens[:, :-1], tokens[:, 1:]).item()
    write_content(export, {**content, "probe": probe})
    return "evaluation", f"{RUN}: total_loss is "


def _change_weights(export):
    file = export / "model.safetensors"
    weights = {name: 1.1 * weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt", "step": str(STEPS)})


def edited_hits(pack, thorough):
    amend_json(evaluation_of(pack), top10=0.5)
    return "evaluation", f"{RUN}: top10 is 0.5 in its evaluation, and the weights make it "


def other_kernels(pack, thorough):
    tree = json.loads((pack / "contender.json").read_text())
    amend_json(pack / "contender.json", gpt={**tree["gpt"], "kernels": "torch"})
    return "rules", "kernels: kernels is auto for the baseline and torch for the contender"


def another_split(pack, thorough):
    path = evaluation_of(pack)
    evaluation = better(json.loads(path.read_text()))
    evaluation["documents"] = "0" * 64
    amend_json(path, **evaluation)
    if not thorough:
        return "sums", "is of other documents than the run's own evaluations"
    for name in (RUN, OTHER):
        for config in (run_of(pack, name), run_of(pack, name) / "export"):
            amend_config(config / "config.yaml", lambda tree: _score_on(tree, "0" * 64))
        amend_run(pack, name, documents="0" * 64)
    return "data", f"{RUN} has dataset.scored.documents {'0' * 64}, and baseline-seed0 has "


def _score_on(tree, documents):
    tree["dataset"]["scored"]["documents"] = documents


def dropped_seed(pack, thorough):
    for side in ("baseline", "contender"):
        shutil.rmtree(pack / "runs" / f"{side}-seed1")
    if not thorough:
        return "seeds", f"{run_of(pack, OTHER)} is missing: the entry declares it"
    amend_json(pack / "entry.json", seeds=[0])
    content = json.loads((pack / "pack.json").read_text())
    amend_pack(pack, runs={name: content["runs"][name] for name in ("baseline-seed0", RUN)})
    return "starts", "which the entry does not declare"


def dropped_seed_and_its_starts(pack, thorough):
    dropped_seed(pack, thorough=True)
    amend_starts(pack, lambda line: None if line["run"].endswith("seed1") else line)
    return "declaration", "entry.json changed since"


def extra_steps(pack, thorough):
    for name in (RUN, OTHER):
        amend_config(run_of(pack, name) / "config.yaml", _train_longer)
    if not thorough:
        return "settings", f"{run_of(pack) / 'config.yaml'}: max_train_steps is 12, and"
    for name in (RUN, OTHER):
        amend_config(run_of(pack, name) / "export" / "config.yaml", _train_longer)
        renew_manifest(run_of(pack, name) / "export")
    return "settings", f"{run_of(pack) / 'config.yaml'}: max_train_steps is 12, and"


def _train_longer(tree):
    tree["run"]["gpt"]["max_train_steps"] = 12
    tree["run"]["scheduler"]["params"]["decay_steps"] = 12


def clamped_vocabulary(pack, thorough):
    for folder in (run_of(pack), run_of(pack) / "export"):
        amend_config(folder / "config.yaml", _clamp)
    if thorough:
        renew_manifest(run_of(pack) / "export")
    return "vocabulary", f"{RUN}: the model tells 1024 ids apart, and its tokenizer "


def _clamp(tree):
    tree["model"]["vocab_size"] = 1024
    tree["run"]["gpt"]["vocab_size"] = 1024


def swapped_tokenizer(pack, thorough):
    export = run_of(pack) / "export"
    (export / "tokenizer.model").write_bytes(small_tokenizers.train(vocab_size=VOCAB))
    if thorough:
        renew_manifest(export)
    return "vocabulary", f"{export / 'tokenizer.model'} is another tokenizer ("


def another_seeds_log(pack, thorough):
    lines = lines_of(run_of(pack))
    if not thorough:
        write_log(run_of(pack, OTHER), lines)
        return "curves", "is the log of another run: its start of step 0 has the seed 0, and"
    write_log(run_of(pack, OTHER), [{**line, **_seed_one(line)} for line in lines])
    renew_head(pack, OTHER)
    return "curves", f"{RUN} and {OTHER} have the same losses at all "


def _seed_one(line):
    return {"seed": 1} if line["event"] == "start" else {}


def truncated_log(pack, thorough):
    write_log(run_of(pack), lines_of(run_of(pack))[:-2])
    if not thorough:
        return "metrics", "when it was packed"
    renew_head(pack, RUN)
    return "metrics", "has no evaluation of the whole split after step "


def log_with_a_gap(pack, thorough):
    lines = lines_of(run_of(pack))
    is_gap = [line["event"] == "train" and line["step"] == 2 for line in lines]
    write_log(run_of(pack), [line for line, gap in zip(lines, is_gap) if not gap], thorough)
    if not thorough:
        return "metrics", "does not follow from the line before it"
    renew_head(pack, RUN)
    return "metrics", "has no line of training at step 2"


def fewer_tokens(pack, thorough):
    """A run that would have had less compute than it took."""
    lines = lines_of(run_of(pack))
    for line in lines:
        if "train_tokens" in line:
            line["train_tokens"] //= 2
    write_log(run_of(pack), lines)
    if thorough:
        renew_head(pack, RUN)
    return "curves", " tells train_tokens "


def fewer_nats_of_a_document(pack, thorough):
    path = next(run_of(pack).glob("evaluations/*.documents.jsonl"))
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    documents[1]["nats"] *= 0.99
    documents[1]["text_nats"] *= 0.98
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return "sums", f"{RUN}: the nats of its documents are "


def weights_of_another_step(pack, thorough):
    export = run_of(pack) / "export"
    content = {**read_content(export), "step": STEPS - 1}
    write_content(export, {name: value for name, value in content.items() if name != "sha256"})
    return "weights", f"is of step {STEPS - 1}, and the run ends at {STEPS}"


def evaluation_of_other_weights(pack, thorough):
    path = evaluation_of(pack)
    run = json.loads(path.read_text())["run"]
    amend_json(path, run={**run, "sha256": "0" * 64})
    return "weights", f"{RUN} was evaluated with other weights than those in "


def untold_start(pack, thorough):
    """A run that was started twice, and the record has one of them."""
    lines = lines_of(run_of(pack))
    (start,) = [line for line in lines if line["event"] == "start"]
    write_log(run_of(pack), [*lines, start])
    if thorough:
        renew_head(pack, RUN)
    return "starts", f"tells of 1 start of runs/{RUN}, and the run's own metrics of 2"


def edited_code(pack, thorough):
    paths = list(pack.rglob("own.py"))
    assert len(paths) > 4
    for path in paths:
        path.write_text(path.read_text() + "\n# sees a little more\n")
    if not thorough:
        return "code", f"{run_of(pack) / 'code' / 'own.py'} is not the code that the run was"
    for name in (RUN, OTHER):
        for folder in (run_of(pack, name), run_of(pack, name) / "export"):
            amend_config(folder / "config.yaml", lambda tree: _tell_code(tree, paths[0]))
        renew_manifest(run_of(pack, name) / "export")
    return "declaration", "own.py changed since"


def _tell_code(tree, path):
    from gpt.config.own_code import read_own_code

    tree["model_file"] |= read_own_code(str(path), "model_file").facts()


FORGERIES = (
    edited_metrics,
    other_weights,
    other_weights_and_their_probe,
    edited_hits,
    other_kernels,
    another_split,
    dropped_seed,
    dropped_seed_and_its_starts,
    extra_steps,
    clamped_vocabulary,
    swapped_tokenizer,
    another_seeds_log,
    truncated_log,
    log_with_a_gap,
    fewer_tokens,
    fewer_nats_of_a_document,
    weights_of_another_step,
    evaluation_of_other_weights,
    untold_start,
    edited_code,
)


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
@pytest.mark.parametrize("thorough", [False, True], ids=["plain", "thorough"])
def test_a_forgery_is_named(packed, forge, thorough):
    name, words = forge(packed, thorough)
    if thorough:
        renew_seal(packed)
    lines = failed_lines(packed, ["seal", name])
    assert ("seal" in lines) is not thorough
    assert any(words in line for line in lines[name]), lines[name]
