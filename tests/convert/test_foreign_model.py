"""eval.py --hf: figures against a loop over tokens in float64, and against ours; folders that are
not opened."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import load_command
from safetensors.torch import load_file, save_file
from small_corpora import build, write_texts

from gpt.checkpoint.weights import write_folder
from gpt.config.saved import foreign_config
from gpt.config.shape import ModelConfig
from gpt.convert.foreign_model import ForeignModel, open_folder
from gpt.data.vocab import Vocab
from gpt.model import GPT
from gpt.results import document_sums

transformers = pytest.importorskip("transformers")

from foreign_tokenizers import END, byte_level, with_byte_pieces

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = {
    "a.txt": "the quick brown fox, naïve 🦊\n",
    "b.txt": "  over the lazy dogs. <|endoftext|>▁</s>",
    "c.txt": "x",
}
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}


def save(folder, config, tokenizer, **special_tokens):
    """A model with random weights, wide enough to tell tokens apart, and its tokenizer."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)
    fast.save_pretrained(folder)
    return folder


def gpt2(folder):
    config = transformers.GPT2Config(
        vocab_size=405, n_positions=24, n_embd=16, n_layer=2, n_head=2, eos_token_id=0
    )
    return save(folder, config, byte_level(), eos_token=END)


def llama(folder):
    config = transformers.LlamaConfig(
        vocab_size=300, intermediate_size=24, max_position_embeddings=24, **SHAPE
    )
    special_tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return save(folder, config, with_byte_pieces("first"), **special_tokens)


MODELS = {"GPT2LMHeadModel": gpt2, "LlamaForCausalLM": llama}


@pytest.fixture(scope="module", params=MODELS)
def model_folder(request, tmp_path_factory):
    return MODELS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    return gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """evaluated(*options) -> the content of --json."""

    def run(*options):
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, options), "--json", str(out)])
        load_command("eval", "gpt").main()
        return json.loads(out.read_text())

    return run


def token_by_token(model, stream, eod_id, seq_len, last_n):
    """(nats, rank) of each token of a stream, each of a pass over its own context alone."""
    nats = []
    ranks = []
    for place, target in enumerate(stream):
        window = max(0, math.ceil((place - seq_len) / last_n))
        context = stream[window * last_n : place] if place else [eod_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context])).logits[0, -1].numpy()
        peak = logits.max()
        nats.append(peak + np.log(np.exp(logits - peak).sum()) - logits[target])
        ranks.append(int((logits > logits[target]).sum()))
    return np.array(nats), np.array(ranks)


def test_figures_are_those_of_each_token_after_its_context(model_folder, evaluated, tmp_path):
    write_texts(tmp_path, TEXTS)
    files = [tmp_path / name for name in TEXTS]
    table = tmp_path / "documents.jsonl"
    options = ["--hf", model_folder, "--text", *files, "--last_n", 5, "--seq_len", 12]
    figures = evaluated(*options, "--batch_size", 3, "--per_document", table)

    tokenizer = open_folder(model_folder, lambda sentence: None).tokenizer
    documents = [[*tokenizer.encode(text, name), tokenizer.eod_id] for name, text in TEXTS.items()]
    stream = [token for document in documents for token in document]
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).double().eval()
    nats, ranks = token_by_token(model, stream, tokenizer.eod_id, 12, 5)

    size = sum(len(text.encode()) for text in TEXTS.values())
    ends = np.cumsum([len(document) for document in documents]) - 1
    text_nats = nats.sum() - nats[ends].sum()
    assert (figures["bytes"], figures["tokens"]) == (size, len(stream))
    assert figures["text_tokens"] == len(stream) - len(TEXTS)
    assert figures["loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(text_nats / size / math.log(2), rel=1e-5)
    assert figures["normalised_ppl"] == pytest.approx(math.exp(text_nats / size), rel=1e-5)
    assert figures["top1"] == (ranks < 1).mean() and figures["top10"] == (ranks < 10).mean()
    sums = document_sums.read(table)
    expected = [part.sum() for part in np.split(nats, ends[:-1] + 1)]
    np.testing.assert_allclose(sums.nats, expected, rtol=1e-5)
    assert sums.bytes.tolist() == [len(text.encode()) for text in TEXTS.values()]


def test_what_a_result_tells_of_the_model(model_folder, evaluated, tmp_path, capsys):
    write_texts(tmp_path, TEXTS)
    options = ["--hf", model_folder, "--text", tmp_path / "a.txt"]
    markdown = tmp_path / "out.md"
    figures = evaluated(*options, "--markdown", markdown)
    stored = load_file(model_folder / "model.safetensors")
    name = model_folder.name
    assert figures["model"] == name and figures["dtype"] == "float32"
    assert figures["parameters"] == sum(value.numel() for value in stored.values())
    assert figures["tokenizer_size"] == {"GPT2LMHeadModel": 400, "LlamaForCausalLM": 290}[name]
    assert figures["step"] is None and figures["checkpoint"] == str(model_folder)
    assert (figures["seq_len"], figures["last_n"]) == (24, 24)
    assert "languini" not in figures and "languini" not in markdown.read_text()
    output = capsys.readouterr()
    assert f"{name}, {figures['parameters']:,} parameters, float32" in output.out
    assert "languini" not in output.out
    told = "puts a blank before every text, which is none of its bytes" in output.err
    assert told == (name == "LlamaForCausalLM")
    told = "begins a text with '<s>'; windows here do not, and before each" in output.err
    assert told == (name == "LlamaForCausalLM")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = {f"{i}.txt": f"{text}\n the captain {i}" for i, text in enumerate(TEXTS.values())}
    texts["with a literal.txt"] = "the ship, a<D>b and the ▁ whale"
    write_texts(folder / "texts", {**texts, "more.txt": "the whale, the sea and the ship " * 30})
    build(folder / "texts", folder / "data", vocab=290, test_every=2)
    return folder / "data"


def test_our_own_model_in_transformers_layout_scores_as_ours(
    dataset, evaluated, load_tool, tmp_path
):
    """The same losses, ranks and bytes, of the split and of each of its documents."""
    vocab = Vocab.load(dataset / "tokenizer.model")
    shape = ModelConfig(
        n_layers=2,
        h_dim=16,
        mlp_dim=24,
        n_heads=2,
        head_dim=8,
        vocab_size=vocab.size,
        seq_len=16,
    )
    weights = {name: value * 3 for name, value in GPT(shape, seed=1).state_dict().items()}
    config = foreign_config("w", 7, shape, vocab.fingerprint)
    write_folder(tmp_path / "ours", weights, config, vocab.model, {})
    load_tool("export_hf").export(tmp_path / "ours", tmp_path / "theirs")
    options = ["--data_root", dataset, "--last_n", 5, "--per_document"]
    file = tmp_path / "ours/model.safetensors"
    ours = evaluated("--checkpoint_file", file, *options, tmp_path / "ours.jsonl")
    theirs = evaluated("--hf", tmp_path / "theirs", *options, tmp_path / "theirs.jsonl")
    exact = ("split", "dataset", "documents", "seq_len", "last_n", "of_tokens", "tokens", "bytes")
    for name in (*exact, "text_tokens", "top1", "top10"):
        assert theirs[name] == ours[name], name
    for name in ("loss", "bits_per_byte", "normalised_ppl", "total_loss", "text_nats"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6), name
    of_ours, of_theirs = (document_sums.read(tmp_path / f"{x}.jsonl") for x in ("ours", "theirs"))
    assert of_ours.hashes == of_theirs.hashes
    np.testing.assert_array_equal(of_ours.bytes, of_theirs.bytes)
    np.testing.assert_allclose(of_ours.nats, of_theirs.nats, rtol=1e-5)


def test_the_bytes_of_a_split_are_those_of_its_texts(gpt2_folder, dataset, evaluated, load_tool):
    figures = evaluated("--hf", gpt2_folder, "--data_root", dataset, "--eval_data_split", "all")
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert [result["split"] for result in figures] == ["test"]
    assert figures[0]["bytes"] == manifest["splits"]["test"]["bytes"]
    # a tokenizer that takes no part of it: what is lost is told with the document's name
    tokenizer = json.loads((gpt2_folder / "tokenizer.json").read_text())
    lossy = shutil.copytree(gpt2_folder, dataset.parent / "lossy")
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "whale"}, "content": ""}
    (lossy / "tokenizer.json").write_text(json.dumps(tokenizer))
    mistake = load_tool("eval", "gpt").mistake("--hf", lossy, "--data_root", dataset)
    assert mistake.startswith(f"the tokenizer of {lossy} does not keep the text: ")
    assert ".txt' has " in mistake and " fewer, which differ from byte " in mistake


def test_tokens_that_do_not_stand_for_the_text_are_noticed(
    gpt2_folder, dataset, load_tool, tmp_path
):
    """Even where the tokens are not held against their own hash."""
    data = shutil.copytree(dataset, tmp_path / "data")
    path = data / "test/tokens.bin"
    tokens = np.fromfile(path, np.uint16)
    tokens[3], tokens[4] = tokens[4], tokens[3]
    assert tokens[3] != tokens[4]
    tokens.tofile(path)
    tool = load_tool("eval", "gpt")
    options = ["--hf", gpt2_folder, "--data_root", data]
    assert "is not as it was written" in tool.mistake(*options)
    mistake = tool.mistake(*options, "--skip_data_hash")
    assert "in the split 'test' do not stand for the text that was prepared: prepare" in mistake


def test_positions_that_do_not_count_have_no_logits(model_folder):
    """The output layer gets those that do alone, and what becomes of their logits stays."""
    folder = open_folder(model_folder, lambda sentence: None)
    model = folder.load("cpu", 24, print)
    tokens = torch.randint(3, 280, (3, 20), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0, 2:] = mask[1, -4:] = mask[2, 7] = True
    sizes = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[:-1]))
    with torch.no_grad():
        scores = model(tokens, targets, torch.nonzero(mask, as_tuple=True))
        hook.remove()
        logits = model.model(input_ids=tokens).logits[mask].double()
    assert sizes == [(1, int(mask.sum()))]
    expected = torch.nn.functional.cross_entropy(logits, targets[mask], reduction="none")
    torch.testing.assert_close(scores.nats.double(), expected, rtol=1e-5, atol=1e-6)


def test_weights_that_the_model_leaves_out_are_told(gpt2_folder, tmp_path):
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    more = {"b.scale": torch.ones(2), "a.scale": torch.ones(2)}
    save_file({**weights, **more}, folder / "model.safetensors", {"format": "pt"})
    notices = []
    open_folder(folder, notices.append).load("cpu", 24, notices.append)
    assert notices == [f"{folder} holds 2 tensors that its model leaves out, the first is a.scale"]


class WithoutHead(torch.nn.Module):
    """Makes logits of something else than an output layer."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids):
        return transformers.modeling_outputs.CausalLMOutput(logits=self.logits[input_ids])


def test_a_model_without_an_output_layer_is_scored_all_the_same():
    logits = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(8).view(2, 4)
    scored = (torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]))
    scores = ForeignModel(WithoutHead(logits))(tokens, tokens + 1, scored)
    expected = -logits.log_softmax(1)[[3, 4, 6], [4, 5, 7]]
    torch.testing.assert_close(scores.nats, expected)


def edit(file, **values):
    def damage(folder):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))

    return damage


def without(name, file="model.safetensors"):
    def damage(folder):
        weights = load_file(folder / file)
        del weights[name]
        save_file(weights, folder / file, {"format": "pt"})

    return damage


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_pickle_by_an_index(folder):
    as_pickle(folder)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_a_distant_id(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["x"] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def without_end(folder):
    edit("tokenizer_config.json", eos_token=None)(folder)


def remove(file):
    return lambda folder: (folder / file).unlink()


def write(file, text):
    return lambda folder: (folder / file).write_text(text)


FOLDER = "give a folder that save_pretrained of transformers wrote"
OTHER = "give another model"
AGAIN = "save it again with save_pretrained, where you trust it, and give that folder"
DAMAGED = {
    "no configuration": (
        remove("config.json"),
        f"{{folder}}/config.json is missing or not JSON: {FOLDER}",
    ),
    "no object": (
        write("config.json", "[1]"),
        f"{{folder}}/config.json is no JSON object: {FOLDER}",
    ),
    "code of its own": (
        edit("config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
        (
            "{folder} brings code of its own, which is never run (auto_map in config.json):"
            f" {OTHER}"
        ),
    ),
    "code of its tokenizer's": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.X", None]}),
        (
            "{folder} brings code of its own, which is never run (auto_map in"
            f" tokenizer_config.json): {OTHER}"
        ),
    ),
    "quantised": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        (
            "{folder} has quantised weights, whose arithmetic is another package's"
            f" (quantization_config in config.json): {OTHER}"
        ),
    ),
    "other weights": (
        edit("config.json", transformers_weights="adapter_model.bin"),
        (
            "{folder} names a file of weights of its own (transformers_weights in config.json):"
            f" {OTHER}"
        ),
    ),
    "adapter": (
        write("adapter_config.json", "{}"),
        (
            "{folder} holds an adapter (adapter_config.json), not a whole model: merge it into its"
            " model, and save that"
        ),
    ),
    "pickle": (
        as_pickle,
        (
            "{folder} holds its weights as a pickle (pytorch_model.bin), which could run code as it"
            f" is read: {AGAIN}"
        ),
    ),
    "pickle by an index": (
        as_pickle_by_an_index,
        (
            "{folder}/model.safetensors.index.json names 'pytorch_model.bin', no file of"
            f" safetensors: {AGAIN}"
        ),
    ),
    "no weights": (
        remove("model.safetensors"),
        (
            "{folder} holds no weights (model.safetensors or model.safetensors.index.json):"
            f" {FOLDER}"
        ),
    ),
    "weights that lack one": (
        without("transformer.h.1.mlp.c_fc.weight"),
        (
            "{folder} lacks transformer.h.1.mlp.c_fc.weight (1 of the weights that GPT2LMHeadModel"
            " has): give the folder of a causal language model, whole"
        ),
    ),
    "a million layers": (
        edit("config.json", n_layer=10**6),
        "{folder} holds 28 tensors, and its config.json calls for 1,000,000 layers: " + FOLDER,
    ),
    "ours": (
        lambda folder: (folder / "config.json").rename(folder / "config.yaml"),
        (
            "{folder} is a model of ours (config.yaml): give --checkpoint_file"
            " {folder}/model.safetensors"
        ),
    ),
    "damaged weights": (
        write("model.safetensors", "no"),
        "{folder}: transformers fails at its weights (",
    ),
    "other sizes": (
        edit("config.json", n_inner=99),
        "{folder}: transformers fails at its weights (",
    ),
    "sizes that do not go together": (
        edit("config.json", n_head=0),
        "{folder}: transformers fails at its weights (",
    ),
    "unknown model": (
        edit("config.json", model_type="of mine"),
        "{folder}: transformers fails at its config.json (",
    ),
    "no language model": (
        edit("config.json", model_type="vit"),
        (
            "{folder} holds a vit, of which transformers "
            f"{transformers.__version__} makes no causal language model: {OTHER}"
        ),
    ),
    "damaged tokenizer": (
        write("tokenizer.json", "{"),
        "{folder}: transformers fails at its tokenizer (",
    ),
    "tokenizer with an id far off": (
        with_a_distant_id,
        "the tokenizer of {folder} has the id 2,147,483,648: give another",
    ),
    "tokenizer without an end": (
        without_end,
        (
            "{folder} has a tokenizer with neither an eos_token nor a bos_token, by which documents"
            " are told apart: name the one that the model was trained with in its"
            " tokenizer_config.json"
        ),
    ),
    "tokenizer of another model": (
        edit("config.json", vocab_size=258),
        "{folder}: its tokenizer gives the id ",
    ),
}


@pytest.mark.parametrize("damage, sentence", DAMAGED.values(), ids=DAMAGED)
def test_folders_that_are_not_opened(damage, sentence, gpt2_folder, tmp_path, load_tool):
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    damage(folder)
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dogs. number 99")
    mistake = load_tool("eval", "gpt").mistake("--hf", folder, "--text", tmp_path / "a.txt")
    assert mistake.startswith(sentence.format(folder=folder)) and "\n" not in mistake


def test_a_model_that_sees_what_it_is_to_predict_is_refused(tmp_path, load_tool):
    config = transformers.BertConfig(
        vocab_size=405, intermediate_size=24, max_position_embeddings=24, **SHAPE
    )
    folder = save(tmp_path / "bert", config, byte_level(), eos_token=END)
    (tmp_path / "a.txt").write_text("the fox")
    mistake = load_tool("eval", "gpt").mistake("--hf", folder, "--text", tmp_path / "a.txt")
    assert mistake.startswith(
        f"{folder}: its BertLMHeadModel sees the tokens that it is to predict: what it says of the"
        " first ones depends on the last: give a causal language model"
    )


def test_positions_that_its_configuration_promises_and_its_model_has_not(tmp_path, load_tool):
    """RoBERTa's begin behind the padding id."""
    sizes = {"intermediate_size": 24, "max_position_embeddings": 26, **SHAPE}
    config = transformers.RobertaConfig(vocab_size=405, is_decoder=True, **sizes)
    folder = save(tmp_path / "roberta", config, byte_level(), eos_token=END)
    (tmp_path / "a.txt").write_text("the fox")
    tool = load_tool("eval", "gpt")
    options = ["--hf", folder, "--text", tmp_path / "a.txt"]
    mistake = tool.mistake(*options)
    assert mistake.startswith(f"{folder}: transformers fails at its model at 26 tokens (")
    assert mistake.endswith("): give a smaller --seq_len, or another model")


MISTAKES = [
    (
        ["--data_root", "d", "--text", "a"],
        "--text and --data_root exclude each other: leave one out",
    ),
    (["--data_root", "d", "--join", "r"], "--hf and --join exclude each other: leave one out"),
    (
        ["--data_root", "d", "--config_file", "c"],
        "--hf and --config_file exclude each other: leave one out",
    ),
    (
        ["--data_root", "d", "--checkpoints", "r"],
        "command line: argument --checkpoints: not allowed with argument --hf",
    ),
    (
        ["--data_root", "d", "--trust_model_file"],
        (
            "--hf runs no code that came with weights, so --trust_model_file says nothing to it:"
            " leave it out"
        ),
    ),
    (
        [],
        (
            "--hf names a model, and nothing that it is to be scored on: name a dataset by"
            " --data_root, or text files by --text"
        ),
    ),
    (
        ["--data_root", "d", "--seq_len", "25"],
        (
            "--seq_len 25 is longer than the 24 positions that the model was trained with: give at"
            " most 24"
        ),
    ),
    (
        ["--data_root", "d", "--last_n", "25"],
        "--last_n 25 is more than the 24 targets of a window: give at most 24",
    ),
    (["--data_root", "d"], "d holds no dataset (no manifest.json)"),
    (["--data_root", "d", "--device", "gpu"], "--device gpu is not to be had here: "),
]


@pytest.mark.parametrize(
    "options, sentence", [pytest.param(*case, id=" ".join(case[0])) for case in MISTAKES]
)
def test_mistakes(options, sentence, gpt2_folder, load_tool):
    assert load_tool("eval", "gpt").mistake("--hf", gpt2_folder, *options).startswith(sentence)


def test_what_is_no_folder_is_not_fetched(tmp_path, load_tool):
    mistake = load_tool("eval", "gpt").mistake("--hf", "gpt2", "--data_root", tmp_path)
    assert mistake == f"gpt2 is no folder: {FOLDER}; nothing is fetched"


def test_without_the_package_it_is_told_what_to_install(gpt2_folder, load_tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    mistake = load_tool("eval", "gpt").mistake("--hf", gpt2_folder, "--data_root", "d")
    assert mistake == (
        "the package transformers is not installed: run `pip install -e '.[hf]'` in the project's"
        " folder"
    )


def test_a_long_window_has_to_be_asked_for(gpt2_folder, tmp_path):
    folder = shutil.copytree(gpt2_folder, tmp_path / "long")
    edit("config.json", n_positions=5000)(folder)
    opened = open_folder(folder, print)
    assert opened.window(None, None) == (2048, 128)
    assert opened.window(5000, 5000) == (5000, 5000)
