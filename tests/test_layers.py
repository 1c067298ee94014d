"""Which folder may import which: downwards only, one file imports deepspeed, no circle anywhere."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

# From the ground up. What stands on one floor may use its neighbours, as long as no circle arises.
FLOORS = [
    {
        "gpt.errors",
        "gpt.escaping",
        "gpt.files",
        "gpt.locking",
        "gpt.parsing",
        "gpt.reading",
        "gpt.standard_streams",
        "gpt.wording",
    },
    {"gpt.kernels", "gpt.cluster"},
    {"gpt.config", "gpt.data"},
    {
        "gpt.model",
        "gpt.architecture",
        "gpt.optimizers",
        "gpt.variants",
        "gpt.evaluation",
        "gpt.quantities",
        "gpt.compute",
        "gpt.contract",
        "gpt.prepare",
    },
    {"gpt.metrics", "gpt.checkpoint"},
    {"gpt.engine", "gpt.convert", "gpt.results", "gpt.eval", "gpt.generate"},
    {"gpt.training", "gpt.referee", "gpt.packs"},
    {"gpt.train", "tools"},
]
FORBIDDEN = [("gpt.config", "gpt.data"), ("gpt.data", "gpt.config"), ("gpt.metrics", "gpt.engine")]
BOUNDARY = "gpt.engine.boundary"
# Read by commands that must answer at once, or that set what torch reads as it is imported.
WITHOUT_TORCH = (
    "gpt.config",
    "gpt.data",
    "gpt.quantities",
    "gpt.cluster.launch",
    "gpt.cluster.host_report",
)


@cache
def modules() -> dict[str, Path]:
    files = [*(ROOT / "gpt").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


@cache
def imports_of(name: str) -> tuple[str, ...]:
    """Modules that a module imports, at its top or inside of its functions."""
    found = []
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [member if member in modules() else node.module for member in members]
    # a tool that is imported by its bare name, as a script finds the file beside it
    beside = {
        imported: f"tools.{imported}" for imported in found if f"tools.{imported}" in modules()
    }
    return tuple(beside.get(imported, imported) for imported in found)


def place_of(module: str) -> str:
    """The folder of a module, or the module itself where it stands beside the folders."""
    return ".".join(module.split(".")[:2]) if module.startswith("gpt.") else module.split(".")[0]


def arrows() -> list[tuple[str, str]]:
    ours = [(a, b) for a in modules() for b in imports_of(a) if b in modules()]
    return [(a, b) for a, b in ours if b != "gpt"]  # the version


def floor_of(place: str) -> int:
    return next(floor for floor, places in enumerate(FLOORS) if place in places)


def test_every_place_has_a_floor():
    places = {place_of(name) for name in modules()} - {"gpt"}
    assert places == set().union(*FLOORS)


def test_nothing_imports_upwards():
    crossing = [(a, b) for a, b in arrows() if place_of(a) != place_of(b)]
    assert len(crossing) > 100
    upwards = [(a, b) for a, b in crossing if floor_of(place_of(a)) < floor_of(place_of(b))]
    assert upwards == []


@pytest.mark.parametrize("importer, imported", FORBIDDEN)
def test_neighbours_that_must_not_know_each_other(importer, imported):
    assert [(a, b) for a, b in arrows() if (place_of(a), place_of(b)) == (importer, imported)] == []


@pytest.mark.parametrize("of", [place_of, str], ids=["folders", "modules"])
def test_no_circle(of):
    below = {}
    for importer, imported in arrows():
        if of(importer) != of(imported):
            below.setdefault(of(importer), set()).add(of(imported))
    while below:
        ground = [name for name, others in below.items() if not others & set(below)]
        assert ground, f"these import each other in a circle, or stand on one: {sorted(below)}"
        for name in ground:
            del below[name]


def test_one_file_imports_deepspeed():
    importers = {
        name
        for name in modules()
        for other in imports_of(name)
        if other.split(".")[0] == "deepspeed"
    }
    assert importers == {BOUNDARY}


def test_what_must_not_load_torch_does_not():
    def reached(name, seen):
        if name not in seen and name in modules():
            seen[name] = None
            for other in imports_at_the_top(name):
                reached(other, seen)
        return seen

    starts = [name for name in modules() if name.startswith(WITHOUT_TORCH)]
    assert len(starts) > 15
    for start in starts:
        for name in reached(start, {}):
            packages = {other.split(".")[0] for other in imports_at_the_top(name)}
            assert "torch" not in packages, f"{start} loads torch by {name}"


def imports_at_the_top(name: str) -> list[str]:
    """Modules that are loaded as soon as a module is."""
    found = []
    for node in ast.parse(modules()[name].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [member if member in modules() else node.module for member in members]
    return found


def test_no_name_in_gpt_hides_a_module_of_others():
    """`deepspeed gpt/train.py` has gpt/ first on the path for a moment."""
    ours = {name.split(".")[1] for name in modules() if name.startswith("gpt.")}
    assert ours.isdisjoint(sys.stdlib_module_names)
    installed = {"torch", "numpy", "deepspeed", "sentencepiece", "yaml", "safetensors", "tqdm"}
    installed |= {"psutil", "google", "tensorboard", "wandb", "datasets", "transformers", "scipy"}
    assert ours.isdisjoint(installed)


def test_a_package_says_what_it_holds_and_hands_nothing_on():
    for name, path in modules().items():
        if path.name == "__init__.py" and name.startswith("gpt."):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree) and len(tree.body) == 1, name
