"""The whole edited model, as transformers saves it."""

from pathlib import Path
from typing import ClassVar, final

from safetensors import SafetensorError

from tuner.bundle.export_card import edit_card, loading_code
from tuner.bundle.export_format import ExportFormat, ExportSource, Written
from tuner.editing.delta import Delta, WeightDelta
from tuner.files.atomic_file import as_os_error


@final
class MergedFormat(ExportFormat):
    """A whole model with the edit in its weights, for `AutoModelForCausalLM.from_pretrained`."""

    precedence: ClassVar[int | None] = 20

    def refusal(self, source: ExportSource) -> str | None:
        """Return why the change cannot be written into weights, if it cannot."""
        if source.manifest.runs_beside:
            return (
                f"A change of kind {source.manifest.kind!r} runs beside the model and cannot be "
                "written into its weights; export it as `delta`."
            )
        return None

    def served(self, source: ExportSource) -> Delta:
        """Return the change with all of it in the weights, rounded to their precision.

        Raises:
            ConfigError: the base cannot be loaded.
            BaseMismatch: the base model is not the one that the delta was made from.
        """
        delta, network = source.delta, source.base.network
        if isinstance(delta, WeightDelta) and delta.form(network) == "adapter":
            return delta.merged(network)
        return delta

    def write(self, source: ExportSource, folder: Path) -> Written:
        """Save the edited model and its tokenizer.

        Raises:
            ConfigError: the base cannot be loaded.
            BaseMismatch: the base model is not the one that the delta was made from.
            DiskError: the folder cannot be written.
        """
        model, delta = source.base, self.served(source)
        with model.edited(delta):
            try:
                model.network.save_pretrained(folder, safe_serialization=True)
            except SafetensorError as error:
                raise as_os_error(error) from None
        model.tokenizer.save_pretrained(folder)
        usage = f"```python\n{loading_code(source.manifest, folder.name)}\n```\n"
        return Written(
            f"weights in {source.manifest.base_dtype}, the edited model's own bits"
            if delta is source.delta
            else f"weights in {source.manifest.base_dtype}, rounded: not the adapter that was "
            "judged",
            edit_card(source.stored, "a merged model", usage),
        )
