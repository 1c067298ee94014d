"""Runs whose ranks choose their kernels."""

import os
import subprocess
import sys

from conftest import ROOT, write_run

from gpt.cluster import roll_call


def ranks(tmp_path, port, config, *options, environments):
    """[(exit code, stdout, stderr)] of train.py as so many ranks."""
    processes = []
    for rank, environment in enumerate(environments):
        env = {
            **os.environ,
            "WORLD_SIZE": str(len(environments)),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        command = [sys.executable, ROOT / "gpt/train.py", "--ds_config", config, *options]
        processes.append(
            subprocess.Popen(
                list(map(str, command)),
                cwd=tmp_path,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    ended = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, ended)]


def test_ranks_that_would_run_different_kernels(sample, tmp_path):
    """One has Triton, by its interpreter, the other none: all end with a sentence that names it,
    and no folder is made."""
    config = write_run(tmp_path, gpt={"data_root": str(sample), "kernels": "triton"})
    for code, _, error in ranks(
        tmp_path, 29871, config, environments=[{"TRITON_INTERPRET": "1"}, {}]
    ):
        assert code == 2 and "Traceback" not in error
        if error:
            assert error.startswith(
                "error: the ranks differ in kernels: triton (as asked for) for rank 0 on "
            )
            assert (
                ', none (kernels is "triton", but there is no CUDA device: ' in error
                and error.count("\n") == 1
            )


def test_the_same_kernels_for_different_reasons():
    def differ(*facts):
        return roll_call._difference(
            {
                rank: {"size": 2, "host": f"node{rank}", "facts": {"kernels": fact}}
                for rank, fact in enumerate(facts)
            }
        )

    assert differ("torch (there is no C compiler)", "torch (there is no CUDA device)") is None
    assert differ("triton (as asked for)", "triton (as asked for)") is None
    assert (
        differ("triton (each was right)", "torch (there is no C compiler)")
        == "the ranks differ in kernels: triton (each was right) for rank 0 on node0, torch (there"
        " is no C compiler) for rank 1 on node1: make them the same on all hosts; nothing was"
        " trained"
    )


def test_the_reason_is_in_a_runs_first_line(sample, tmp_path):
    """One step of a run with Triton's interpreter, whose kernels pass their trial, and one without
    Triton."""
    gpt = {
        "data_root": str(sample),
        "max_train_steps": 1,
        "n_layers": 1,
        "seq_len": 8,
        "last_n": 8,
        "eval_every": 0,
    }
    config = write_run(tmp_path, train_batch_size=1, gradient_accumulation_steps=1, gpt=gpt)
    for kernels, environment, words in (
        ("triton", {"TRITON_INTERPRET": "1"}, "kernels: triton (as asked for), attention: "),
        ("auto", {}, "kernels: torch (there is no CUDA device"),
    ):
        options = ("--kernels", kernels, "--run_dir", f"runs/{kernels}")
        ((code, out, error),) = ranks(tmp_path, 29874, config, *options, environments=[environment])
        lines = [line for line in out.splitlines() if not line.startswith("notice: ")]
        assert code == 0 and words in lines[0], out + error


def test_triton_asked_for_in_vain(sample, tmp_path):
    config = write_run(tmp_path, gpt={"data_root": str(sample)})
    ends = ranks(tmp_path, 29873, config, "--kernels", "triton", environments=[{}, {}])
    assert [code for code, _, _ in ends] == [2, 2]
    assert (
        "".join(error for _, _, error in ends)
        == 'error: kernels is "triton", but there is no CUDA device: set TRITON_INTERPRET=1 to try '
        'them, slowly, on the CPU, or set kernels to "auto" or "torch"\n'
    )
    assert not (tmp_path / "runs").exists()
