"""tools/slurm.sbatch under Slurm itself, on two hosts made of namespaces: which jobs queue
themselves again, and which do not."""

import json
import re
import time

import hosts
import pytest
import slurm_cluster
from conftest import ROOT, environment, read_metrics, write_run

reason = hosts.missing() or slurm_cluster.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=str(reason))]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    two = hosts.Hosts(2, tmp_path_factory.mktemp("slurm"))
    try:
        yield slurm_cluster.Slurm(two)
    finally:
        two.close()


@pytest.fixture
def submit(slurm, sample, tmp_path):
    """submit("--time=3", max_train_steps=…) -> the number of a job of the script, with a task on
    each host. Its folder is tmp_path, its run is tmp_path/run."""
    (tmp_path / "gpt").symlink_to(ROOT / "gpt")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    path = environment()["PATH"]
    (tmp_path / ".venv/bin/activate").write_text(f"export PATH={path}\n")
    jobs = []

    def submit(*options, max_train_steps=10**6, train_options=()):
        gpt = {"data_root": str(sample), "run_dir": "run", "max_train_steps": max_train_steps}
        write_run(tmp_path, gpt={**gpt, "log_terminal_every": 0})
        shape = ["--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1"]
        said = slurm.run(
            *["sbatch", *shape, *options, ROOT / "tools/slurm.sbatch"],
            *["--ds_config", "tiny.json", *train_options],
            cwd=tmp_path,
        )
        jobs.append(int(re.search(r"Submitted batch job (\d+)", said)[1]))
        return jobs[-1]

    yield submit
    for job in jobs:
        slurm.run("scancel", str(job))
        slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED")


def said(folder, job):
    return (folder / f"slurm-{job}.out").read_text()


def steps_of(folder):
    metrics = folder / "run/metrics.jsonl"
    return (
        [event["step"] for event in read_metrics(folder / "run", "train")]
        if metrics.exists()
        else []
    )


def wait_for_steps(folder, more_than=5, seconds=120):
    end = time.monotonic() + seconds
    while not steps_of(folder) or steps_of(folder)[-1] <= more_than:
        assert time.monotonic() < end, "the first steps did not come"
        time.sleep(0.2)


def let_it_end(folder):
    """Have the run end a few steps after those that are saved."""
    last = steps_of(folder)[-1] + 3
    config = json.loads((folder / "tiny.json").read_text())
    config["gpt"]["max_train_steps"] = last
    (folder / "tiny.json").write_text(json.dumps(config))
    return last


def check_that_it_resumed_and_ended(slurm, folder, job, signal):
    stopped_at = read_metrics(folder / "run", "stopped")[-1]["step"]
    last = let_it_end(folder)
    ended = slurm.wait_for_state(job, "COMPLETED", seconds=240)
    assert ended["Restarts"] == "1" and ended["ExitCode"] == "0:0"
    output = said(folder, job)
    assert f"stopped by {signal} and saved after step {stopped_at} of 1000000" in output
    assert "the run is not done: the job queues itself again" in output
    assert f"done: {last} steps" in output
    assert steps_of(folder) == list(range(1, last + 1))
    assert not (folder / f"slurm-{job}.stopped").exists()


def test_a_preempted_job_queues_itself_again_and_ends(slurm, submit, tmp_path):
    job = submit()
    wait_for_steps(tmp_path)
    slurm.run("srun", "--partition=high", "-N2", "--exclusive", "sleep", "1")
    slurm.wait_for_state(job, "PENDING")
    check_that_it_resumed_and_ended(slurm, tmp_path, job, "SIGTERM")


def test_a_job_that_is_preempted_before_it_trains_queues_itself_again(slurm, submit, tmp_path):
    job = submit(max_train_steps=3)
    while "State=RUNNING" not in slurm.run("scontrol", "show", "step", f"{job}.0"):
        time.sleep(0.2)
    slurm.run("srun", "--partition=high", "-N2", "--exclusive", "sleep", "1")
    slurm.wait_for_state(job, "PENDING")
    assert steps_of(tmp_path) == []
    # it fails then, and is not taken for preempted any more
    (tmp_path / "tiny.json").write_text("{}")
    ended = slurm.wait_for_state(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1"), said(tmp_path, job)


def test_a_job_whose_time_ends_queues_itself_again_and_ends(slurm, submit, tmp_path):
    job = submit("--time=3")
    wait_for_steps(tmp_path)
    slurm.wait_for_state(job, "PENDING", seconds=180)
    check_that_it_resumed_and_ended(slurm, tmp_path, job, "SIGUSR1")


def test_a_job_that_is_done_stays_so(slurm, submit, tmp_path):
    job = submit(max_train_steps=3)
    ended = slurm.wait_for_state(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), said(tmp_path, job)
    assert "done: 3 steps" in said(tmp_path, job)


def test_a_job_that_fails_stays_so(slurm, submit, tmp_path):
    job = submit(train_options=["--n_layer", "3"])
    ended = slurm.wait_for_state(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")
    assert "unknown option --n_layer (did you mean '--n_layers'?)" in said(tmp_path, job)


def test_a_job_that_is_cancelled_saves_and_stays_so(slurm, submit, tmp_path):
    job = submit()
    wait_for_steps(tmp_path)
    slurm.run("scancel", str(job))
    slurm.wait_for_state(job, "CANCELLED")
    time.sleep(20)  # as long as a job waits that queues itself again
    ended = slurm.job(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), said(tmp_path, job)
    assert "stopped by SIGTERM and saved after step " in said(tmp_path, job)


def test_a_killed_rank_ends_the_job(slurm, submit, tmp_path):
    job = submit()
    wait_for_steps(tmp_path)
    slurm.run("scancel", "--signal=KILL", f"{job}.0")
    ended = slurm.wait_for_state(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), said(tmp_path, job)
