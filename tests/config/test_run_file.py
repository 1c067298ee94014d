"""The file of a run: JSON, or the config.yaml of an earlier run, which is solved again."""

import pytest
import yaml
from conftest import ROOT, tiny_run

from gpt.compute.dry_run import report
from gpt.config.identity import curve
from gpt.config.resolve import load, resolve
from gpt.config.saved import as_dict
from gpt.errors import UserError


def limited(limit, batch=8, **options):
    # heads as wide as the stream together, so that no notice tells of them
    return tiny_run(
        gpt={"head_dim": 16},
        train_batch_size=batch,
        train_micro_batch_size_per_gpu=limit,
        gradient_accumulation_steps=None,
        **options,
    )


def saved(config, folder):
    """The config.yaml that a run of this configuration leaves."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(as_dict(config)))
    return path


def test_a_runs_config_yaml_asks_again_for_what_was_asked(tmp_path):
    first = resolve(limited(32, 256), "tiny", 64)
    assert (first.batch.micro_size, first.batch.accumulation) == (4, 1)
    again = load(saved(first, tmp_path), 64)
    assert (again.batch, again.deepspeed, again.options) == (
        first.batch,
        first.deepspeed,
        first.options,
    )
    # whatever was solved before
    for ranks, expected in ((1, (32, 8)), (8, (32, 1)), (128, (2, 1))):
        moved = load(saved(load(tmp_path / "config.yaml", ranks), tmp_path), ranks)
        assert (moved.batch.micro_size, moved.batch.accumulation) == expected
        assert moved.batch.micro_limit == 32
        assert curve(as_dict(moved)) == curve(as_dict(first))


def test_a_runs_config_yaml_tells_where_its_values_stand(tmp_path):
    path = saved(resolve(limited(32, 256), "tiny", 64), tmp_path)
    text = path.read_text().splitlines()
    config = load(path, 8)
    sources = {where: source for where, _, source in config.values()}
    for where in ("gpt.h_dim", "gpt.seed", "train_batch_size", "zero_optimization.stage"):
        file, number = sources[where].split(":")
        assert file == "config.yaml"
        assert text[int(number) - 1].split(":")[0].strip() == where.rpartition(".")[2]
    number = text.index("  train_micro_batch_size_per_gpu: 4") + 1
    source = sources["train_micro_batch_size_per_gpu"]
    assert source.startswith(f"derived: at most 32 asked for (config.yaml:{number})")
    path.write_text(path.read_text().replace("h_dim: 32", "h_dim: 0"))
    with pytest.raises(UserError, match=r"^config.yaml:\d+: gpt.h_dim is 0, must be at least 1"):
        load(path)


def test_a_runs_config_yaml_keeps_an_accumulation_that_was_asked_for(tmp_path):
    first = resolve(tiny_run(gradient_accumulation_steps=2), "tiny", 1)
    moved = load(saved(first, tmp_path), 2)
    batch = moved.batch
    assert (batch.micro_size, batch.accumulation, batch.micro_limit) == (2, 2, None)
    tree = as_dict(first)
    # and one without the asked-for number, as an edited or an older file
    tree["batch"] = "edited"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert load(tmp_path / "config.yaml", 2).batch == moved.batch


def test_checkpoints_do_not_depend_on_how_a_batch_was_shared_out():
    """A run that began with a fixed accumulation goes on with a limit."""
    exact = resolve(tiny_run(gpt={"head_dim": 16}, gradient_accumulation_steps=4), "tiny", 2)
    at_most = resolve(limited(4), "tiny", 2)
    assert exact.batch.micro_size != at_most.batch.micro_size
    assert curve(as_dict(exact)) == curve(as_dict(at_most))


@pytest.mark.parametrize(
    "limit, batch, ranks, notice",
    [
        (32, 256, 8, None),
        (32, 128, 8, None),
        (4, 8, 1, None),
        (32, 8, 1, None),
        (
            32,
            256,
            64,
            (
                "train_micro_batch_size_per_gpu allows 32 sequences per forward pass, but each of"
                " 64 rank(s) takes 4, its whole share of train_batch_size 256: fewer GPUs, or a"
                " larger batch, would fill them better"
            ),
        ),
        (
            32,
            254,
            1,
            (
                "train_micro_batch_size_per_gpu allows 32 sequences per forward pass, but each of 1"
                " rank(s) takes 2, the largest divisor of its 254 of train_batch_size 254: another"
                " number of GPUs, or another batch, would divide better"
            ),
        ),
    ],
)
def test_a_micro_batch_far_below_its_limit_is_told(limit, batch, ranks, notice):
    config = resolve(limited(limit, batch), "tiny", ranks)
    assert config.notices == ((notice,) if notice else ())
    assert config.without_fp16("slow").notices == (*config.notices, "slow")
    assert (f"notice         {notice}" in report(config, None)) == bool(notice)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "line 1, column 2: not valid JSON"),
        ('{"gpt": {}, "gpt": {}}', "the key 'gpt' stands twice in one block"),
        ("[]", "x.json: the file is [], not a block {…}"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, text, sentence):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert sentence in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(
        UserError, match=f"cannot read the config {tmp_path}/no.json: No such file or directory"
    ):
        load(tmp_path / "no.json")


def test_a_missing_file_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("ds_configs/quickstrat.json", "quickstart.jsn", "quickstart"):
        with pytest.raises(UserError) as caught:
            load(name)
        assert str(caught.value).endswith("(did you mean 'ds_configs/quickstart.json'?)")


@pytest.mark.parametrize("levels", [30, 600, 100_000])
@pytest.mark.parametrize("name", ["x.json", "config.yaml"])
def test_thousands_of_nested_brackets_are_a_mistake(tmp_path, name, levels):
    path = tmp_path / name
    path.write_text("[" * levels + "]" * levels)
    with pytest.raises(UserError):
        load(path)
    path.write_text('{"run": ' + '{"run": ' * levels + "1" + "}" * levels + "}")
    with pytest.raises(UserError):
        load(path)
