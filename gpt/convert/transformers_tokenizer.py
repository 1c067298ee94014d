"""The SentencePiece vocabulary in a GPT2LMHeadModel's folder: as a fast tokenizer where that gives
the same ids, and found again."""

import json
from pathlib import Path

import sentencepiece

from gpt.data.manifests import TOKENIZER
from gpt.data.vocab import BLANK, Vocab
from gpt.errors import UserError

# the vocabulary where transformers has no tokenizer for it: of a tokenizer.model it would make one
# that gives other ids
VOCABULARY = "sentencepiece.model"
# a class that is not there, since of no files at all transformers makes a tokenizer without ids
NO_TOKENIZER = {"tokenizer_class": "NoneButSentencePiece"}


def save_tokenizer(vocab: Vocab, seq_len: int, folder: Path | str) -> None:
    """Write the SentencePiece BPE vocabulary as a PreTrainedTokenizerFast, with the end of a
    document for bos and eos.

    Hold its ids against SentencePiece's before use: a vocabulary of another kind than BPE with byte
    fallback, the identity normalisation and no dummy prefix, as ours and the seed project's are,
    gives others.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    ids = {pieces.id_to_piece(i): i for i in range(vocab.size)}
    merges = _merges(pieces, ids, vocab.eod_id)
    unknown = pieces.id_to_piece(pieces.unk_id()) if pieces.unk_id() >= 0 else None
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    end = AddedToken(pieces.id_to_piece(vocab.eod_id), special=True, normalized=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        model_max_length=seq_len,
        clean_up_tokenization_spaces=False,
    )
    # written here first: the library tells a full disk by an exception without a type
    text = fast.backend_tokenizer.to_str(pretty=True)
    (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
    fast.save_pretrained(folder)
    # transformers 5 writes a name that 4 does not know
    path = Path(folder) / "tokenizer_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    portable = {**saved, "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(portable, indent=1) + "\n", encoding="utf-8")


def _merges(pieces: sentencepiece.SentencePieceProcessor, ids: dict[str, int], eod_id: int):
    """Pairs of pieces that merge into a piece, the one whose result SentencePiece scores highest
    first."""
    scored = []
    for piece, i in ids.items():
        special = pieces.is_byte(i) or pieces.is_control(i) or pieces.is_unknown(i)
        if special or pieces.is_unused(i) or i == eod_id:
            continue
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in ids and pair[1] in ids:
                scored.append((-pieces.get_score(i), i, pair))
    return [pair for _, _, pair in sorted(scored)]


def save_without_tokenizer(vocab: Vocab, folder: Path) -> None:
    """Write the vocabulary for the package sentencepiece alone, such that transformers opens no
    tokenizer of this folder."""
    for name in ("tokenizer.json", "special_tokens_map.json", TOKENIZER):
        (folder / name).unlink(missing_ok=True)
    (folder / VOCABULARY).write_bytes(vocab.model)
    text = json.dumps(NO_TOKENIZER, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def find_vocabulary(folder: Path) -> Path:
    """The SentencePiece model in a GPT2LMHeadModel's folder. Raises UserError where there is
    none."""
    for name in (TOKENIZER, VOCABULARY):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} holds no {TOKENIZER}, which transformers does not take along",
        mend="copy it from the folder that export_hf.py made, or give it by --tokenizer",
    )


def require_vocabulary(file: Path, vocab: Vocab, ids: int, fingerprint: str | None) -> None:
    """Raise UserError unless the vocabulary of `file` is that of a model.

    ids: how many the model has. fingerprint: of the vocabulary that it was exported with; None
    where that is not told.
    """
    mend = "give the tokenizer that it was trained with (--tokenizer)"
    if ids > vocab.size:
        mend = (
            "where tokens were added, such as one for padding, call"
            f" model.resize_token_embeddings({vocab.size}) and save it again; else {mend}"
        )
    if ids != vocab.size:
        raise UserError(f"{file} has {vocab.size} ids, and the model {ids}", mend=mend)
    if fingerprint not in (None, vocab.fingerprint):
        raise UserError(f"{file} is not the tokenizer that the model was exported with", mend=mend)
