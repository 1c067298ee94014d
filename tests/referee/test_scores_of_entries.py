"""What a judgement reads of an entry's runs, or of any others, and which of them it refuses."""

import json

import numpy as np
import pytest
from synthetic_runs import amend, evaluation, identified_run, write_lines
from synthetic_runs import train as train_line

from gpt.config.identity import digest_with_seed
from gpt.config.saved import read_config
from gpt.errors import UserError
from gpt.referee import entry as entries
from gpt.referee import scores, starts
from gpt.referee.judgement import NO_VERDICT, as_json, of_paths
from gpt.referee.judgement_text import in_words
from gpt.results import document_sums
from gpt.results.document_sums import DocumentSums

STEPS = 12
TOKENS = 5000
BYTES = 20000
ENTRY = {
    "format": 1,
    "name": "rope",
    "author": "A. Nyone",
    "claim": {"class": "tiny", "baseline": "tiny", "over": "tokens", "direction": "better"},
    "seeds": [0, 1],
    "tuning": {"factors": [1.0], "seed": 1000},
}


def score_run(folder, loss, **more):
    """What eval.py --join would keep of a run's export. loss: nats per token."""
    config = read_config(folder / "config.yaml")
    content = {
        **evaluation(STEPS, loss, scored=BYTES),
        "of_tokens": TOKENS,
        "documents": "2" * 64,
        "seq_len": config["model"]["seq_len"],
        "last_n": 16,
        "run": {"curve": digest_with_seed(config), "step": STEPS, "checkpoint": "global_step12"},
        **more,
    }
    del content["event"], content["time"], content["seconds"]
    file = folder / "evaluations" / f"test-step{STEPS}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def entry(tmp_path):
    """An entry with two seeds a side, whose contender is better."""
    folder = tmp_path / "rope"
    for side, loss in (("baseline", 4.0), ("contender", 3.9)):
        for seed in (0, 1):
            run = identified_run(folder / f"runs/{side}-seed{seed}", STEPS, seed=seed)
            if side == "contender":
                amend(run, {"run/optimizer/type": "AdamW"})
            score_run(run, loss + seed / 1000)
    (folder / "entry.json").write_text(json.dumps(ENTRY))
    for side in ("baseline", "contender"):
        tree = {"gpt": {"data_root": "data/books"}}
        (folder / f"{side}.json").write_text(json.dumps(tree))
    start_all(folder)
    return folder


def start_all(folder):
    """Have starts.jsonl tell that all runs of an entry were started, as it is declared now."""
    (folder / "starts.jsonl").unlink(missing_ok=True)
    entry = entries.read(folder)
    for run, (side, seed) in starts.declared_runs(entry).items():
        starts.begin(entry, run, side, seed, 0)
        starts.end(entry, run, side, seed, STEPS, 0, "finished")


def redeclare(folder, **changes):
    (folder / "entry.json").write_text(json.dumps({**ENTRY, **changes}))
    start_all(folder)


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def test_sums_of_an_entry_are_those_of_the_joined_evaluations(entry):
    sides = scores.of_entry(entries.read(entry))
    assert [score.loss for score in sides.contender.scores] == pytest.approx([3.9, 3.901])
    score = sides.baseline.scores[1]
    assert (score.run, score.seed, score.tokens, score.bytes) == (
        "baseline-seed1",
        1,
        TOKENS,
        BYTES,
    )
    assert score.normalised_loss == pytest.approx(4.001 / 4)
    assert sides.contender.compute["tokens"] == STEPS * 8 * 32
    assert not sides.is_paired  # all of them begin with the same evaluation
    assert sides.measured_on == {
        "split": "test",
        "documents": "2" * 64,
        "bytes": BYTES,
        "last_n": 16,
    }
    assert of_paths([entry]).verdict == "better"


def test_seeds_without_an_evaluation_or_a_run_are_missing(entry):
    (entry / f"runs/baseline-seed1/evaluations/test-step{STEPS}.json").unlink()
    assert scores.of_entry(entries.read(entry)).baseline.missing == (1,)
    redeclare(entry, seeds=[0, 1, 7])
    judged = of_paths([entry])
    assert judged.verdict == NO_VERDICT
    assert judged.sentence == (
        "no verdict on rope: rope: seed 7 not finished; tiny: seeds 1, 7 not finished"
    )


def test_a_diverged_seed_is_told(entry):
    run = entry / "runs/contender-seed1"
    write_lines(run, [train_line(step, float("nan")) for step in range(1, STEPS + 1)])
    judged = of_paths([entry])
    assert judged.sides.contender.diverged == (1,)
    assert judged.sentence.endswith(": rope: seed 1 diverged")


def test_another_seeds_run_in_a_seeds_folder(entry):
    amend(entry / "runs/contender-seed1", {"run/gpt/seed": 0})
    score_run(entry / "runs/contender-seed1", 3.9)
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert "contender-seed1 is of the seed 0, and its name says 1" in sentence


def test_seeds_that_differ_in_more(entry):
    run = entry / "runs/contender-seed1"
    amend(run, {"run/optimizer/params/weight_decay": 0.1})
    score_run(run, 3.9)
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert sentence.startswith(
        "contender-seed0 and contender-seed1 differ in more than their seeds"
        " (optimizer.params.weight_decay)"
    )


def test_seeds_that_are_dropped_after_training(entry):
    (entry / "entry.json").write_text(json.dumps({**ENTRY, "seeds": [0]}))
    assert "of runs/baseline-seed1, which the entry does not declare" in refusal(of_paths, [entry])
    (entry / "starts.jsonl").unlink()
    sentence = refusal(of_paths, [entry])
    assert "starts.jsonl has no start of runs/baseline-seed0, so nothing tells that" in sentence
    redeclare(entry, seeds=[0])
    assert sentence != refusal(of_paths, [entry])
    assert "baseline-seed1 is of no seed that" in refusal(of_paths, [entry])


def test_the_starts_are_told(entry):
    starts.begin(entries.read(entry), "runs/contender-seed1", "contender", 1, 4)
    judged = of_paths([entry])
    assert judged.notices == ("5 starts of 4 runs: 0 failed, 1 abandoned",)
    assert judged.notices[0] in in_words(judged)


def test_an_evaluation_with_another_last_n(entry):
    for run in (entry / "runs").iterdir():
        score_run(run, 4.0 + run.name.endswith("1"), last_n=8)
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert "was evaluated with last_n 8, and is scored with 16" in sentence


def test_an_evaluation_of_other_weights_than_training_scored(entry):
    run = entry / "runs/contender-seed1"
    whole = {**evaluation(STEPS, 4.5, scored=BYTES), "event": "final_eval"}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(whole) + "\n")
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert "its evaluation says 3.901000 nats a token, and training found 4.500000" in sentence


def test_one_run_under_two_seeds(entry):
    score_run(entry / "runs/contender-seed1", 3.9)
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert sentence.startswith(
        "contender-seed0 and contender-seed1 have the same sums to the last bit"
    )


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"documents": "3" * 64}, "is of other documents than the run's own evaluations"),
        ({"normalised_ppl": 1.5}, "contradicts itself: normalised_ppl is 1.5"),
    ],
)
def test_evaluations_that_do_not_measure_the_same(entry, changes, sentence):
    score_run(entry / "runs/contender-seed1", 3.901, **changes)
    assert sentence in refusal(scores.of_entry, entries.read(entry))


def test_unequal_compute(entry):
    redeclare(entry, claim={**ENTRY["claim"], "over": "hours"})
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert sentence == ("the runs of rope do not tell their hours: compare over flops or tokens")


def lengthen(entry, steps):
    """Have the contender train so many steps."""
    for seed in (0, 1):
        run = identified_run(entry / f"runs/contender-seed{seed}", steps, seed=seed)
        file = score_run(run, 3.9 + seed / 1000)
        content = json.loads(file.read_text())
        content["step"] = content["run"]["step"] = steps
        file.with_name(f"test-step{steps}.json").write_text(json.dumps(content))


def test_more_steps_than_equal_compute_has(entry):
    lengthen(entry, STEPS + 1)  # a step more may be rounding, with so few
    scores.of_entry(entries.read(entry))
    lengthen(entry, STEPS + 2)
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert sentence == (
        "rope and tiny were not trained with equal compute: 3584 and 3072 tokens: train both for as"
        " much"
    )


def test_documents_must_add_up_to_the_evaluation(entry):
    run = entry / "runs/contender-seed0"
    file = scores.documents_file(run, "test", STEPS)
    nats = np.array([9000.0, 10500.0])
    counts = np.array([2000, 3000])
    sums = DocumentSums(("a" * 32, "b" * 32), nats, counts, nats, counts, 4 * counts)
    document_sums.write(file, sums)
    documents = scores.of_entry(entries.read(entry)).contender.scores[0].documents
    assert documents.hashes == sums.hashes
    document_sums.write(
        file, DocumentSums(sums.hashes, nats - 1, counts, nats - 1, counts, 4 * counts)
    )
    sentence = refusal(scores.of_entry, entries.read(entry))
    assert "nats of its documents are 19498 together, and the evaluation beside it says 19500" in (
        sentence
    )


def test_runs_that_are_no_entry(entry, tmp_path):
    contender = sorted((entry / "runs").glob("contender*"))
    baseline = sorted((entry / "runs").glob("baseline*"))
    judged = of_paths(contender, baseline)
    assert judged.verdict == "better" and judged.sides.over == "flops"
    assert (judged.sides.contender.name, judged.sides.baseline.name) == ("contender", "baseline")
    assert "no --baseline says what its runs are held against" in refusal(of_paths, contender)
    assert f"{baseline[0]} is on both sides" in refusal(of_paths, [*contender, *baseline], baseline)
    assert refusal(of_paths, [tmp_path / "nope"]).startswith(f"{tmp_path / 'nope'} does not exist")
    assert "has a baseline of its own" in refusal(of_paths, [entry], baseline)
    write_lines(contender[0], [train_line(1, 7.0)])
    assert "contender-seed0 is at step 1 of 12" in refusal(of_paths, contender, baseline)


def final_evaluation(run, loss, of_tokens=TOKENS):
    """What training itself scored at the end, of the whole split or a part."""
    line = {**evaluation(STEPS, loss, scored=BYTES), "event": "final_eval", "of_tokens": of_tokens}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def test_runs_are_judged_by_their_exported_weights_where_all_have_an_evaluation(entry):
    """Training rounds otherwise, and knows no documents."""
    contender = sorted((entry / "runs").glob("contender*"))
    baseline = sorted((entry / "runs").glob("baseline*"))
    counts = np.array([2000, 3000])
    for place, run in enumerate([*contender, *baseline]):
        loss = json.loads((run / f"evaluations/test-step{STEPS}.json").read_text())["loss"]
        final_evaluation(run, loss * (1 + 1e-6))
        nats = loss * counts
        sums = DocumentSums(("a" * 32, "b" * 32), nats, counts, nats, counts, 4 * counts)
        document_sums.write(scores.documents_file(run, "test", STEPS), sums)
    judged = of_paths(contender, baseline)
    assert judged.per_byte == of_paths([entry]).per_byte
    assert judged.documents.documents == 2 and judged.notices == ()
    # where one has none, what training scored counts for all, and the documents are of none of it
    (baseline[0] / f"evaluations/test-step{STEPS}.json").unlink()
    judged = of_paths(contender, baseline)
    assert judged.sides.contender.scores[0].loss == pytest.approx(3.9 * (1 + 1e-6), rel=1e-12)
    assert judged.documents is None and judged.notices == ()


def test_a_part_of_the_split_is_told(entry):
    for run in (entry / "runs").iterdir():
        (run / f"evaluations/test-step{STEPS}.json").unlink()
    contender = sorted((entry / "runs").glob("contender*"))
    for seed, run in enumerate(contender):
        write_lines(run, [train_line(STEPS, 5.0), evaluation(STEPS, 3.9 + seed / 1000)])
    baseline = sorted((entry / "runs").glob("baseline*"))
    for seed, run in enumerate(baseline):
        write_lines(run, [train_line(STEPS, 5.0), evaluation(STEPS, 4.0 + seed / 1000)])
    (notice,) = of_paths(contender, baseline).notices
    assert notice.startswith("judged by the part of the split that training scored: score the")


def write_ladder(entry, nats_of, **options):
    """The baseline at four other lengths. nats_of: nats per byte for a multiple of its length."""
    for steps in (3, 6, 24, 48):
        run = identified_run(entry / f"ladder/{steps}", steps, **options)
        nats = nats_of(steps / STEPS)
        write_lines(
            run,
            [
                train_line(1, 5.0),
                train_line(steps, 5.0),
                evaluation(steps, 4 * nats, nats_per_byte=nats, scored=BYTES),
            ],
        )


def judge_with_ladder(entry, contender):
    for side, loss in (("baseline", 4.0), ("contender", contender)):
        for seed in (0, 1):
            score_run(entry / f"runs/{side}-seed{seed}", loss + seed * 1e-9)
    return of_paths([entry])


def test_the_worth_of_a_difference_by_the_baselines_ladder(entry):
    """Losses that are exactly A C^-0.05: a loss 1% lower is worth 0.99^(-1/0.05) of compute."""
    write_ladder(entry, lambda multiple: multiple**-0.05)
    judged = judge_with_ladder(entry, 3.96)
    assert judged.worth.slope == pytest.approx(-0.05, rel=1e-3)
    assert judged.worth.ratio == pytest.approx(0.99 ** (-1 / 0.05), rel=1e-3)
    assert judged.worth.in_words().startswith("worth +22.3% of compute")
    assert judged.worth.low <= judged.worth.ratio <= judged.worth.high
    assert json.loads(as_json(judged))["worth"]["ratio"] == judged.worth.ratio
    far = judge_with_ladder(entry, 3.0)
    assert far.worth is None
    assert far.notices[-1] == "no worth is told: it would be beyond 100 times the compute"


@pytest.mark.parametrize(
    "nats_of",
    [
        lambda multiple: multiple**0.05,
        lambda multiple: 1.0,
        lambda multiple: 1.0 + 0.1 * (multiple in (0.5, 4)),
    ],
)
def test_a_ladder_on_which_compute_gains_nothing(entry, nats_of):
    write_ladder(entry, nats_of)
    judged = judge_with_ladder(entry, 3.96)
    assert judged.worth is None and "the baseline does not gain by compute" in in_words(judged)


def test_a_ladder_of_another_method(entry):
    write_ladder(entry, lambda multiple: multiple**-0.05)
    amend(entry / "ladder/24", {"run/optimizer/type": "AdamW"})
    sentence = refusal(of_paths, [entry])
    assert "24 is of another method than the baseline (optimizer.type)" in sentence


def test_a_side_that_knows_something_before_training(entry):
    """The others score 8 nats a token then, and log(2048) is 7.62."""
    run = entry / "runs/contender-seed0"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**evaluation(0, 4.1), "split": "test"})
    write_lines(run, [json.loads(line) for line in lines])
    judged = of_paths([entry])
    assert judged.sides.contender.head_start == 4.1 and judged.sides.baseline.head_start is None
    assert (
        "rope scores 4.1000 nats a token before training, which drawn weights do not"
        in in_words(judged)
    )
