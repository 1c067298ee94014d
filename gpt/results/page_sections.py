"""What the report's page tells of one run below the curves, in tables."""

import json
import statistics
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import numpy as np

from gpt.config.identity import ARGUMENTS_OF, change_in_words, changes_of, code_in_words
from gpt.config.run_config import leaves
from gpt.escaping import html_text
from gpt.metrics.events import CHECKPOINT, EVAL, RESUME, START, TRAIN
from gpt.metrics.run import Run, values
from gpt.results.methods import arguments_in_words
from gpt.results.page_curves import SHOWN_EVENTS, happenings
from gpt.results.page_tables import figure, table
from gpt.results.scores import split_of, whole_split
from gpt.wording import first_of, plural

# figures of an evaluation, with their units
EVALUATION = {
    "tokens": "tokens scored",
    "of_tokens": "of the split's tokens",
    "bytes": "bytes scored",
    "loss": "loss (nats per token)",
    "ppl": "perplexity (per token)",
    "normalised_loss": "normalised loss (nats per byte)",
    "normalised_ppl": "normalised perplexity (per byte)",
    "bits_per_byte": "bits per byte",
    "top1": "top 1 (share of tokens)",
    "top10": "top 10 (share of tokens)",
}
LANGUINI = "normalised perplexity as the Languini Kitchen counts"
SHOWN_DOCUMENTS = 4  # of an event
LONG_TEXT = 600  # characters of an event's details that are shown
# of events, told elsewhere on the page
ELSEWHERE = (
    "event",
    "step",
    "time",
    "documents",
    "identity",
    "variant",
    "seed",
    "code",
    *ARGUMENTS_OF,
)


def sections(run: Run, index: int) -> str:
    """Of the index-th run; of the first, most stand open."""
    parts = [
        ("identity", "What it is", _identity(run)),
        ("evaluation", "Evaluation per split", _evaluation(run)),
        ("events", "What happened", _events(run)),
        ("environment", "Environment and time", _environment(run)),
        ("config", "Configuration", _configuration(run)),
    ]
    html = []
    for name, label, content in parts:
        opened = " open" if index == 0 and name in ("identity", "evaluation", "events") else ""
        html.append(
            f'<details id="{name}-{index}"{opened}><summary>{label}</summary>{content}</details>'
        )
    return f"<h2>{html_text(run.name)}</h2>\n" + "\n".join(html)


def _identity(run: Run) -> str:
    """All by which runs are told apart, and the commands that made it."""
    code = _block(run.config, "code")
    parts = ", ".join(f"{part} {digest}" for part, digest in _block(code, "parts").items())
    rows = [
        ["variant", run.variant],
        ["model", run.family],
        ["parameters", f"{run.parameters:,}"],
        *_own_code(run),
        ["seed", run.options.get("seed")],
        ["code", code.get("hash")],
        ["of its parts", parts or None],
        ["git commit", _commit(code)],
        ["kernels", run.config.get("kernels")],
        *_beginning(_block(run.config, "began_from")),
        *_dataset(_block(run.config, "dataset")),
    ]
    changes = changes_of(run.config)
    rows += [["changed on resuming", change_in_words(entry)] for entry in changes]
    if not changes:
        rows.append(["changed on resuming", "nothing that was noted"])
    commands = [event.get("command") for event in run.events.get(START, [])]
    rows += [["command", command] for command in dict.fromkeys(commands) if command]
    return table(["", ""], rows)


def _beginning(began_from: dict) -> list[list]:
    """Where its first weights are from, unless they were drawn."""
    origin = began_from.get("branch", began_from.get("folder"))
    if origin is None:
        return []
    label = "branch of" if "branch" in began_from else "first weights of"
    return [[label, f"{origin}, step {began_from.get('step')}"]]


def _own_code(run: Run) -> list[list]:
    """Of code of the user's own: the file, what it imports from beside it, its arguments."""
    rows = []
    for block, arguments in ARGUMENTS_OF.items():
        facts = _block(run.config, block)
        if not facts:
            continue
        label = block.replace("_", " ")
        rows.append([label, code_in_words(facts)])
        others = [name for name in _block(facts, "files") if name != facts["name"]]
        rows.append([f"files beside the {label}", ", ".join(others) or None])
        given = dict(leaves(run.options.get(arguments) or {}, arguments))
        rows.append([arguments.replace("_", " "), arguments_in_words(given) or None])
        if "flops_per_token" in facts:
            rows.append(["FLOPs per token", figure(facts["flops_per_token"])])
            rows.append(["of them counted", figure(facts.get("flops_counted"))])
    return rows


def _block(tree: dict, name: str) -> dict[str, Any]:
    """A block of config.yaml, empty where there is none."""
    block = tree.get(name)
    return block if isinstance(block, dict) else {}


def _commit(code: dict) -> str | None:
    commit = code.get("commit")
    if not commit:
        return None
    if code.get("dirty"):
        return f"{commit}, with changes that are not committed"
    return str(commit)


def _dataset(dataset: dict) -> list[list]:
    rows = [
        ["dataset", dataset.get("root")],
        ["dataset's fingerprint", dataset.get("fingerprint")],
        ["tokenizer", dataset.get("tokenizer")],
    ]
    for name, label in (("train", "trained on"), ("scored", "scored")):
        split = _block(dataset, name)
        if split:
            counts = [f"{figure(split.get(key))} {key}" for key in ("tokens", "bytes")]
            documents = f"documents {split.get('documents')}"
            rows.append([label, f"{split.get('split')}: {', '.join([*counts, documents])}"])
    return rows


def _configuration(run: Run) -> str:
    sources = _block(run.config, "sources")
    rows = [
        [path, value, sources.get(path, "default")] for path, value in leaves(run.config["run"])
    ]
    return table(["setting", "value", "from"], rows)


def _evaluation(run: Run) -> str:
    """The last evaluation of each split, and that of the whole split where eval.py made one."""
    last = [run.curve(EVAL, split)[-1] for split in run.splits()]
    rows = [_figures(run, event, "training") for event in last]
    whole, problem = whole_split(run)
    if whole is not None and whole not in last:
        rows.append(_figures(run, whole, "training" if whole is run.whole() else "eval.py"))
    notice = f'<p class="bad">{html_text(problem)}</p>' if problem else ""
    if not rows:
        return f"<p>no evaluation yet</p>{notice}"
    head = ["split", "scored by", "step", *EVALUATION.values(), LANGUINI]
    return table(head, rows, numbers=range(2, len(head))) + notice


def _figures(run: Run, figures: dict, scored_by: str) -> list:
    """The row of an evaluation, an event of training or the result of eval.py."""
    known = dict(figures)
    split = split_of(run)
    if known.get("of_tokens") is None and split.get("split") == known.get("split"):
        known["of_tokens"] = split.get("tokens")
    row = [known.get("split"), scored_by, f"{known['step']:,}"]
    row += [figure(known.get(name)) for name in EVALUATION]
    row.append(figure((known.get("languini") or {}).get("normalised_ppl")))
    return row


def _events(run: Run) -> str:
    events = happenings(run)
    if not events:
        return "<p>nothing but training</p>"
    shown = events[-SHOWN_EVENTS:]
    rows = [
        [_clock(event), f"{event['step']:,}", event["event"], _details(event)] for event in shown
    ]
    html = table(["time (UTC)", "step", "event", ""], rows, numbers=[1])
    earlier = len(events) - len(shown)
    return f"<p>{earlier:,} earlier ones are left out.</p>{html}" if earlier else html


def _clock(event: dict) -> str:
    seconds = values([event], "time")[0]
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def _details(event: dict) -> str:
    """What an event tells, in words; of a start what its environment's table does not repeat, of
    documents the first."""
    texts = []
    for key, value in event.items():
        repeated = event["event"] == START and key not in ("device", "ranks", "precision")
        if value is None or repeated or key in ELSEWHERE:
            continue
        if event["event"] == RESUME and key == "changed":
            texts += _changes(value)
        else:
            texts.append(f"{key.replace('_', ' ')} {_shown(value)}")
    names = list(dict.fromkeys(_names(event.get("documents"))))
    if names:
        texts.append(f"{plural(len(names), 'document')}: {first_of(names, SHOWN_DOCUMENTS)}")
    details = ", ".join(texts)
    return details if len(details) <= LONG_TEXT else details[:LONG_TEXT] + " …"


def _changes(entries: Any) -> list[str]:
    """Of a resume, in words."""
    texts = []
    for entry in entries if isinstance(entries, list) else []:
        # a damaged line may hold anything
        if isinstance(entry, dict) and {"step", "setting", "was", "is"} <= set(entry):
            texts.append(change_in_words(entry))
    return texts


def _shown(value: Any) -> str:
    """A value of an event."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _names(documents: Any) -> Iterator[str]:
    """The texts in a list, or in lists of lists."""
    for item in documents if isinstance(documents, list) else []:
        if isinstance(item, list):
            yield from _names(item)
        else:
            yield str(item)


def _environment(run: Run) -> str:
    batch = run.config["batch"]
    micro_batch = f"{batch.get('micro_size', '-')} x {batch.get('accumulation', '-')}"
    zero = run.config["run"].get("zero_optimization") or {}
    rows = [
        ["precision", run.config.get("precision", "-")],
        ["ranks", batch.get("world_size", "-")],
        ["micro batch x accumulation", micro_batch],
        ["ZeRO stage", zero.get("stage", "-")],
    ]
    start: dict[str, Any] = next(reversed(run.events.get(START, [])), {})
    for key in ("device", "host", "peak_flops"):
        if start.get(key):
            rows.append([key.replace("_", " "), start[key]])
    for package, version in (start.get("versions") or {}).items():
        rows.append([package, version])
    rows += _times(run.curve(TRAIN))
    pauses = values(run.events.get(CHECKPOINT, []), "seconds")
    if len(pauses):
        pause = f"training waited {statistics.median(pauses):.3g} s for one (median)"
        rows.append(["checkpoints", f"{len(pauses)}, {pause}"])
    return table(["", ""], rows)


def _times(train: list[dict]) -> list[list]:
    """Rows: where the time of training went, by the parts that its first line with them names."""
    parts = []
    for event in train:
        if isinstance(event.get("seconds"), dict):
            parts = list(event["seconds"])
            break
    seconds = {part: float(np.nansum(values(train, f"seconds/{part}"))) for part in parts}
    whole = sum(seconds.values())
    if not whole > 0:
        return []
    return [
        [f"time: {part}", f"{spent:,.1f} s ({spent / whole:.1%})"]
        for part, spent in seconds.items()
    ]
