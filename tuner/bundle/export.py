"""A bundle in the shape that other tools load, by one of the formats of `tuner.bundle.formats`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tuner.bundle.export_card import served_statement
from tuner.bundle.export_format import AnyBundle, ExportFormat, ExportSource
from tuner.bundle.formats import FORMATS
from tuner.editing.delta import Delta
from tuner.editing.model import LanguageModel, load_model
from tuner.errors import ConfigError
from tuner.evaluation.deviation.budget import Certificate
from tuner.files.atomic_file import whole_folder, write_text
from tuner.files.text_file import is_taken

CARD = "README.md"


@final
@dataclass(frozen=True)
class Export:
    """What was written, and how far its logits are from the edited model's."""

    folder: Path
    format: str
    note: str
    certificate: Certificate | None = None
    """What fresh text says of the form that was written, where that is not the form judged."""


def export(
    bundle: AnyBundle,
    folder: str | Path,
    *,
    format: str | None = None,
    model: LanguageModel | None = None,
    load_base: Callable[[], LanguageModel] | None = None,
    rank: int | None = None,
    certify: Callable[[LanguageModel, Delta], Certificate] | None = None,
) -> Export:
    """Write a bundle for other tools and return what was written.

    Without a `format` it is the one that suits the edit best. `peft` is exact for low-rank deltas;
    dense ones are cut to `rank` by a singular value decomposition, and the share of the change
    that is lost is stated. `merged` is a folder for `AutoModelForCausalLM`. A format that needs
    the base takes `model`, or what `load_base` gives, or else the manifest's own. `delta` of a
    `StoredBundle` needs no model at all.

    Where the format serves another change than the one that was judged (rounded into
    half-precision weights, cut to a rank), `certify` judges that one, and the card says so.

    Raises:
        ConfigError: the format is unknown, the folder is in use, or the delta cannot take it.
        BaseMismatch: the base model is not the one that the delta was made from.
        DiskError: the folder cannot be written.
    """
    # What a link points to is filled, not the link.
    target = Path(os.path.realpath(folder))
    if target == Path.cwd().resolve():
        raise ConfigError("An export needs a folder of its own, not the one you are in.")
    if is_taken(target):
        raise ConfigError(f"{target} exists and is not empty; choose another folder.")
    manifest = bundle.manifest

    def load() -> LanguageModel:
        if model is not None:
            return model
        if load_base is not None:
            return load_base()
        return load_model(manifest.base, revision=manifest.base_revision, dtype=manifest.base_dtype)

    source = ExportSource(bundle, load, rank)
    chosen = _suited(source) if format is None else FORMATS.find(format)()
    refusal = chosen.refusal(source)
    if refusal is not None:
        raise ConfigError(refusal)
    certificate: Certificate | None = None
    served = source.served_otherwise(chosen)
    if served is not None and certify is not None:
        certificate = certify(source.base, served)
    with whole_folder(target) as draft:
        written = chosen.write(source, draft)
        if written.card is not None:
            told = "" if served is None else served_statement(certificate)
            write_text(draft / CARD, written.card + told)
        _share(draft)
    return Export(target, FORMATS.name_of(type(chosen)), written.note, certificate)


def _suited(source: ExportSource) -> ExportFormat:
    """Return the format of the least precedence among those that suit an edit."""
    known = [FORMATS.find(name)() for name in FORMATS.names()]
    ranked = [(form.precedence, form) for form in known if form.precedence is not None]
    # `delta` suits everything.
    return next(form for _, form in sorted(ranked, key=lambda pair: pair[0]) if form.suits(source))


def _share(folder: Path) -> None:
    """Let all who may read one of our files read those of the libraries too."""
    probe = folder / "probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
