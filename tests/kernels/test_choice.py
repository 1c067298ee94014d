import dataclasses
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch
from conftest import ROOT

from gpt.config.shape import ModelConfig
from gpt.errors import RunError, UserError
from gpt.kernels import cross_entropy, gelu, layer_norm, trial, triton_shared
from gpt.kernels.choice import choose, require_compiler

MODEL = ModelConfig(
    n_layers=2, h_dim=64, mlp_dim=96, n_heads=2, head_dim=8, vocab_size=300, seq_len=32
)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability): what torch says of GPU 1 of two that are not here, beside an installed
    triton. `tried` is what the trial of the kernels finds; None: it runs, on the CPU."""

    def pretend(capability, installed=True, interpreted=False, tried=lambda *args: None):
        capabilities = {GPU: capability, 1: capability}
        trial_of_this_process = trial.problem
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device=0: capabilities[device]
        )
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


def all_kernels():
    """The names of every Triton kernel in gpt/kernels, with their modules'."""
    names = set()
    for path in (ROOT / "gpt" / "kernels").glob("*.py"):
        kernels = re.findall(r"^def (_\w+_kernel)\(", path.read_text(encoding="utf-8"), re.M)
        names.update(f"{path.stem}.{kernel}" for kernel in kernels)
    return names


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
        trial, "_roundings_off", lambda result, exact: float(result.shape != exact.shape)
    )
    assert (
        trial.problem(CPU, MODEL, dtype)[0]
        == "Triton does not work here (AssertionError: 128 times 2 are 128)"
    )
    monkeypatch.setattr(trial, "_launch_one", lambda device: None)
    assert trial.problem(CPU, MODEL, dtype) is None
    assert started[0] == "trial._twice"
    assert set(started[1:]) == all_kernels()


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
