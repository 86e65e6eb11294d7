"""The verb about what a memory holds: list its edits, add some, remove some."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.bundles import AllowKindOption, BundleArgument, allow_kinds, find_bundle
from tuner.cli.options import STUDIES, DeviceOption, FolderOption
from tuner.cli.output import JsonFlag, console, make_table, messages, print_json
from tuner.errors import ConfigError

if TYPE_CHECKING:
    from tuner.bundle.bundle import Bundle
    from tuner.editors._retrieval.memory import ScopedMemory


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Examples: `tuner memory my-edit` · "
        "`tuner memory my-edit --remove 3 --add edits.jsonl --out my-edit-2`"
    )(memory)


def memory(
    bundle: BundleArgument,
    add: Annotated[
        Path | None,
        typer.Option(
            "--add",
            help="JSON lines with `prompt` and `target`. One whose prompt is stored already "
            "takes the old one's place.",
        ),
    ] = None,
    remove: Annotated[
        list[int] | None,
        typer.Option("--remove", min=1, help="An edit's number in the list; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the changed bundle is written.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "-e", help="Which of a study's winners.")
    ] = None,
    device: DeviceOption = "auto",
    folder: FolderOption = STUDIES,
    allow_kind: AllowKindOption = None,
    json_: JsonFlag = False,
) -> None:
    """List the edits of a memory; write another with edits added or removed, without training.

    For memories that keep their edits as text: serac and retrieve_and_prompt. What a trial
    measured is not carried over to a changed memory: judge it by `tuner evaluate` and
    `tuner certify`.
    """
    if (add is not None or bool(remove)) != (out is not None):
        raise ConfigError("--add and --remove write another bundle: give --out with them.")
    allow_kinds(allow_kind)
    stored = find_bundle(bundle, epsilon, folder, device)
    held = _memory_of(stored)
    changed = _changed(held, add, remove or [])
    written = None
    if out is not None:
        manifest = stored.manifest.with_state(changed.state).model_copy(
            update={"certificate": None, "further_certificates": (), "changed": True}
        )
        written = type(stored)(changed, manifest).save(out)
    if json_:
        print_json(
            {
                "edits": [edit.model_dump() for edit in changed.edits],
                "bundle": None if written is None else str(written),
            }
        )
        return
    table = make_table(
        f"{stored.manifest.kind}, {len(changed.edits)} edits", ("", "prompt", "target")
    )
    for number, edit in enumerate(changed.edits, start=1):
        table.add_row(str(number), edit.prompt, edit.target.strip())
    console().print(table)
    if written is not None:
        console().print(f"Bundle: {written}", soft_wrap=True)
        messages().print("Its results are those before the change: run `tuner evaluate` on it.")


def _memory_of(bundle: "Bundle") -> "ScopedMemory":
    from tuner.editors._retrieval.memory import ScopedMemory

    if not isinstance(bundle.delta, ScopedMemory):
        raise ConfigError(
            f"A delta of kind {bundle.manifest.kind!r} keeps no edits as text, so none can be "
            "listed, added or removed. Memories of the editors serac and retrieve_and_prompt do."
        )
    return bundle.delta


def _changed(memory: "ScopedMemory", add: Path | None, remove: list[int]) -> "ScopedMemory":
    # From the last to the first: a removal renumbers what follows it.
    for number in sorted(set(remove), reverse=True):
        if number > len(memory.edits):
            raise ConfigError(f"There is no edit {number}: the memory has {len(memory.edits)}.")
        memory = memory.without(number - 1)
    if add is not None:
        from tuner.editing.task import Example
        from tuner.editing.task_folder import read_rows

        memory = memory.with_edits([row for _, row in read_rows(add, Example)])
    return memory
