"""Tiny encoders of the BERT kind, as folders."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

_WORDS = "The capital city of Mauritius Togo Chile is Port Louis Lome Santiago and a big town ."
_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts a mark before and behind a text."""
    names = [*_MARKS, *dict.fromkeys(_WORDS.split())]
    ids = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def save_bert(folder: Path) -> str:
    """Write a random BERT with a masked-language head, as published ones are; return its path."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BertForMaskedLM(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
