"""A user's mistakes, as the training command tells them; what is told of a run that goes on."""

import plain_run
import pytest
from conftest import ROOT, write_run

from gpt.errors import UserError

TRAIN = ROOT / "gpt" / "train.py"

MISTAKES = [
    (
        ["--ds_config", "no.json"],
        "error: cannot read the config no.json: No such file or directory",
    ),
    (
        ["--train_batch_siz", "4"],
        "unknown option --train_batch_siz (did you mean '--train_batch_size'?)",
    ),
    (
        ["--vocab_size", "2047"],
        "gpt.vocab_size is 2047, but the tokenizer of {data} has 2048 ids: set --vocab_size 2048",
    ),
    (
        ["--train_batch_size", "512"],
        (
            "the split 'train' has 240 documents, fewer than the 512 streams that train_batch_size "
            "512 needs: prepare more documents (tools/prepare_data.py --cut_documents BYTES makes "
            "several of a large file) or lower train_batch_size to at most 240"
        ),
    ),
    (["--eval_data_split", "java"], "{data} has no split 'java': it has train, test, python"),
    (["--resume", "must"], "--resume must: runs/tiny/checkpoints has no checkpoint to go on from"),
    (
        ["--run_dir", "tiny.json"],
        "tiny.json is a file, where a run wants to be kept: name another --run_dir",
    ),
    (["--seq_len", "0"], "command line: gpt.seq_len is 0, must be at least 2"),
    (["--grad_clip_norm", "-1"], "command line: gradient_clipping is -1.0, must be at least 0"),
    (["--preset", "smal"], "gpt.preset is 'smal' (did you mean 'small'?)"),
]


@pytest.mark.parametrize(
    "options, sentence",
    [
        pytest.param(*case, id=case[0][0], marks=[pytest.mark.slow] if index > 4 else [])
        for index, case in enumerate(MISTAKES)
    ],
)
def test_a_mistake_ends_with_its_sentence_and_code_2(
    options, sentence, sample, tmp_path, run_command
):
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    command = [
        "deepspeed",
        "-q",
        "--num_gpus",
        2,
        "--master_port",
        29615,
        TRAIN,
        "--ds_config",
        config,
        *options,
    ]
    done = run_command(command, tmp_path)
    assert done.returncode == 2
    assert done.stderr.count(sentence.format(data=sample)) == 1  # one report, not one per rank
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["tiny.json"]


def test_a_finished_run_that_is_extended_is_told_what_changed(sample, tmp_path, capsys):
    options = {"eval_every": 0, "log_ckpt_every": 0}
    plain_run.train(tmp_path / "run", sample, gpt={"max_train_steps": 2, **options})
    capsys.readouterr()
    plain_run.train(tmp_path / "run", sample, gpt={"max_train_steps": 8, **options})
    told = capsys.readouterr().out
    assert "notice: changed on resuming: max_train_steps was 2, is 8" in told
    assert "notice: the schedule ends at step 6, the run at 8: the last 2 step(s)" in told


def test_no_run_is_kept_among_the_checkpoints_of_another(sample, tmp_path):
    run_dir = tmp_path / "run"
    gpt = {"max_train_steps": 1, "eval_every": 0}
    plain_run.train(run_dir, sample, gpt=gpt)
    for inside in (run_dir / "checkpoints", run_dir / "checkpoints" / "global_step1" / "mine"):
        with pytest.raises(UserError) as caught:
            plain_run.train(inside, sample, gpt=gpt)
        assert str(caught.value) == (
            f"--run_dir {inside} is among the checkpoints of the run {run_dir}: name a folder"
            " outside of it"
        )
    assert not list((run_dir / "checkpoints").rglob("metrics.jsonl"))
