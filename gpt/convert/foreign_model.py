"""Any causal language model that transformers opens from a folder, scored as ours are.

What a folder says is not trusted: no code of its own is run, no pickle is read, nothing is fetched
from elsewhere; weights that are missing are a mistake, and so is a model that sees the token that
it is to predict.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from gpt.config.saved import CONFIG as OUR_CONFIG
from gpt.convert.foreign_tokenizer import ForeignTokenizer
from gpt.convert.transformers_gpt2 import LAST_N
from gpt.convert.transformers_package import import_transformers
from gpt.errors import RunError, UserError, in_brief
from gpt.evaluation import Stream
from gpt.kernels.cross_entropy import score_logits
from gpt.kernels.linear_cross_entropy import TokenScores
from gpt.parsing import parse_json
from gpt.reading import read_text
from gpt.results import scoring
from gpt.results.scoring import Evaluated, Target, window_within
from gpt.wording import plural

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
# by which configurations call the longest window, the first that one has counts
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
)
LONGEST_BY_DEFAULT = 2048  # tokens of context, which models with more have to be asked for
# of a config.json: what would have other code, or other files, make the model
REFUSED = {
    "auto_map": "brings code of its own, which is never run",
    "quantization_config": "has quantised weights, whose arithmetic is another package's",
    "transformers_weights": "names a file of weights of its own",
}
Notify = Callable[[str], object]  # gets sentences of which the user should know
# rows of logits that are scored at a time
ROWS = 256
# by how much of the largest one a later token may change a logit, by rounding: in fp32, and in less
CAUSAL_TOLERANCE = 1e-5
CAUSAL_TOLERANCE_16_BITS = 1e-2
CAUSAL_PLACES = 8  # of a window that are looked at
# for everything that transformers opens
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
MEND_FOLDER = "give a folder that save_pretrained of transformers wrote"


class ForeignModel(nn.Module):
    """Called by gpt.evaluation.Evaluator as gpt.model.GPT is."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model  # a PreTrainedModel

    def forward(
        self, tokens: Tensor, targets: Tensor, scored: tuple[Tensor, Tensor]
    ) -> TokenScores:
        """tokens, targets int64 (B, T); scored: rows and columns (N,) -> nats and rank (N,), of
        softmax over all outputs that the model has, in fp32."""
        logits = self.logits(tokens, scored)
        parts = zip(logits.split(ROWS), targets[scored].split(ROWS))
        scores = [score_logits(part, part_targets) for part, part_targets in parts]
        nats, ranks = zip(*scores)
        return TokenScores(torch.cat(nats), torch.cat(ranks))

    def logits(self, tokens: Tensor, scored: tuple[Tensor, Tensor]) -> Tensor:
        """(N, V) of the positions that count. Where the output layer gets hidden states (B, T, C)
        it gets those alone, as (1, N, C), so that no logits (B, T, V) are held."""
        head: nn.Module | None = self.model.get_output_embeddings()  # type: ignore[operator]
        selected = []

        def select(_: nn.Module, inputs: tuple) -> tuple:
            if not inputs or inputs[0].shape[:2] != tokens.shape:
                return inputs
            hidden, *others = inputs
            selected.append(hidden)
            return hidden[scored][None], *others

        hook = head.register_forward_pre_hook(select) if head is not None else None
        try:
            logits = self.model(input_ids=tokens).logits
        finally:
            if hook is not None:
                hook.remove()
        if selected and logits.shape[:2] == (1, len(scored[0])):
            return logits[0]
        return logits[scored]


@dataclass(frozen=True)
class ForeignFolder:
    """A model's folder before its weights are read. longest: tokens of context that it can have;
    None where it has no limit."""

    path: Path
    config: Any  # a PreTrainedConfig
    tokenizer: ForeignTokenizer
    longest: int | None

    def window(self, seq_len: int | None, last_n: int | None) -> tuple[int, int]:
        """(seq_len, last_n), LONGEST_BY_DEFAULT at most by default, and as the run was evaluated
        that a model was exported from. Raises UserError."""
        by_default = min(self.longest or LONGEST_BY_DEFAULT, LONGEST_BY_DEFAULT)
        own = getattr(self.config, LAST_N, None)
        if last_n is None and type(own) is int and 0 < own <= (seq_len or by_default):
            last_n = own
        return window_within(self.longest, seq_len or by_default, last_n)

    def load(self, device: str, seq_len: int, notify: Notify) -> ForeignModel:
        """With its weights, in fp32 on a CPU, in the precision that they are stored in elsewhere.
        Raises UserError where they are not whole, or the model is not causal, or takes no windows
        of seq_len tokens."""
        transformers = import_transformers()
        with _telling(self.path, "weights"):
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                self.path,
                config=self.config,
                dtype=torch.float32 if device == "cpu" else "auto",
                output_loading_info=True,
                use_safetensors=True,
                **LOCAL,
            )
            _require_whole(self.path, model, loading)
            if loading["unexpected_keys"]:
                names = sorted(map(str, loading["unexpected_keys"]))
                notify(
                    f"{self.path} holds {plural(len(names), 'tensor')} that its model leaves out,"
                    f" the first is {names[0]}"
                )
            model = ForeignModel(model).eval().to(device)
        mend = "give a smaller --seq_len, or another model"
        with _telling(self.path, f"model at {seq_len} tokens", mend), torch.no_grad():
            self._require_causal(model, device, seq_len)
        return model

    def facts(self, model: ForeignModel) -> dict[str, Any]:
        """What a result tells of it."""
        parameters = list(model.parameters())
        return {
            "model": type(model.model).__name__,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "tokenizer_size": self.tokenizer.size,
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
        }

    def require_ids(self, stream: Stream) -> None:
        """Raise UserError where a text has tokens that the model does not know."""
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        largest = int(stream.tokens[:].max())
        if isinstance(size, int) and largest >= size:
            raise UserError(
                f"{self.path}: its tokenizer gives the id {largest:,}, and its model has {size:,}",
                mend="give the tokenizer that it was trained with",
            )

    def _require_causal(self, model: ForeignModel, device: str, seq_len: int) -> None:
        """Raise UserError where a window's last token changes what is predicted before it."""
        windows = torch.arange(seq_len, device=device).repeat(2, 1) % self.tokenizer.size
        windows[1, -1] = (windows[1, -1] + 1) % self.tokenizer.size
        places = torch.linspace(0, max(0, seq_len - 2), CAUSAL_PLACES, device=device).long()
        rows = torch.arange(2, device=device).repeat_interleave(CAUSAL_PLACES)
        logits = model.logits(windows, (rows, places.repeat(2)))
        tolerance = CAUSAL_TOLERANCE
        if logits.dtype != torch.float32:
            tolerance = CAUSAL_TOLERANCE_16_BITS
        first, second = logits.float().chunk(2)
        if seq_len > 1 and (first - second).abs().max() > tolerance * first.abs().max():
            raise UserError(
                f"{self.path}: its {type(model.model).__name__} sees the tokens that it is to"
                " predict: what it says of the first ones depends on the last",
                mend="give a causal language model; one of encoders' kind needs is_decoder in its"
                f" {CONFIG}, and weights that were trained so",
            )


def open_folder(path: Path, notify: Notify) -> ForeignFolder:
    """Raises UserError where the folder is not one that is opened."""
    stored = _require_plain(path)
    tensors = _tensors_in(path)
    transformers = import_transformers()
    with _telling(path, CONFIG):
        config = transformers.AutoConfig.from_pretrained(path, **LOCAL)
        config.use_cache = False
        config.return_dict = True
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{path} holds a {stored.get('model_type')}, of which transformers"
            f" {transformers.__version__} makes no causal language model",
            mend="give another model",
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    # before modules are made of so many
    if isinstance(layers, int) and layers > tensors:
        raise UserError(
            f"{path} holds {tensors:,} tensors, and its {CONFIG} calls for {layers:,} layers",
            mend=MEND_FOLDER,
        )
    tokenizer = _open_tokenizer(path, transformers, notify)
    return ForeignFolder(path, config, tokenizer, _longest(config))


def _require_plain(path: Path) -> dict:
    """The content of its CONFIG. Raises UserError where the folder is none of transformers', or has
    what is not read."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder", mend=f"{MEND_FOLDER}; nothing is fetched")
    if (path / OUR_CONFIG).exists() and not (path / CONFIG).exists():
        raise UserError(
            f"{path} is a model of ours ({OUR_CONFIG})",
            mend=f"give --checkpoint_file {path / WEIGHTS}",
        )
    if (path / ADAPTER).exists():
        raise UserError(
            f"{path} holds an adapter ({ADAPTER}), not a whole model",
            mend="merge it into its model, and save that",
        )
    stored = _json(path / CONFIG)
    for key, state in REFUSED.items():
        if stored.get(key):
            raise UserError(f"{path} {state} ({key} in {CONFIG})", mend="give another model")
    if (path / TOKENIZER_CONFIG).exists() and _json(path / TOKENIZER_CONFIG).get("auto_map"):
        raise UserError(
            f"{path} {REFUSED['auto_map']} (auto_map in {TOKENIZER_CONFIG})",
            mend="give another model",
        )
    return stored


def _json(path: Path) -> dict:
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or not JSON", mend=MEND_FOLDER) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object", mend=MEND_FOLDER)
    return content


def _tensors_in(path: Path) -> int:
    """How many its weights are. Raises UserError where they are none of safetensors."""
    mend = "save it again with save_pretrained, where you trust it, and give that folder"
    if (path / WEIGHTS).is_file():
        with _telling(path, "weights"), safe_open(path / WEIGHTS, framework="pt") as file:
            return len(file.keys())
    if not (path / INDEX).is_file():
        pickles = sorted(file.name for file in path.glob("*.bin"))
        if pickles:
            raise UserError(
                f"{path} holds its weights as a pickle ({pickles[0]}), which could run code as it"
                " is read",
                mend=mend,
            )
        raise UserError(f"{path} holds no weights ({WEIGHTS} or {INDEX})", mend=MEND_FOLDER)
    files = _json(path / INDEX).get("weight_map")
    if not isinstance(files, Mapping):
        raise UserError(f"{path / INDEX} names no files of weights", mend=MEND_FOLDER)
    for name in files.values():
        is_name = isinstance(name, str) and Path(name).name == name
        if not is_name or not name.endswith(".safetensors"):
            raise UserError(f"{path / INDEX} names {name!r}, no file of safetensors", mend=mend)
    return len(files)


def _open_tokenizer(path: Path, transformers: ModuleType, notify: Notify) -> ForeignTokenizer:
    with _telling(path, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **LOCAL)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{path} has a tokenizer ({type(tokenizer).__name__}) that cannot be written as a"
                " tokenizer.json, by which tokens are known by their bytes",
                mend="give a model with such a one",
            )
        end = tokenizer.eos_token_id
        if end is None:
            end = tokenizer.bos_token_id
        if end is None:
            raise UserError(
                f"{path} has a tokenizer with neither an eos_token nor a bos_token, by which"
                " documents are told apart",
                mend=f"name the one that the model was trained with in its {TOKENIZER_CONFIG}",
            )
        foreign = ForeignTokenizer(backend, end, str(path))
        first_ids = tokenizer("a")["input_ids"][:1]
    if foreign.leaves_blank_out:
        notify(
            f"the tokenizer of {path} puts a blank before every text, which is none of its bytes:"
            " it is left out here"
        )
    if first_ids == [tokenizer.bos_token_id] and tokenizer.bos_token_id != end:
        notify(
            f"the tokenizer of {path} begins a text with {tokenizer.bos_token!r}; windows here do"
            f" not, and before each document stands {tokenizer.convert_ids_to_tokens(end)!r}"
        )
    return foreign


def _longest(config: Any) -> int | None:
    text_config = config.get_text_config()
    for name in POSITIONS:
        limit = getattr(text_config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def _require_whole(path: Path, model: nn.Module, loading: Mapping[str, Any]) -> None:
    """Raise UserError where weights are missing, which transformers fills with random ones."""
    for kind, state in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        names = sorted(str(name) for name in loading[kind])
        if names:
            raise UserError(
                f"{path} {state} {names[0]} ({len(names):,} of the weights that"
                f" {type(model).__name__} has)",
                mend="give the folder of a causal language model, whole",
            )


def evaluate(
    folder: ForeignFolder,
    targets: Sequence[Target],
    window: tuple[int, int],
    device: str,
    notify: Notify,
    batch_size: int | None = None,
) -> Iterator[Evaluated]:
    """As gpt.results.scoring.evaluate, of each text, without what the seed project counts: that
    belongs to its own vocabulary."""
    for target in targets:
        folder.require_ids(target.stream)
    model = folder.load(device, window[0], notify)
    facts = {"checkpoint": str(folder.path), "step": None, **folder.facts(model)}
    for target in targets:
        evaluated = scoring.evaluate(model, target, facts, window, device, batch_size)
        del evaluated.result["languini"]
        yield evaluated


@contextmanager
def _telling(path: Path, what: str, mend: str = MEND_FOLDER) -> Iterator[None]:
    """Whatever transformers raises over a folder's files becomes a UserError."""
    try:
        yield
    except (UserError, RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a library that believes what it reads, it may be any
        raise UserError(
            f"{path}: transformers fails at its {what} ({in_brief(error)})", mend=mend
        ) from error
