"""The verbs. Each is one call of the API; what goes wrong is told in words.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C.
"""

import io
import os
import sys

# Before torch is imported anywhere: several threads on a busy machine are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# transformers draws a bar for each model it loads; ours says what matters.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer
from typer.models import CommandInfo, TyperInfo

from tuner.cli import (
    certify_export,
    data,
    edits,
    inspection,
    memory,
    prepare,
    repair,
    scaling,
    search,
    sequential,
    studies,
)
from tuner.cli.launch import launch, logs_resume
from tuner.cli.output import complain, messages
from tuner.errors import TunerError
from tuner.files.atomic_file import disk_trouble_in_words
from tuner.files.home import ensure_home
from tuner.settings import read_environment, variable
from tuner.validation import show_path

app = typer.Typer(
    name="tuner",
    help="Search the hyperparameters of language-model editors under a deviation budget.",
    epilog="Start with: tuner search --task country_capital --trials 12",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
search.register(app)
prepare.register(app)
studies.register(app)
repair.register(app)
launch.register(app)
logs_resume.register(app)
edits.register(app)
certify_export.register(app)
sequential.register(app)
memory.register(app)
scaling.register(app)
data.register(app)
inspection.register(app)

_PANELS = {
    "Search": ("prepare", "search", "status", "best", "compare", "stop", "repair"),
    "Edits": ("edit", "evaluate", "certify", "export", "memory", "sequential", "scaling"),
    "Clusters": ("launch", "logs", "resume", "fetch"),
    "Data and set-up": ("data", "list", "check", "doctor"),
}
"""The verbs as `tuner --help` shows them."""


def _arrange() -> None:
    """Put each verb into its panel, in the order of the panels."""
    panel_of = {verb: panel for panel, names in _PANELS.items() for verb in names}
    verbs: list[CommandInfo | TyperInfo] = [*app.registered_commands, *app.registered_groups]
    for one in verbs:
        one.rich_help_panel = panel_of.get(_name_of(one), one.rich_help_panel)
    order = list(panel_of)
    app.registered_commands.sort(
        key=lambda one: order.index(_name_of(one)) if _name_of(one) in order else len(order)
    )


def _name_of(one: CommandInfo | TyperInfo) -> str:
    if isinstance(one.name, str):
        return one.name
    callback = one.callback
    return "" if callback is None else callback.__name__.rstrip("_").replace("_", "-")


_arrange()


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter, such as ε, shows its code; that need not be a failure.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    home = ensure_home()
    if home is not None:
        messages().print(
            f"tuner: there is no home folder, so caches lie in {home}; set HOME to have them "
            "elsewhere.",
            soft_wrap=True,
        )
    try:
        with disk_trouble_in_words():
            app(prog_name="tuner")
    except TunerError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; do not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SystemExit as ended:
        # Typer ends quietly where no verb has its own words for an interruption.
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            complain("Stopped.")
        raise
    # The last net: everything that is foreseen has its own words by now.
    except Exception as error:
        if read_environment().debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            # A path that no file can have, such as one below a file or of an overlong name.
            complain(f"{show_path(str(error.filename))}: {error.strerror}.")
            sys.exit(2)
        complain(_unforeseen(error))
        sys.exit(1)


def _unforeseen(error: Exception) -> str:
    said = show_path(str(error).strip().split("\n", 1)[0])
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return (
        f"This is a fault of tuner, or of something that it uses: {what}\n"
        f"Run the command again with {variable('debug')}=1 to see where it happened, and "
        "please report it."
    )
