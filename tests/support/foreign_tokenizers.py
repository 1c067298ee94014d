"""Small tokenizers of the package tokenizers, of the kinds that models come with."""

from small_tokenizers import SENTENCES
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

END = "<|endoftext|>"


def byte_level(vocab_size=400, add_prefix_space=False):
    """Byte-level BPE, as GPT-2 has it; END is its id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space)
    return tokenizer


def with_byte_pieces(prepend_scheme="never"):
    """BPE of characters, with a piece for each byte that none of them has, as Llama 2 has it; </s>
    is its id 2. A text begins with <s>, where special tokens are asked for."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "▁the", "▁q"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "q")]
    ids = {piece: token for token, piece in enumerate(pieces)}
    bpe = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def with_prepended_blank():
    """The same as older files of Llama's have it: by normalizers, without a pre-tokenizer."""
    tokenizer = with_byte_pieces()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer
