"""The README of an export: what it is, what is known of it, how it is loaded.

Its strings come from the maker of the bundle, so each is shown as code, whatever is in it.
"""

import json
import re

from tuner.backpack import BackpackConfig
from tuner.bundle.bundle import StoredBundle
from tuner.bundle.manifest import Manifest
from tuner.evaluation.deviation.budget import Certificate, Divergence, epsilon_name
from tuner.evaluation.scores import Scores
from tuner.validation import printable


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
    deviation = certificate.deviation
    said = (
        f"for ε = {epsilon_name(certificate.epsilon)}: **{certificate.verdict.value}**, deviation "
        f"{deviation.estimate:.2e} in [{deviation.lower:.2e}, {deviation.upper:.2e}] at confidence "
        f"{deviation.confidence:.1%}, from {deviation.tokens:,} tokens of "
        f"{code_span(certificate.corpus)}" + _told(deviation.divergence)
    )
    doubt = bundle.doubt(certificate)
    if doubt is None:
        return (
            f"Certificate {said}. It names this delta and its base "
            f"({code_span(bundle.manifest.base_fingerprint[:12])}…) by their hashes; anybody who "
            "doubts its maker runs `tuner certify`."
        )
    return f"**Unverified** certificate: {doubt}. Run `tuner certify`. It says {said}."


def served_statement(certificate: Certificate | None) -> str:
    """Return what is known of an export that serves another change than the one judged."""
    if certificate is None:
        return (
            "\nThe statements above are about the edit as it was judged. These files round or cut "
            "it, so they are **another model, which nobody has certified**: export again with "
            "general text (`--general FILE`) to have it measured.\n"
        )
    measured = certificate.deviation
    return (
        f"\nThese files serve the edit as {code_span(certificate.form or 'it is')}, which was "
        f"measured by itself: **{certificate.verdict.value}** for ε = "
        f"{epsilon_name(certificate.epsilon)}, deviation {measured.estimate:.2e} in "
        f"[{measured.lower:.2e}, {measured.upper:.2e}] at confidence {measured.confidence:.1%}, "
        f"from {measured.tokens:,} tokens{_told(measured.divergence)}.\n"
    )


def _told(divergence: Divergence | None) -> str:
    if divergence is None:
        return ""
    limit = "" if divergence.limit is None else f", of {divergence.limit:.1e} allowed"
    return f"; mean KL(base‖edited) {divergence.estimate:.2e} nats per token{limit}"


def loading_code(manifest: Manifest, source: str) -> str:
    """Return the Python that loads a model, edited or not, from `source`."""
    # Built-in models have no place on a hub, and transformers alone knows no Backpack: tuner
    # itself loads them.
    if source.startswith("builtin:") or manifest.model_type == BackpackConfig.model_type:
        return f"import tuner\n\nmodel = tuner.load_model({python_string(source)}).network"
    return (
        "from transformers import AutoModelForCausalLM\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({python_string(source)})"
    )


def edit_card(bundle: StoredBundle, what: str, usage: str) -> str:
    """Return the card of an export: `what` it is, and how it is loaded."""
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

{usage}
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
