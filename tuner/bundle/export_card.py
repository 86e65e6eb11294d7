"""The README of an export: what it is, what is known of it, how it is loaded.

Its strings come from the maker of the bundle, so each is shown as code, whatever is in it.
"""

import json
import re
import shlex

from tuner.backpack import BackpackConfig
from tuner.bundle.bundle import StoredBundle
from tuner.bundle.manifest import Manifest
from tuner.evaluation.deviation.budget import Certificate, epsilon_name
from tuner.evaluation.scores import Scores
from tuner.validation import printable

# vLLM takes no other values for --max-lora-rank, and 16 where none is given.
# Source: `MaxLoRARanks` of vllm/config/lora.py (commit 01230b40).
_SERVED_RANKS = (16, 32, 64, 128, 256, 320, 512)


def card_of_adapter(bundle: StoredBundle, folder: str, rank: int) -> str:
    """Return the card of a LoRA adapter of a rank, in a folder of that name."""
    base = bundle.manifest.base
    use = f"""\
```python
from peft import PeftModel
{_loading(bundle.manifest, base)}
model = PeftModel.from_pretrained(model, {python_string(folder)})
```
{_serving(base, folder, rank)}"""
    return _card(bundle, "a LoRA adapter", use)


def card_of_merged(bundle: StoredBundle, folder: str) -> str:
    """Return the card of a merged model, in a folder of that name."""
    return _card(bundle, "a merged model", f"```python\n{_loading(bundle.manifest, folder)}\n```\n")


def code_span(text: str) -> str:
    """Return a text as Markdown shows it letter by letter, on one line."""
    shown = printable(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    # A space next to each fence is not shown.
    edge = " " if shown.strip() != shown or "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{edge}{shown}{edge}{fence}" if shown else "(empty)"


def python_string(text: str) -> str:
    """Return a text as a string of Python, on one line."""
    return printable(json.dumps(text, ensure_ascii=False))


def statement_of(bundle: StoredBundle, certificate: Certificate) -> str:
    """Return what a certificate says, and whether it may be taken for this delta's."""
    found = certificate.deviation
    said = (
        f"for ε = {epsilon_name(certificate.epsilon)}: **{certificate.verdict.value}**, deviation "
        f"{found.estimate:.2e} in [{found.lower:.2e}, {found.upper:.2e}] at confidence "
        f"{found.confidence:.1%}, from {found.tokens:,} tokens of {code_span(certificate.corpus)}"
    )
    doubt = bundle.doubt(certificate)
    if doubt is None:
        return (
            f"Certificate {said}. It names this delta and its base "
            f"({code_span(bundle.manifest.base_fingerprint[:12])}…) by their hashes; anybody who "
            "doubts its maker runs `tuner certify`."
        )
    return f"**Unverified** certificate: {doubt}. Run `tuner certify`. It says {said}."


def _serving(base: str, folder: str, rank: int) -> str:
    served = next((one for one in _SERVED_RANKS if rank <= one), None)
    if served is None:
        return (
            f"vLLM serves adapters up to rank {_SERVED_RANKS[-1]}, and this one has rank {rank}: "
            "for vLLM export the edit as `merged`.\n"
        )
    most = "" if served == _SERVED_RANKS[0] else f" --max-lora-rank {served}"
    place, module = _shell_word(base), _shell_word(f"edit={folder}")
    return f"""\
vLLM serves the folder as a LoRA module:
```sh
vllm serve {place} --enable-lora{most} --lora-modules {module}
```
"""


def _loading(manifest: Manifest, source: str) -> str:
    # Built-in models have no place on a hub, and transformers alone knows no Backpack: tuner
    # itself loads them.
    if source.startswith("builtin:") or manifest.model_type == BackpackConfig.model_type:
        return f"import tuner\n\nmodel = tuner.load_model({python_string(source)}).network"
    return (
        "from transformers import AutoModelForCausalLM\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({python_string(source)})"
    )


def _card(bundle: StoredBundle, what: str, use: str) -> str:
    manifest = bundle.manifest
    answer, exact = manifest.answer, manifest.answer.scores.exact
    known = [c for c in (manifest.certificate, *manifest.further_certificates) if c is not None]
    statements = [statement_of(bundle, one) for one in known] or ["No certificate was made."]
    settings = "\n".join(
        f"| {_cell(key)} | {_cell(str(value))} |" for key, value in manifest.hyperparameters.items()
    )
    certified = "\n".join(f"- {statement}" for statement in statements)
    version = manifest.versions.get("tuner")
    return f"""\
# An edit of {code_span(manifest.base)}, as {what}

Made by tuner{"" if version is None else f" {code_span(version)}"} with the editor \
{code_span(manifest.editor)} for the task
{code_span(manifest.task)} ({manifest.split.value} split, seed {manifest.seed}).

- Success on out-of-distribution rows: {answer.success:.3f}, a gain of {answer.gain:+.3f} over the
  base; without teacher forcing {"–" if exact is None else f"{exact:.3f}"}.
{_fact_line(answer.scores)}\
{certified}

{use}
| hyperparameter | value |
|---|---|
{settings}
"""


def _fact_line(scores: Scores) -> str:
    """Return a line with the published figures of a fact edit; nothing for other tasks."""
    told = [
        f"{name.replace('_', ' ')} {share:.3f}" for name, share in scores.fact_figures().items()
    ]
    return f"- Of the facts, the true tokens given: {', '.join(told)}.\n" if told else ""


def _cell(text: str) -> str:
    return code_span(text).replace("|", "\\|")


def _shell_word(text: str) -> str:
    return shlex.quote(printable(text))
