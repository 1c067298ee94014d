"""From a JSON file and a command line to one resolved, frozen configuration.

Precedence: defaults < JSON < command line. Every value has one owner; nothing is changed after it is resolved.
"""

import argparse
import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from gpt import schema
from gpt.errors import Parser, UserError
from gpt.plan import BatchPlan, CosineSchedule, ModelConfig, plan_batch

# Command-line options that belong to DeepSpeed's keys. They carry the seed project's names.
DEEPSPEED_OPTIONS = {
    "train_batch_size": ("train_batch_size",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "grad_clip_norm": ("gradient_clipping",),
    "max_lr": ("scheduler", "params", "max_lr"),
    "min_lr": ("scheduler", "params", "min_lr"),
    "warmup_steps": ("scheduler", "params", "warmup_steps"),
    "decay_steps": ("scheduler", "params", "decay_steps"),
}
SHAPE = ("n_layers", "h_dim", "mlp_dim", "n_heads", "head_dim")


@dataclass(frozen=True)
class Config:
    """A resolved run. `engine` is what DeepSpeed gets, the "gpt" block and our own schedule taken out."""

    name: str  # the JSON file's name without its ending
    options: schema.Options
    model: ModelConfig
    batch: BatchPlan
    schedule: CosineSchedule | None  # None: DeepSpeed's own scheduler, or a constant learning rate
    engine: dict
    notices: tuple = ()  # what was decided otherwise than asked, and why

    @property
    def precision(self) -> str:
        """fp32, fp16 or bf16: the type that weights and activations have in the hot loop."""
        return next((name for name in ("fp16", "bf16") if self.engine[name]["enabled"]), "fp32")

    @property
    def run_dir(self) -> Path:
        return Path(self.options.run_dir or f"runs/{self.name}")

    def without_fp16(self, reason: str) -> "Config":
        """The same run in fp32, with a notice that says why."""
        engine = {**self.engine, "fp16": {**self.engine["fp16"], "enabled": False}}
        return dataclasses.replace(self, engine=engine, notices=(*self.notices, reason))

    def as_dict(self) -> dict:
        """Plain values for config.yaml: all that a reader needs to know what was run."""
        return {
            "name": self.name,
            "precision": self.precision,
            "model": dataclasses.asdict(self.model),
            "batch": dataclasses.asdict(self.batch),
            "schedule": dataclasses.asdict(self.schedule) if self.schedule else None,
            "gpt": dataclasses.asdict(self.options),
            "deepspeed": self.engine,
        }


def load_presets() -> dict:
    """Model shapes by name: {preset: {n_layers, h_dim, mlp_dim, n_heads, head_dim}}."""
    return yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))


def read_json(path) -> dict:
    """The JSON file of a run; a duplicated key is a mistake."""

    def no_duplicates(pairs):
        for index, (key, _) in enumerate(pairs):
            if key in (earlier for earlier, _ in pairs[:index]):
                raise UserError(f"{path}: the key {key!r} stands twice in one block")
        return dict(pairs)

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read the config {path}: {reason}") from error
    try:
        return json.loads(text, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from error


def _key_of(path):
    keys = schema.TOP_KEYS
    for name in path[:-1]:
        keys = keys[name][schema.COSINE] if name == "params" else keys[name]
    return keys[path[-1]]


def _parser() -> Parser:
    parser = Parser("Train a GPT as a JSON file says; options override the file.", prog="train.py",
                    argument_default=argparse.SUPPRESS)  # fmt: skip
    parser.add_argument("--ds_config", required=True, metavar="FILE.json", help="the run's config, see ds_configs/")
    parser.add_argument("--resume", choices=("auto", "must", "never"), default="auto",
                        help="auto: go on from run_dir's latest checkpoint, if any (default); must: refuse to start "
                        "afresh; never: refuse to go on")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", default=False, help="show DeepSpeed's own messages")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # appended by the launcher
    options = {**DEEPSPEED_OPTIONS, **{name: ("gpt", name) for name in schema.GPT_KEYS}}
    for name, path in options.items():
        key = _key_of(path)
        default = "" if key.default in (None, schema.REQUIRED, "") else f" (default {key.default})"
        parser.add_argument(f"--{name}", dest=".".join(path), type=key.kind, metavar=key.kind.__name__.upper(),
                            help=(key.doc + default).replace("%", "%%"))  # fmt: skip
    return parser


def parse_command_line(argv) -> argparse.Namespace:
    """Namespace of ds_config, resume, verbose, and `overrides`: {path as a tuple: value} of the other options given."""
    parser = _parser()
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [flag for action in parser._actions for flag in action.option_strings]
        first = unknown[0].split("=")[0]
        if not first.startswith("--"):
            raise UserError(f"command line: {unknown[0]!r} stands where an option --name was expected")
        raise UserError(f"command line: unknown option {first}{schema.nearest(first, names)} (--help lists the options)")
    own = {"ds_config", "resume", "verbose", "local_rank"}
    overrides = {tuple(path.split(".")): value for path, value in vars(known).items() if path not in own}
    return argparse.Namespace(**{name: getattr(known, name) for name in own}, overrides=overrides)


def _override(tree: dict, overrides: dict, errors: list):
    for path, value in overrides.items():
        if path[0] == "scheduler":
            found = tree["scheduler"].get("type") if isinstance(tree.get("scheduler"), dict) else None
            if found != schema.COSINE:
                errors.append(f"--{path[-1]} sets a parameter of {schema.COSINE}, but the file's scheduler is {found}: "
                              f"set its own parameters in the file")
                continue
        block = tree
        for name in path[:-1]:
            block = block.setdefault(name, {}) if isinstance(block, dict) else None
        if isinstance(block, dict):  # where it is not, the check of the whole tree says so
            block[path[-1]] = value
        if path == ("gradient_accumulation_steps",) or path == ("train_batch_size",):
            tree.pop("train_micro_batch_size_per_gpu", None)  # what the command line leaves open is solved again


def _without_nulls(tree):
    """A copy in which what is null is absent."""
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return copy.deepcopy(tree)


def _with_defaults(block, keys):
    filled = dict(block)
    for name, key in keys.items():
        if isinstance(key, schema.Key) and key.default not in (None, schema.REQUIRED):
            filled.setdefault(name, copy.copy(key.default))
    return filled


def _contradictions(tree: dict) -> list:
    """Values that are right one by one and wrong together."""
    errors = []
    zero, options = tree["zero_optimization"], tree["gpt"]
    stage = zero["stage"]
    if tree["fp16"]["enabled"] and tree["bf16"]["enabled"]:
        errors.append("fp16.enabled and bf16.enabled are both true: choose one")
    elif stage == 0 and (tree["fp16"]["enabled"] or tree["bf16"]["enabled"]):
        errors.append("zero_optimization.stage is 0 with 16-bit training, where DeepSpeed does not scale the loss "
                      "rightly: use stage 1, 2 or 3")
    optimizer, scheduler = tree.get("optimizer", {}), tree.get("scheduler", {})
    has_lr = optimizer.get("params", {}).get("lr") is not None
    if scheduler.get("type") == schema.COSINE and has_lr:
        errors.append(f"optimizer.params.lr is set beside {schema.COSINE}, which owns the learning rate: leave it out "
                      "and set scheduler.params.max_lr")
    if not scheduler and not has_lr:
        errors.append("the learning rate is missing: give a scheduler, or optimizer.params.lr for a constant one")
    if scheduler.get("type") == schema.COSINE:
        params = scheduler["params"]
        if params["min_lr"] > params["max_lr"]:
            errors.append(f"scheduler.params.min_lr {params['min_lr']} is above max_lr {params['max_lr']}")
        if params["decay_steps"] < params["warmup_steps"]:
            errors.append(f"scheduler.params.decay_steps {params['decay_steps']} is less than warmup_steps "
                          f"{params['warmup_steps']}: the warm-up would never end")
    if options["last_n"] > options["seq_len"]:
        errors.append(f"gpt.last_n {options['last_n']} is more than gpt.seq_len {options['seq_len']}")
    return errors


def _shape(options: dict, errors: list):
    presets = load_presets()
    name = options.get("preset")
    if name is not None and name not in presets:
        errors.append(f"gpt.preset is {name!r}{schema.nearest(name, presets)}: the presets are {', '.join(presets)}")
        return None
    shape = {**presets.get(name, {}), **{key: options[key] for key in SHAPE if options.get(key) is not None}}
    missing = [key for key in SHAPE if key not in shape]
    if missing:
        errors.append(f"gpt.preset is missing, and so is {', '.join(missing)}: name a preset ({', '.join(presets)}) or "
                      "give the whole shape")
        return None
    return ModelConfig(**shape, vocab_size=options["vocab_size"], seq_len=options["seq_len"])


def resolve(tree: dict, name: str, world_size: int = 1, overrides: dict | None = None) -> Config:
    """Check and resolve the parsed JSON of a run for `world_size` ranks; `tree` itself is left as it is.

    Raises UserError with all mistakes that were found.
    """
    tree, errors = _without_nulls(tree), []
    if isinstance(tree, dict):
        _override(tree, overrides or {}, errors)
        tree.setdefault("gpt", {})
    errors += schema.check(tree, schema.TOP_KEYS)
    if errors:
        raise UserError(_report(name, errors))
    for block in ("gpt", "fp16", "bf16", "zero_optimization"):
        tree[block] = _with_defaults(tree.get(block) or {}, schema.TOP_KEYS[block])
    tree = _with_defaults(tree, schema.TOP_KEYS)
    tree.setdefault("optimizer", {"type": "Adam"})
    for block, variants in (("optimizer", schema.OPTIMIZERS), ("scheduler", schema.SCHEDULERS)):
        if block in tree:
            keys = variants[tree[block]["type"]]
            errors += schema.check(tree[block].get("params") or {}, keys, f"{block}.params")
            tree[block]["params"] = _with_defaults(tree[block].get("params") or {}, keys)
    if errors:
        raise UserError(_report(name, errors))
    errors += _contradictions(tree)
    model = _shape(tree["gpt"], errors)
    batch = None
    try:
        batch = plan_batch(tree.get("train_batch_size"), tree.get("train_micro_batch_size_per_gpu"),
                           tree.get("gradient_accumulation_steps"), world_size)  # fmt: skip
    except UserError as error:
        errors.append(str(error))
    if errors:
        raise UserError(_report(name, errors))
    return _freeze(tree, name, model, batch)


def _freeze(tree, name, model, batch) -> Config:
    options = schema.Options(**tree.pop("gpt"))
    schedule = None
    if tree.get("scheduler", {}).get("type") == schema.COSINE:
        schedule = CosineSchedule(**tree.pop("scheduler")["params"])
    tree["train_batch_size"] = batch.global_size
    tree["train_micro_batch_size_per_gpu"] = batch.micro_size
    tree["gradient_accumulation_steps"] = batch.accumulation
    if tree["optimizer"]["type"] == "SGD":  # element by element, so it may work on stretches of parameters
        tree.setdefault("zero_allow_untested_optimizer", True)
    params = tree["optimizer"]["params"]
    if "offload_optimizer" in tree["zero_optimization"] or params.get("torch_adam") is False:
        params.pop("fused", None)  # torch's own word; DeepSpeed's Adams do not know it
        params.pop("torch_adam", None)
    return Config(name=name, options=options, model=model, batch=batch, schedule=schedule, engine=tree)


def _report(name, errors):
    if len(errors) == 1:
        return f"{name}: {errors[0]}"
    listed = "\n".join(f"  {number}. {error}" for number, error in enumerate(errors, 1))
    return f"{name} has {len(errors)} mistakes:\n{listed}"


def load(path, world_size: int = 1, overrides: dict | None = None) -> Config:
    """Read and resolve a run's JSON file. Raises UserError."""
    return resolve(read_json(path), Path(path).stem, world_size, overrides)
