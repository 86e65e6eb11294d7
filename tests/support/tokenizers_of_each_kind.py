"""A small tokenizer of each kind that models come with, trained on the spot."""

import json
from functools import cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The capital city of Mauritius is Port Louis, and that of Togo is Lome.",
    "The capital of Chile is Santiago and a big town.",
    "He is a singer, who sings in Port Louis.",
    "日本の首都は東京です。東京は大きい。 😀",
) * 20

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"

KINDS = (
    "byte_level",
    "byte_level_bos",
    "byte_level_eos",
    "byte_level_bos_eos",
    "byte_level_trimmed",
    "prepend",
    "metaspace_first",
    "metaspace_always",
    "metaspace_never",
    "unigram",
    "word_pieces",
)
"""Of GPT-2; Llama 3; with an end mark; with both; of RoBERTa; of Mistral and Llama 2; as these are
converted; of T5 and XLNet; of BERT. All but the first and the third begin a text with a mark."""


@cache
def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a kind; none has a token for padding."""
    match kind.partition("_"):
        case ("byte", _, marks):
            made = _byte_level(marks.removeprefix("level").removeprefix("_"))
        case ("prepend", _, _):
            made = _sentence_pieces("prepend")
        case ("metaspace", _, scheme):
            made = _sentence_pieces(scheme)
        case ("unigram", _, _):
            made = _unigram()
        case _:
            made = _word_pieces()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )


def _byte_level(marks: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[UNKNOWN, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    plain = processors.ByteLevel(trim_offsets=marks == "trimmed")
    templates = {"bos": f"{BOS} $A", "eos": f"$A {EOS}", "bos_eos": f"{BOS} $A {EOS}"}
    templates["trimmed"] = templates["bos"]
    if marks in templates:
        made.post_processor = processors.Sequence([plain, _template(made, templates[marks])])
    else:
        made.post_processor = plain
    return made


def _sentence_pieces(scheme: str) -> Tokenizer:
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    # So that pieces end where words do, as in tokenizers that have seen more than four sentences.
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex("東京|[はの,.。]"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=[UNKNOWN, BOS, EOS], show_progress=False
    )
    learned.train_from_iterator([f" {text}" for text in TEXTS], trainer)
    model = json.loads(learned.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    made = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for left, right in model["merges"]],
            unk_token=UNKNOWN,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.add_special_tokens([UNKNOWN, BOS, EOS])
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([*steps, *strip])
    made.post_processor = _template(made, f"{BOS} $A")
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=[UNKNOWN, BOS, EOS],
        unk_token=UNKNOWN,
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = _template(made, f"{BOS} $A {EOS}")
    return made


def _word_pieces() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=[UNKNOWN, BOS, EOS], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = _template(made, f"{BOS} $A {EOS}")
    return made


def _template(made: Tokenizer, template: str) -> processors.TemplateProcessing:
    marks = [(mark, made.token_to_id(mark)) for mark in (BOS, EOS)]
    return processors.TemplateProcessing(single=template, special_tokens=marks)
