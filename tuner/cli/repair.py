"""The verb about damaged studies: repair."""

from typing import Annotated

import typer

from tuner.cli.options import STUDIES, FolderOption
from tuner.cli.output import JsonFlag, console, print_json
from tuner.errors import unknown_name


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: `tuner repair country_capital-lora`")(repair)


def repair(
    name: Annotated[str, typer.Argument(help="A study whose ledger is damaged.")],
    folder: FolderOption = STUDIES,
    json_: JsonFlag = False,
) -> None:
    """Repair a ledger with damaged lines: whole ones are kept, and so is the old file.

    A line that was cut short at the end needs no repair.
    """
    from tuner.search.storage.folder import StudyFolder
    from tuner.search.storage.journal import repair as repair_journal
    from tuner.search.storage.ledger import idle

    if not (folder / name).is_dir():
        names = (path.parent.name for path in folder.glob("*/trials"))
        raise unknown_name(f"study in {folder}", name, names)
    place = StudyFolder(folder / name)
    with idle(place):
        done = repair_journal(place, name)
    if json_:
        print_json(
            {
                "kept": done.kept,
                "damaged_lines": done.damaged,
                "restored_trials": done.restored,
                "lost_trials": done.lost,
                "backup": None if done.backup is None else str(done.backup),
            }
        )
        return
    out = console()
    if done.backup is None:
        out.print(f"{name}: all {done.kept} lines are whole; nothing to repair.")
        return
    lines = ", ".join(map(str, done.damaged)) or "none"
    out.print(f"{name}: {done.kept} whole acts are kept; damaged lines: {lines}.", soft_wrap=True)
    if done.restored:
        trials = ", ".join(f"#{number}" for number in done.restored)
        out.print(f"Made again from their own files: {trials}.", soft_wrap=True)
    if done.lost:
        trials = ", ".join(f"#{number}" for number in done.lost)
        out.print(f"Nothing else is left of {trials}: they count as failed.", soft_wrap=True)
    out.print(f"The ledger as it was: {done.backup}", soft_wrap=True)
    out.print("Run the same `tuner search` again to go on.")
