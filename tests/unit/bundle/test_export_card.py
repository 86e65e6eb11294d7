"""The README of an export: it runs as it stands, whatever a stranger's bundle is called."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.support.bundles import bundle_of
from tuner.bundle.bundle import Bundle
from tuner.bundle.export import export
from tuner.bundle.export_card import code_span
from tuner.bundle.formats.peft import adapter_card
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.model import LanguageModel

NASTY = 'builtin:neox"); import os; os.system("touch owned'
LINES = "a\n```\n# Owned\n<script>alert(1)</script> | `b` | {{x}} \u2028 \u202e"


def _bundle(model: LanguageModel, rank: int = 2, **manifest: object) -> Bundle:
    change = LowRank(torch.ones(32, rank), torch.ones(rank, 64))
    made = bundle_of(model, WeightDelta({"gpt_neox.layers.1.mlp.dense_4h_to_h.weight": change}))
    return Bundle(made.delta, made.manifest.model_copy(update=manifest))


def _block(card: str, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("base", [NASTY, LINES, "it's", "\\", '"""', "x; rm -rf ~ $(id) `id`"])
def test_a_base_of_any_name_stays_one_string(neox: LanguageModel, base: str) -> None:
    card = adapter_card(_bundle(neox, base=base).stored, "my edit", 8)
    tree = ast.parse(_block(card, "python"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    loader = "tuner.load_model" if base.startswith("builtin:") else "from_pretrained"
    assert called in (
        {loader, "PeftModel.from_pretrained"},
        {"AutoModelForCausalLM.from_pretrained", "PeftModel.from_pretrained"},
    )
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert base in strings
    words = shlex.split(_block(card, "sh"))
    assert len(words) == 6
    assert words[:2] == ["vllm", "serve"]
    if base.isprintable():
        assert words[2] == base
    assert words[3:] == ["--enable-lora", "--lora-modules", "edit=my edit"]


def test_strings_of_a_bundle_are_shown_and_never_rendered(
    neox: LanguageModel, tmp_path: Path
) -> None:
    bundle = _bundle(
        neox,
        base=LINES,
        task=LINES,
        editor="**bold** <b>",
        hyperparameters={"a | b": "c | d", "lines": LINES},
        versions={"tuner": LINES},
    )
    export(bundle, tmp_path / "out", format="peft")
    card = (tmp_path / "out" / "README.md").read_text()
    lines = card.splitlines()
    assert "# Owned" not in lines
    assert [line for line in lines if line.startswith("#")] == [lines[0]]
    assert all(c.isprintable() for c in card.replace("\n", ""))
    assert "`**bold** <b>`" in card
    rows = [line for line in lines if line.startswith("| ") and "hyperparameter" not in line]
    assert rows[0] == "| `a \\| b` | `c \\| d` |"
    assert len(re.findall(r"(?<!\\)\|", rows[1])) == 3


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("plain", "`plain`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        (" x ", "`  x  `"),
        ("", "(empty)"),
        ("a\nb", "`a\\nb`"),
    ],
)
def test_code_spans_hold_what_they_are_given(text: str, span: str) -> None:
    assert code_span(text) == span


@pytest.mark.parametrize(
    ("rank", "option"),
    [
        (1, ""),
        (16, ""),
        (17, " --max-lora-rank 32"),
        (32, " --max-lora-rank 32"),
        (200, " --max-lora-rank 256"),
        (257, " --max-lora-rank 320"),
        (512, " --max-lora-rank 512"),
    ],
)
def test_vllm_is_told_of_a_rank_above_its_default(
    neox: LanguageModel, rank: int, option: str
) -> None:
    card = adapter_card(_bundle(neox, base="gpt2").stored, "edit", rank)
    expected = f"vllm serve gpt2 --enable-lora{option} --lora-modules edit=edit\n"
    assert _block(card, "sh") == expected


def test_a_rank_that_vllm_never_serves_is_said(neox: LanguageModel) -> None:
    card = adapter_card(_bundle(neox, base="gpt2").stored, "edit", 513)
    assert "vllm serve" not in card
    assert "vLLM serves adapters up to rank 512, and this one has rank 513" in card


def test_an_export_follows_the_umask(neox: LanguageModel, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    bundle = _bundle(neox)
    for format in ("peft", "merged", "delta"):
        export(bundle, tmp_path / format, format=format, model=neox)
        modes = {path.stat().st_mode for path in (tmp_path / format).iterdir()}
        assert modes == {plain.stat().st_mode}
