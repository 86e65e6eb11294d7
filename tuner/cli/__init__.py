"""The verbs. Each is one call of the API; what goes wrong is told in words.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C.
"""

import os
import sys

# Before torch is imported anywhere: several threads on a busy machine are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# transformers draws a bar for each model it loads; ours says what matters.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer

from tuner.cli import data, edits, inspection, launch, launched, memory, streams, studies, sweeps
from tuner.cli.output import complain
from tuner.errors import TunerError

app = typer.Typer(
    name="tuner",
    help="Search the hyperparameters of language-model editors under a deviation budget.",
    epilog="Start with: tuner search --task country_capital --trials 12",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
studies.register(app)
launch.register(app)
launched.register(app)
edits.register(app)
streams.register(app)
memory.register(app)
sweeps.register(app)
data.register(app)
inspection.register(app)


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="tuner")
    except TunerError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; do not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
