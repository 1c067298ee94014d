import dataclasses
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from conftest import write_run

from gpt.cluster import roll_call
from gpt.config.shape import ModelConfig
from gpt.errors import RunError, UserError
from gpt.kernels import cross_entropy, gelu, layer_norm, trial, triton_shared
from gpt.kernels.choice import choose, require_compiler

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1"}


def run_interpreted(*options):
    """The kernels' own tests, in a process of their own: one that has imported triton without
    TRITON_INTERPRET, as DeepSpeed's import does, cannot interpret kernels any more, and one that
    interprets them cannot compile them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/support/interpreted_kernels.py",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=INTERPRETED, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_kernels_against_float64():
    run_interpreted("-x")


@pytest.mark.slow
def test_all_sizes_against_float64():
    run_interpreted("-m", "slow")


MODEL = ModelConfig(
    n_layers=2, h_dim=64, mlp_dim=96, n_heads=2, head_dim=8, vocab_size=300, seq_len=32
)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability): what torch says of GPU 1 of two that are not here, beside an installed
    triton. `tried` is what the trial of the kernels finds; None: it runs, on the CPU."""

    def pretend(capability, installed=True, interpreted=False, tried=lambda *args: None):
        asked = {GPU: capability, 1: capability}
        trial_of_this_process = trial.problem
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: asked[device])
        monkeypatch.setattr(triton_shared, "OBSTACLE", None if installed else NOT_INSTALLED)
        monkeypatch.setattr(triton_shared, "interpreted", lambda: installed and interpreted)
        monkeypatch.setattr(
            trial, "problem", tried or (lambda device, *rest: trial_of_this_process(CPU, *rest))
        )
        return CPU if capability is None else GPU

    return pretend


NOT_INSTALLED = (
    "the package triton is not installed",
    "install torch's build for CUDA, which brings it",
)
MACHINES = [  # capability, triton installed, interpreted, auto's choice, words of its reason
    ((8, 0), True, False, "triton", "each was tried on the GPU, and was right"),
    ((9, 0), True, False, "triton", "each was tried on the GPU, and was right"),
    ((7, 5), True, False, "torch", "capability 7.5 is below 8.0"),
    ((8, 0), False, False, "torch", "triton is not installed"),
    (None, True, False, "torch", "no CUDA device"),
    (None, False, False, "torch", "triton is not installed"),
    ((8, 0), True, True, "torch", "TRITON_INTERPRET is set"),
    (None, True, True, "torch", "TRITON_INTERPRET is set"),
]


@pytest.mark.parametrize("capability, installed, interpreted, expected, words", MACHINES)
def test_automatic_choice(gpu, capability, installed, interpreted, expected, words):
    device = gpu(capability, installed, interpreted)
    choice, reason = choose("auto", device, MODEL, torch.float16)
    assert choice == expected and words in reason and reason.count("\n") == 0
    assert choose("torch", device, MODEL, torch.float16)[0] == "torch"


@pytest.mark.parametrize(
    "capability, installed, interpreted, remedy",
    [
        ((7, 5), True, False, "take a newer GPU"),
        ((8, 0), False, False, "install torch's build for CUDA, which brings it"),
        (None, True, False, "TRITON_INTERPRET=1"),
    ],
)
def test_triton_where_it_cannot_run(gpu, capability, installed, interpreted, remedy):
    with pytest.raises(UserError, match=remedy) as caught:
        choose("triton", gpu(capability, installed, interpreted), MODEL, torch.float16)
    assert 'set kernels to "auto" or "torch"' in str(caught.value)


def test_triton_where_it_runs(gpu):
    assert choose("triton", gpu((8, 6)), MODEL, torch.float16) == ("triton", "as asked for")
    assert choose("triton", gpu(None, interpreted=True), MODEL, torch.float16)[0] == "triton"


def test_a_device_that_is_not_there(gpu):
    gpu((8, 6))
    assert choose("auto", torch.device("cuda", 2), MODEL, torch.float16) == (
        "torch",
        "there is no device cuda:2",
    )


def test_what_the_trial_finds_decides(gpu):
    device = gpu((9, 0), tried=lambda *args: ("Triton's GELU kernels fail here (so)", "do this"))
    assert choose("auto", device, MODEL, torch.float16) == (
        "torch",
        "Triton's GELU kernels fail here (so)",
    )
    with pytest.raises(UserError) as caught:
        choose("triton", device, MODEL, torch.float16)
    assert (
        str(caught.value)
        == 'kernels is "triton", but Triton\'s GELU kernels fail here (so): do this, or set kernels'
        ' to "auto" or "torch"'
    )


def test_a_model_that_is_too_wide(gpu):
    device = gpu((9, 0))
    widths = [dataclasses.replace(MODEL, h_dim=width) for width in (8192, 8193)]
    assert choose("auto", device, widths[0], torch.float16)[0] == "triton"
    too_wide = "h_dim 8,193 is wider than the 8,192 that its LayerNorm takes"
    assert choose("auto", device, widths[1], torch.float16) == ("torch", too_wide)
    with pytest.raises(
        UserError,
        match='h_dim 8,193 .*: take a narrower model, or set kernels to "auto" or "torch"',
    ):
        choose("triton", device, widths[1], torch.float16)


# ---- Triton that cannot start, each by what it really does then


@pytest.fixture
def triton_itself(gpu, monkeypatch, tmp_path):
    """(choice, reason) by a trial in which Triton looks for its driver as it does beside a GPU."""
    if triton_shared.OBSTACLE is not None or triton_shared.interpreted():
        pytest.skip("triton is not installed, or interprets")
    device = gpu((9, 0), tried=None)
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    forget_compilations()
    yield lambda kernels="auto": choose(kernels, device, MODEL, torch.float16)
    forget_compilations()


def forget_compilations():
    """What a driver that is none has been given shall serve no other."""
    for module in (trial, layer_norm, gelu, cross_entropy):
        for kernel in vars(module).values():
            if hasattr(kernel, "device_caches"):
                kernel.device_caches.clear()


def test_without_a_c_compiler(triton_itself, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = "Triton does not work here (there is no C compiler: no gcc or clang on the PATH)"
    assert triton_itself() == ("torch", reason)
    with pytest.raises(UserError) as caught:
        triton_itself("triton")
    assert (
        str(caught.value)
        == f'kernels is "triton", but {reason}: install gcc and Python\'s headers, or set'
        " kernels to "
        '"auto" or "torch"'
    )


def test_a_c_compiler_that_is_not_there(triton_itself, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert (
        triton_itself()[1]
        == "Triton does not work here (there is no C compiler: no no-such-compiler on the PATH)"
    )


needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="there is no gcc")


@needs_gcc
def test_without_pythons_headers(triton_itself, monkeypatch, tmp_path):
    paths = {**sysconfig.get_paths(), "include": str(tmp_path / "include")}
    monkeypatch.setattr(sysconfig, "get_paths", lambda *args, **kwargs: paths)
    assert triton_itself() == (
        "torch",
        f"Triton does not work here ({tmp_path}/include/Python.h is not there)",
    )


@needs_gcc
def test_without_a_driver(triton_itself, tmp_path, monkeypatch):
    # libcuda.so.1 is to be in tmp_path, and is not
    assert triton_itself()[1].startswith("Triton does not work here (")
    (tmp_path / "libcuda.so.1").write_text("no library")
    assert triton_itself() == ("torch", "Triton does not work here (gcc ended with exit code 1)")


def test_a_cache_that_cannot_be_written(triton_itself, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert (
        triton_itself()[1] == f"Triton does not work here ({tmp_path}/file/cache: Not a directory)"
    )
    with pytest.raises(UserError, match="set TRITON_CACHE_DIR to a folder that can be written"):
        triton_itself("triton")


class RefusingDriver:
    """A GPU that compiles everything and starts nothing."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    class utils:
        @staticmethod
        def load_binary(*args):
            raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")

        @staticmethod
        def get_device_properties(device):
            return {
                "max_shared_mem": 232448,
                "max_num_regs": 65536,
                "warpSize": 32,
                "multiprocessor_count": 132,
            }

    @staticmethod
    def launcher_cls(source, metadata):
        return None

    map_python_to_cpp_type = staticmethod(str)


def test_a_driver_that_refuses(triton_itself, monkeypatch):
    from triton.runtime.driver import driver

    monkeypatch.setattr(type(driver), "active", RefusingDriver())
    choice, reason = triton_itself()
    assert (
        choice == "torch"
        and "Triton does not work here (RuntimeError: Triton Error [CUDA]: device kernel image is"
        " invalid"
        in reason
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_trial_starts_every_kernel(triton_itself, monkeypatch, dtype):
    """Through Triton's own just-in-time path, compiled for an H100 that starts nothing."""
    from triton.runtime.driver import driver

    started = []

    class IdleDriver(RefusingDriver):
        class utils(RefusingDriver.utils):
            load_binary = staticmethod(lambda *args: (1, 1, 32, 0, 1024))

        class launcher_cls:
            launch_cooperative_grid = False

            def __init__(self, source, metadata):
                self.name = f"{source.fn.fn.__module__.rpartition('.')[2]}.{source.fn.fn.__name__}"

            def __call__(self, *args):
                started.append(self.name)

    monkeypatch.setattr(type(driver), "active", IdleDriver())
    monkeypatch.setattr(
        trial, "_roundings_off", lambda found, exact: float(found.shape != exact.shape)
    )
    assert (
        trial.problem(CPU, MODEL, dtype)[0]
        == "Triton does not work here (AssertionError: 128 times 2 are 128)"
    )
    monkeypatch.setattr(trial, "_launch_one", lambda device: None)
    assert trial.problem(CPU, MODEL, dtype) is None
    once = ["layer_norm._layer_norm_forward_kernel", "layer_norm._layer_norm_backward_kernel"]
    assert started == [
        "trial._twice",
        *once,
        *once,
        "gelu._gelu_forward_kernel",
        "gelu._gelu_backward_kernel",
        "cross_entropy._cross_entropy_kernel",
        "cross_entropy._cross_entropy_kernel",
    ]


def test_an_error_that_costs_the_gpu(gpu, monkeypatch):
    """After an access out of bounds a process can do nothing more on its GPU, by any kernels."""

    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = gpu((9, 0), tried=None)
    monkeypatch.setattr(trial, "_launch_one", broken)
    assert choose("auto", device, MODEL, torch.float16)[0] == "torch"
    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(
        RunError,
        match=(
            "an illegal memory access .*, and since then cpu refuses everything .*: set kernels to"
            ' "torch"'
        ),
    ):
        choose("auto", device, MODEL, torch.float16)


def test_unknown_choice():
    with pytest.raises(UserError, match='"auto", "triton" or "torch"'):
        choose("cuda", CPU, MODEL, torch.float32)


def test_compiling_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError,
        match=(
            r"compile needs the compiler g\+\+, which is not on the PATH: install it .* compile to"
            r' "none"'
        ),
    ):
        require_compiler("cpu")


OTHER_TRITON = """
import sys, types
def other(version, **members):
    package = types.ModuleType("triton")
    package.__version__, package.__path__ = version, []
    sys.modules["triton"] = package
    sys.modules["triton.language"] = types.ModuleType("triton.language")
    package.language, package.jit = sys.modules["triton.language"], None
{}
import torch
from gpt.kernels.choice import choose
from gpt.kernels.cross_entropy import softmax_gradient_
from gpt.kernels.gelu import bias_gelu
from gpt.kernels.layer_norm import add_layer_norm
ones = torch.ones(4)
add_layer_norm(torch.randn(2, 4), torch.randn(2, 4), ones, ones)
bias_gelu(torch.randn(2, 4), ones)
softmax_gradient_(torch.randn(2, 4), torch.tensor([0, 3]), 1.0)
print(choose("auto", torch.device("cuda", 0), None, torch.float16))
choose("triton", torch.device("cuda", 0), None, torch.float16)
"""


@pytest.mark.parametrize(
    "what, reason, remedy",
    [
        (
            'sys.modules["triton"] = None',
            "the package triton is not installed",
            "install torch's build for CUDA",
        ),
        ('other("3.2.0")', "triton 3.2.0 is older than 3.4", "install torch 2.8 or newer"),
        ('other("3.10.0")', "triton cannot be imported (ImportError: ", "install torch anew"),
    ],
)
def test_another_triton(what, reason, remedy):
    done = subprocess.run(
        [sys.executable, "-c", OTHER_TRITON.format(what)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"('torch', \"{reason}" in done.stdout or f"('torch', '{reason}" in done.stdout, (
        done.stderr
    )
    assert (
        f'UserError: kernels is "triton", but {reason}' in done.stderr
        and f": {remedy}" in done.stderr
    )
    assert "pip install triton" not in done.stderr


# ---- Whole runs


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
    for kernels, environment, said in (
        ("triton", {"TRITON_INTERPRET": "1"}, "kernels: triton (as asked for), attention: "),
        ("auto", {}, "kernels: torch (there is no CUDA device"),
    ):
        options = ("--kernels", kernels, "--run_dir", f"runs/{kernels}")
        ((code, out, error),) = ranks(tmp_path, 29874, config, *options, environments=[environment])
        assert code == 0 and said in out.splitlines()[0], out + error


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


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 1000, 16384, 100_003])
@pytest.mark.parametrize("warps", [1, 4, 12, 32])
@pytest.mark.parametrize("multiprocessors", [82, 108])
def test_every_row_has_one_program(monkeypatch, rows, warps, multiprocessors):
    monkeypatch.setattr(triton_shared, "_multiprocessors", lambda index: multiprocessors)
    programs, per_program = triton_shared.share_rows(rows, warps, torch.device("cuda", 0))
    walked = [
        row
        for p in range(programs)
        for row in range(p * per_program, min((p + 1) * per_program, rows))
    ]
    assert walked == list(range(rows))
    assert programs * warps <= max(multiprocessors * triton_shared.RESIDENT_WARPS, warps)
    assert (programs - 1) * triton_shared.ROWS_PER_PROGRAM <= max(
        rows, triton_shared.ROWS_PER_PROGRAM
    )
