"""Verbs that make an edit ready for others: certify, export."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.bundles import (
    AllowKindOption,
    BundleArgument,
    allow_kinds,
    budget_of,
    bundle_folder,
    find_bundle,
    load_base_of,
    load_own_base,
    tell_doubts,
)
from tuner.cli.options import (
    STUDIES,
    BlockLengthOption,
    DeviceOption,
    DivergenceOption,
    FolderOption,
    GeneralOption,
    GeneralTokensOption,
    TwoSidedOption,
)
from tuner.cli.output import (
    JsonFlag,
    console,
    messages,
    print_json,
    show_certificate,
    show_deviation,
    show_divergence,
)
from tuner.cli.values import (
    read_budget,
    read_tokens,
)
from tuner.evaluation.deviation.budget import epsilon_name

if TYPE_CHECKING:
    from tuner.bundle.manifest import Manifest
    from tuner.editing.delta import Delta
    from tuner.editing.model import LanguageModel
    from tuner.evaluation.deviation.budget import Certificate


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(epilog="Example: `tuner certify my-edit`")(certify)
    app.command(epilog="Example: `tuner export country_capital-lora adapter --epsilon 1e-3`")(
        export
    )


def certify(
    bundle: BundleArgument,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "-e", help="By default the bundle's budget.")
    ] = None,
    two_sided: TwoSidedOption = False,
    divergence: DivergenceOption = None,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.9999, help="Of the statement.")
    ] = 0.95,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="By default the bundle's own base.")
    ] = None,
    general: GeneralOption = None,
    general_tokens: GeneralTokensOption = None,
    block_length: BlockLengthOption = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1000, help="Most tokens of fresh text to read.")
    ] = None,
    device: DeviceOption = "auto",
    folder: FolderOption = STUDIES,
    allow_kind: AllowKindOption = None,
    json_: JsonFlag = False,
) -> None:
    """Say, from text that no search has read, whether a delta keeps its budget.

    The certificate is written into the bundle, replacing one for the same budget and of any
    that it contradicts. Exit code 1 where the budget is not surely kept.
    """
    allow_kinds(allow_kind)
    edited = find_bundle(bundle, epsilon, folder, device, model)
    made = budget_of(edited.manifest)
    budget = read_budget(
        [edited.manifest.epsilon if epsilon is None else epsilon],
        two_sided=two_sided or made.two_sided,
        divergence=made.divergence if divergence is None else divergence,
    )
    from tuner.editing.corpus import TextPart, load_general_text
    from tuner.evaluation.deviation.gradient_store import GradientStore
    from tuner.evaluation.deviation.meter import DeviationMeter
    from tuner.files.cache import Cache, cache_folder

    base = load_own_base(edited, model, device)
    amounts = read_tokens(general_tokens)
    if tokens is not None:
        amounts[TextPart.CONFIRMATION] = tokens
    whole = load_general_text(general, base, block_length=block_length, tokens=amounts)
    text, cache = whole.corpus(TextPart.CONFIRMATION), Cache(cache_folder())
    messages().print(f"Reading up to {text.predicted_tokens:,} tokens of {text.name} …")
    meter = DeviationMeter(
        base,
        text,
        confidence=confidence,
        two_sided=budget.two_sided,
        divergence=budget.divergence,
        gradient_of=GradientStore(base, whole, cache).of,
        cache=cache,
    )
    meter.check_budget(budget)
    if len(text.blocks) < meter.least_for_certificate:
        messages().print(
            f"A certificate needs {meter.least_for_certificate} blocks of fresh text; this text "
            f"has {len(text.blocks)}, so the verdict can only be over or unresolved."
        )
    certificate = meter.certify(edited.delta, budget.epsilons[0])
    if json_:
        print_json(certificate)
    else:
        console().print(show_certificate(certificate))
        console().print(
            f"ε={epsilon_name(certificate.epsilon)}, "
            f"deviation {show_deviation(certificate.deviation)} in "
            f"[{certificate.deviation.lower:.1e}, {certificate.deviation.upper:.1e}], "
            f"divergence {show_divergence(certificate.deviation)} nats per token"
        )
    changed, told = edited.stored.certified(certificate)
    for line in told:
        messages().print(line, style="yellow", soft_wrap=True)
    changed.save(bundle_folder(bundle, epsilon, folder))
    if not certificate.holds:
        raise typer.Exit(1)


def export(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="peft (adapter), merged (whole model), delta, or package.module:Class; default "
            "the lightest exact one.",
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "-e", help="Which of a study's winners.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Cut a dense delta to this rank (peft).")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="By default the bundle's own base.")
    ] = None,
    general: GeneralOption = None,
    device: DeviceOption = "auto",
    folder: FolderOption = STUDIES,
    allow_kind: AllowKindOption = None,
    json_: JsonFlag = False,
) -> None:
    """Write a delta as a PEFT adapter (also for vLLM), a merged model, or as it is.

    A format that serves another change than the one that was judged, rounded into half-precision
    weights or cut to a rank, is measured anew on general text.
    """
    allow_kinds(allow_kind)
    from tuner.bundle.bundle import StoredBundle
    from tuner.bundle.export import export as write
    from tuner.bundle.formats import FORMATS

    if format_ is not None:
        FORMATS.find(format_)
    # Copying needs none of the models that the delta brings along: they may be out of reach.
    stored = StoredBundle.load(bundle_folder(bundle, epsilon, folder))
    tell_doubts(stored)

    def load_base() -> "LanguageModel":
        return load_base_of(stored.manifest, model, device)

    certify_ = None
    if general is not None or stored.manifest.base.startswith("builtin:"):
        certify_ = partial(_certify_served, stored.manifest, general)
    written = write(stored, out, format=format_, load_base=load_base, rank=rank, certify=certify_)
    if json_:
        shown: dict[str, object] = {
            "folder": str(written.folder),
            "format": written.format,
            "note": written.note,
        }
        if written.certificate is not None:
            shown["certificate"] = written.certificate
        print_json(shown)
    else:
        console().print(f"{written.folder}: {written.format}, {written.note}", soft_wrap=True)
        if written.certificate is not None:
            console().print(
                f"As {written.certificate.form}, ε={epsilon_name(written.certificate.epsilon)}: ",
                show_certificate(written.certificate),
                f", deviation {show_deviation(written.certificate.deviation)}",
                sep="",
                soft_wrap=True,
            )


def _certify_served(
    manifest: "Manifest", general: str | None, base: "LanguageModel", delta: "Delta"
) -> "Certificate":
    """Return what fresh text says of a change in the form in which it is served."""
    from tuner.editing.corpus import TextPart, load_general_text
    from tuner.evaluation.deviation.gradient_store import GradientStore
    from tuner.evaluation.deviation.meter import DeviationMeter
    from tuner.files.cache import Cache, cache_folder

    budget = budget_of(manifest)
    whole, cache = load_general_text(general, base), Cache(cache_folder())
    text = whole.corpus(TextPart.CONFIRMATION)
    messages().print(f"Reading up to {text.predicted_tokens:,} tokens of {text.name} …")
    meter = DeviationMeter(
        base,
        text,
        confidence=budget.confidence,
        two_sided=budget.two_sided,
        divergence=budget.divergence,
        gradient_of=GradientStore(base, whole, cache).of,
        cache=cache,
    )
    return meter.certify(delta, manifest.epsilon)
