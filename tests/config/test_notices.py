"""What a user is told of values that are no mistake."""

import pytest
from conftest import tiny_run

from gpt.config.resolve import resolve

COSINE = {"max_lr": 3e-3, "min_lr": 3e-4, "warmup_steps": 0}


def notices_of(overrides=None, **options):
    # heads that fill the stream, so that no notice tells of them
    gpt = {"head_dim": 16, **options.pop("gpt", {})}
    return resolve(tiny_run(gpt=gpt, **options), "tiny", 1, overrides).notices


def scheduler(kind, **params):
    return {
        "scheduler": {"type": kind, "params": params},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    }


def test_a_run_shorter_than_its_schedule_is_told():
    tree = {"scheduler": {"type": "LanguiniCosineLR", "params": {**COSINE, "decay_steps": 12}}}
    # half of the cosine: the mean of its ends
    assert notices_of(**tree) == (
        "the schedule ends at step 12, the run at 6: the learning rate comes down to 0.00165 there,"
        " not to min_lr 0.0003; for one of the run's length give --decay_steps 6",
    )


def test_a_run_longer_than_its_schedule_is_told_how_to_extend_it():
    assert notices_of({"gpt.max_train_steps": 10}) == (
        "the schedule ends at step 6, the run at 10: the last 4 step(s) are made at min_lr; for one"
        " of the run's length give --decay_steps 10, and --allow_change"
        " scheduler.params.decay_steps where the run has begun",
    )


@pytest.mark.parametrize("steps", [6, 0])
def test_nothing_is_told_of_a_schedule_that_fits(steps):
    assert notices_of({"gpt.max_train_steps": steps}) == ()


@pytest.mark.parametrize(
    "kind, params, words",
    [
        (
            "WarmupDecayLR",
            {"warmup_max_lr": 1e-3, "warmup_num_steps": 2, "total_num_steps": 4},
            "the last 2 step(s) are made at a learning rate of 0; for one of the run's length give"
            " --scheduler.params.total_num_steps 6",
        ),
        (
            "WarmupCosineLR",
            {"warmup_num_steps": 2, "total_num_steps": 9},
            "the schedule ends at step 9, the run at 6: the learning rate does not come down",
        ),
        (
            "WarmupLR",
            {},
            "warm-up ends at step 1000, the run at 6: the learning rate never reaches",
        ),
        (
            "OneCycle",
            {
                "cycle_min_lr": 1e-4,
                "cycle_max_lr": 1e-3,
                "cycle_momentum": False,
                "cycle_first_step_size": 2,
            },
            "the schedule ends at step 4, the run at 6",
        ),
    ],
)
def test_schedulers_of_deepspeed_have_a_length_too(kind, params, words):
    assert words in " ".join(notices_of(**scheduler(kind, **params)))


def test_a_schedule_that_decays_for_ever_has_no_end():
    params = {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3, "cycle_momentum": False}
    tree = scheduler("OneCycle", **params, cycle_first_step_size=2, decay_step_size=2)
    assert not any("ends at step" in notice for notice in notices_of(**tree))


def test_a_learning_rate_that_nothing_reads_is_told():
    tree = scheduler("WarmupLR", warmup_max_lr=2e-3, warmup_num_steps=2)
    assert notices_of(**tree) == (
        "optimizer.params.lr 0.001 has no effect: WarmupLR goes by warmup_max_lr",
    )


def preset(name, **shape):
    own = dict.fromkeys(("n_layers", "h_dim", "mlp_dim", "n_heads", "head_dim"))
    return {"gpt": {**own, "preset": name, **shape}}


@pytest.mark.parametrize("name", ["nano", "mini", "XL"])
def test_a_preset_has_the_shape_that_is_meant(name):
    assert notices_of(**preset(name)) == ()


def test_a_shape_that_an_override_made_by_halves_is_told():
    heads = "the heads are together {} wide ({} x 32), the stream is {}: give --n_heads and"
    assert heads.format(256, 8, 128) in notices_of(**preset("nano", n_heads=8))[0]
    wide = notices_of({"gpt.h_dim": 256}, **preset("nano"))
    assert heads.format(128, 4, 256) in wide[0]
    assert wide[1] == (
        "mlp_dim is still the preset's 512, and h_dim 256: give --mlp_dim 1024 for an MLP 4 times"
        " as wide"
    )
    assert notices_of(**preset("nano", h_dim=256, n_heads=8, mlp_dim=512)) == ()


def test_keys_without_effect_are_told():
    zero = {"stage": 1, "allgather_partitions": True, "stage3_max_live_parameters": 1e9}
    assert notices_of(zero_optimization=zero) == (
        "without effect: zero_optimization.allgather_partitions (ds_configs/README.md tells why)",
        "without effect at ZeRO stage 1, being of stage 3:"
        " zero_optimization.stage3_max_live_parameters",
    )
    zero = {"stage": 3, "stage3_max_live_parameters": 1e9}
    assert notices_of(zero_optimization=zero) == ()


def test_a_division_that_stage_1_ignores_is_told():
    assert notices_of(prescale_gradients=True) == (
        "prescale_gradients has no effect at ZeRO stage 1 unless reduce_scatter is false",
    )
    zero = {"stage": 1, "reduce_scatter": False}
    assert notices_of(prescale_gradients=True, zero_optimization=zero) == ()
    assert notices_of(prescale_gradients=False, gradient_predivide_factor=1.0) == ()


def test_how_often_deepspeed_prints_is_left_out():
    assert notices_of(steps_per_print=10) == (
        'steps_per_print is left out: progress is printed by "gpt": {"log_terminal_every"},'
        " details by --verbose",
    )


def test_a_bucket_of_many_models_is_told():
    zero = {"stage": 1, "reduce_bucket_size": 5e8}
    parameters = resolve(tiny_run(), "tiny").model.parameters()
    assert any(
        notice.startswith("zero_optimization.reduce_bucket_size 500,000,000 takes 2.0 GB")
        for notice in notices_of(zero_optimization=zero)
    )
    zero["reduce_bucket_size"] = parameters
    assert notices_of(zero_optimization=zero) == ()


def test_the_command_line_replaces_the_files_optimizer(tmp_path):
    (tmp_path / "mine.py").write_text("def build(named_parameters): ...")
    adam = {"optimizer": {"type": "Adam", "params": {"betas": [0.9, 0.98], "eps": 1e-9}}}
    own = {"gpt.optimizer_file": str(tmp_path / "mine.py")}
    replaced, on_trial = notices_of(own, **adam)
    assert replaced == "optimizer of the file is left out: gpt.optimizer_file replaces it"
    assert on_trial.startswith("optimizer_file is taken to work element by element, as ZeRO stage")
    assert notices_of({"optimizer.type": "Lion"}, **adam) == (
        "optimizer.params of the file that Lion does not have are left out: eps",
    )
    assert notices_of({"optimizer.type": "Muon"}, gpt={"optimizer_file": "mine.py"}) == (
        "gpt.optimizer_file of the file is left out: --optimizer.type replaces it",
    )
