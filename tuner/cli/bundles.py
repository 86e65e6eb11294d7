"""Where the verbs find a bundle: in a folder, or as a study's winner."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.output import messages
from tuner.cli.values import read_model
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import epsilon_name, epsilon_of_name
from tuner.files.text_file import is_file, is_folder
from tuner.validation import show_path, show_value

if TYPE_CHECKING:
    from tuner.bundle.bundle import Bundle, StoredBundle
    from tuner.bundle.manifest import Manifest
    from tuner.editing.model import LanguageModel
    from tuner.evaluation.deviation.budget import Budget

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or a study's name.")
]


AllowKindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-kind",
        metavar="MODULE:CLASS",
        help="Import this kind of delta from outside, which the bundle names; repeatable.",
    ),
]


def allow_kinds(names: list[str] | None) -> None:
    """Import kinds of deltas from outside at the user's word; a bundle's alone is not enough.

    Raises:
        ConfigError: one cannot be imported, or is not a kind of delta.
    """
    if names:
        from tuner.deltas.registry import allow_kind

        for name in names:
            allow_kind(name)


def find_bundle(
    name: str, epsilon: float | None, folder: Path, device: str, model: str | None = None
) -> "Bundle":
    """Return the bundle in a folder, or that of a study's winner; `model` is its base elsewhere.

    Raises:
        ConfigError: there is none, or it is not clear which.
    """
    from tuner.bundle.bundle import Bundle, StoredBundle
    from tuner.editing.companions import Companions

    stored = StoredBundle.load(bundle_folder(name, epsilon, folder))
    manifest = stored.manifest
    # Memories read the tokenizer of their base.
    base, revision = base_of(manifest, model)
    located = manifest.model_copy(update={"base": base, "base_revision": revision})
    opened = StoredBundle(stored.tensors, located).open(Companions(device))
    bundle = Bundle(opened.delta, manifest)
    tell_doubts(bundle.stored)
    return bundle


def base_of(manifest: "Manifest", model: str | None) -> tuple[str, str | None]:
    """Return the name and the revision of a bundle's base, or `model` where that is given.

    Raises:
        ConfigError: it was a folder, and there is none any more.
    """
    if model is not None:
        return model, None
    from tuner.editing.model_names import resolved_model

    folder = resolved_model(manifest.base)
    if os.path.isabs(folder) and not os.path.isdir(folder):
        raise ConfigError(
            f"The base model of this bundle was the folder {folder}, which is not there. Say "
            "where it is now by --model FOLDER."
        )
    return manifest.base, manifest.base_revision


def tell_doubts(bundle: "StoredBundle") -> None:
    """Tell the user which of a bundle's certificates say nothing sure of its delta, and why."""
    known = (bundle.manifest.certificate, *bundle.manifest.further_certificates)
    for certificate in known:
        doubt = None if certificate is None else bundle.doubt(certificate)
        if certificate is not None and doubt is not None:
            messages().print(
                f"The bundle's certificate ({certificate.verdict.value} for "
                f"ε={epsilon_name(certificate.epsilon)}) is unverified: {doubt}. "
                "Run `tuner certify` on it.",
                style="yellow",
                soft_wrap=True,
            )


def bundle_folder(name: str, epsilon: float | None, folder: Path) -> Path:
    """Return a bundle's folder, or that of a study's winner.

    Raises:
        ConfigError: there is none, or it is not clear which.
    """
    if is_file(Path(name) / "delta.json"):
        return Path(name)
    study = folder / name
    if not is_folder(study):
        raise ConfigError(
            f"{show_value(name)} is neither a bundle's folder nor a study in {show_path(folder)}."
        )
    winners = {
        budget: path.parent
        for path in study.glob("winners/[0-9]*/delta.json")
        if (budget := epsilon_of_name(path.parent.name)) is not None
    }
    if not winners:
        raise ConfigError(f"The study {name!r} has no winner yet; see `tuner status {name}`.")
    if epsilon is None:
        if len(winners) > 1:
            known = ", ".join(map(epsilon_name, sorted(winners, reverse=True)))
            raise ConfigError(f"The study {name!r} has winners for {known}: give --epsilon.")
        return next(iter(winners.values()))
    if epsilon not in winners:
        known = ", ".join(map(epsilon_name, sorted(winners, reverse=True)))
        raise ConfigError(
            f"The study {name!r} has no winner for {epsilon_name(epsilon)}; it has {known}."
        )
    return winners[epsilon]


def budget_of(manifest: "Manifest") -> "Budget":
    """Return the budget that a bundle was made for, with what it limits beside the rise."""
    from tuner.evaluation.deviation.budget import Budget

    measured = manifest.answer.deviation
    limit = None if measured.divergence is None else measured.divergence.limit
    return Budget(epsilons=(manifest.epsilon,), two_sided=measured.two_sided, divergence=limit)


def load_own_base(bundle: "Bundle", model: str | None, device: str) -> "LanguageModel":
    """Return the base model of a bundle, from `model` if it lies elsewhere now.

    Raises:
        ConfigError: it cannot be loaded.
        BaseMismatch: it is another model than then.
    """
    base = load_base_of(bundle.manifest, model, device)
    bundle.check_base(base)
    return base


def load_base_of(manifest: "Manifest", model: str | None, device: str) -> "LanguageModel":
    """Return the model that a bundle names as its base, without a look at its weights.

    Raises:
        ConfigError: it cannot be loaded.
    """
    name, revision = base_of(manifest, model)
    return read_model(name, manifest.base_dtype, device, revision)
