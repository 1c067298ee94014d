"""What other trainers call a value leads to what it is called here, and never elsewhere."""

import pytest
from conftest import tiny_run

from gpt.config.command_line import OWN_FLAGS, parse_command_line
from gpt.config.keys import Key
from gpt.config.option_names import OVERRIDES, key_at
from gpt.config.resolve import resolve
from gpt.config.synonyms import ABSENT, SYNONYMS
from gpt.errors import UserError


def sentence_for(option):
    with pytest.raises(UserError) as caught:
        parse_command_line(["--ds_config", "x.json", option, "1"])
    return str(caught.value)


@pytest.mark.parametrize("option", ["--fp16.enabled", "--optimizer.type"])
def test_a_block_as_an_option_leads_to_the_value_in_it(option):
    block = option.rpartition(".")[0]
    with pytest.raises(UserError) as caught:
        parse_command_line(["--ds_config", "x.json", block, "--seed", "1"])
    assert str(caught.value) == f"command line: {block} needs a value (did you mean '{option}'?)"


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--lr", " (did you mean '--max_lr' or '--optimizer.params.lr'?)"),
        ("--learning_rate", " (did you mean '--max_lr' or '--optimizer.params.lr'?)"),
        ("--steps", " (did you mean '--max_train_steps'?)"),
        ("--max_steps", " (did you mean '--max_train_steps'?)"),
        ("--iters", " (did you mean '--max_train_steps'?)"),
        ("--batch_size", " (did you mean '--train_batch_size'?)"),
        ("--micro_batch", " (did you mean '--train_micro_batch_size_per_gpu'?)"),
        ("--dropout", ": the model has no dropout"),
        ("--weight_decay", " (did you mean '--optimizer.params.weight_decay'?)"),
        ("--beta2", " (did you mean '--optimizer.params.betas'?)"),
        ("--context_length", " (did you mean '--seq_len'?)"),
        ("--block_size", " (did you mean '--seq_len'?)"),
        ("--n_embd", " (did you mean '--h_dim'?)"),
        ("--n_head", " (did you mean '--n_heads'?)"),
        ("--n_layer", " (did you mean '--n_layers'?)"),
        (
            "--early_stopping",
            ": a run ends at max_train_steps, or by a signal, which saves it",
        ),
        ("--config", " (did you mean '--ds_config'?)"),
        ("--zero_stage", " (did you mean '--zero_optimization.stage'?)"),
        ("--grad_accum", " (did you mean '--gradient_accumulation_steps'?)"),
        ("--clip", " (did you mean '--grad_clip_norm'?)"),
        ("--output_dir", " (did you mean '--run_dir'?)"),
        ("--save_every", " (did you mean '--log_ckpt_every'?)"),
        ("--warmup", " (did you mean '--warmup_steps'?)"),
        ("--wandb_project", " (did you mean '--wandb_project_name'?)"),
        ("--master_port", ": it is the launcher's, and stands before gpt/train.py"),
        # a key of the JSON without its block
        ("--overlap_comm", " (did you mean '--zero_optimization.overlap_comm'?)"),
        # a refused one
        ("--autotuning", ": it changes the batch size: set train_batch_size"),
        # a typing mistake
        ("--max-lr", " (did you mean '--max_lr'?)"),
        # nothing is near
        ("--xyz", ""),
    ],
)
def test_an_unknown_option_leads_to_the_right_place(option, hint):
    assert sentence_for(option) == (
        f"command line: unknown option {option}{hint} (--help lists the options)"
    )


def test_an_option_of_a_tool_is_named_where_the_tool_has_it(load_tool):
    mistake = load_tool("sweep").mistake("--classes", "6h", "--out", "o", "--sedes", "1", "2")
    assert mistake.startswith("command line: unknown option --sedes (did you mean '--seeds'?)")


@pytest.mark.parametrize(
    "key, problem",
    [
        ("gpt.lr", "is not known there: it is scheduler.params.max_lr or optimizer.params.lr"),
        ("gpt.dropout", "is not a known key: the model has no dropout"),
        ("gpt.batch_size", "is not known there: it is train_batch_size"),
        ("gpt.n_layer", "is not a known key (did you mean 'n_layers'?)"),
        ("gpt.weight_decay", "is not known there: it is optimizer.params.weight_decay"),
        ("epochs", f"is not a known key: {ABSENT['epochs']}"),
        ("fp16.fp16", "is not a known key (did you mean 'enabled'?)"),
        ("comment", "is not known there: it belongs in gpt.comment"),
    ],
)
def test_a_key_of_another_trainer_leads_to_the_right_place(key, problem):
    tree = tiny_run()
    block, _, name = key.rpartition(".")
    (tree.setdefault(block, {}) if block else tree)[name] = 1
    with pytest.raises(UserError) as caught:
        resolve(tree, "tiny")
    assert str(caught.value) == f"tiny: {key} {problem}"


def test_synonyms_name_keys_and_are_no_options_themselves():
    for name, paths in SYNONYMS.items():
        assert all(isinstance(key_at(path), Key) for path in paths), name
    for name in [*SYNONYMS, *ABSENT]:
        assert name not in OVERRIDES and name not in OWN_FLAGS, name
    assert not set(SYNONYMS) & set(ABSENT)


def test_no_option_at_all_gets_an_example():
    with pytest.raises(UserError) as caught:
        parse_command_line([])
    assert str(caught.value) == (
        "command line: --ds_config is missing: give a run's JSON, such as --ds_config"
        " ds_configs/quickstart.json (--help lists the options)"
    )
