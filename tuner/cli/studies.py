"""Verbs about studies: status, compare, best, fetch, stop."""

import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.text import Text

from tuner.cli.launch.backend_options import find_backend
from tuner.cli.options import (
    STUDIES,
    ContextOption,
    FolderOption,
    LaunchedOnOption,
    RayAddressOption,
)
from tuner.cli.output import (
    FACTS_HEADING,
    JsonFlag,
    console,
    make_table,
    messages,
    print_json,
    show_facts,
    show_seconds,
    show_share,
    show_values,
    show_violations,
)
from tuner.cli.study_tables import NOTHING_GAINED, WIDE, of_budget, print_winners
from tuner.errors import ConfigError, StudyFailed, TunerError, unknown_name
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.evaluation.scores import HEADLINE_METRICS
from tuner.files.text_file import exists, is_folder
from tuner.settings import read_environment, variable
from tuner.trial.records import (
    StudyResultRecord,
    TrialState,
)

if TYPE_CHECKING:
    from tuner.search import StudyResult
    from tuner.search.storage.folder import Holder

_STORAGE = variable("storage")
_STOPPED_WITHIN_S = 30.0
_GONE_WITHIN_S = 180.0


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb, epilog in (
        (status, "Example: `tuner status country_capital-lora`"),
        (compare, "Example: `tuner compare country_capital-lora country_capital-both`"),
        (best, "Example: `tuner best country_capital-lora --epsilon 1e-4`"),
        (fetch, "Example: `tuner fetch my-study my-bundle --tracking-uri http://localhost:5000`"),
        (stop, "Example: `tuner stop country_capital-lora`"),
    ):
        app.command(epilog=epilog)(verb)


def status(
    name: Annotated[str | None, typer.Argument(help="A study; without, all are listed.")] = None,
    sync: Annotated[
        bool, typer.Option("--sync", help="Send to MLflow what it has missed.")
    ] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="With --sync."),
    ] = None,
    cluster: LaunchedOnOption = None,
    ray_address: RayAddressOption = None,
    context: ContextOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-F", help="Of a launched study: go on until it rests.")
    ] = False,
    folder: FolderOption = STUDIES,
    json_: JsonFlag = False,
) -> None:
    """Show how far a study is, also while it runs."""
    backend = find_backend(cluster, ray_address, context)
    if backend is not None:
        from tuner.cli.launch.actions import show_there

        show_there(name, backend, follow=follow, json_=json_)
        return
    if name is None:
        _list_studies(folder, json_)
        return
    record = _open(folder, name).record
    if sync:
        from tuner.search.trackers import MLFLOW, TRACKERS, TrackingPlace

        missing = TRACKERS.find(MLFLOW).sync(record, TrackingPlace(folder, tracking_uri))
        messages().print(missing or "MLflow is up to date.", soft_wrap=True)
    counts = _counts(record)
    driver = _driver(folder / name)
    if json_:
        print_json(
            {
                "summary": record.summary,
                "counts": counts,
                "driver": driver,
                "entries": record.entries,
            }
        )
        return
    out = console()
    running = f"running ({driver})" if driver else "not running"
    out.print(f"{name}: {running}, {record.summary.trials} trials asked for", style="bold")
    out.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if record.winners:
        print_winners(out, record)
    for entry in record.entries:
        if entry.state is TrialState.FAILED:
            out.print(f"  #{entry.number} failed: {entry.failure}", style="red", soft_wrap=True)


def _list_studies(folder: Path, json_: bool) -> None:
    results: dict[str, StudyResult | TunerError] = {}
    for name in _study_names(folder):
        try:
            results[name] = _open(folder, name)
        except TunerError as error:
            results[name] = error  # one that is damaged does not hide the others
    if json_:
        print_json([_listed(name, result) for name, result in results.items()])
        return
    table = make_table(f"Studies in {folder}", ("study", "task", "model", "trials", "state"))
    for name, result in results.items():
        if isinstance(result, TunerError):
            table.add_row(name, "", "", "", "unreadable")
            continue
        record = result.record
        driver = _driver(folder / name)
        table.add_row(
            name,
            record.summary.task,
            record.summary.model,
            f"{sum(trial.state.has_answers for trial in record.entries)}/{record.summary.trials}",
            "running" if driver else "finished" if result.finished else "stopped",
        )
    console().print(table)
    for name, result in results.items():
        if isinstance(result, TunerError):
            messages().print(f"{name}: {result}", soft_wrap=True)


def _listed(name: str, result: "StudyResult | TunerError") -> dict[str, Any]:
    if isinstance(result, TunerError):
        return {"name": name, "problem": str(result)}
    return {"name": result.record.summary.name, "counts": _counts(result.record)}


def compare(
    names: Annotated[list[str], typer.Argument(help="Studies to compare.")],
    epsilon: Annotated[float, typer.Option("--epsilon", "-e", help="The budget.")] = 1e-4,
    top: Annotated[int, typer.Option("--top", min=1, help="Trials to show.")] = 15,
    folder: FolderOption = STUDIES,
    json_: JsonFlag = False,
) -> None:
    """Compare the trials of one or more studies at one budget, best first."""
    rows: list[dict[str, Any]] = []
    metrics: dict[str, None] = {}
    for name in names:
        record = _open(folder, name).record
        metrics |= dict.fromkeys(record.summary.metrics)
        rule = record.summary.rule
        if epsilon not in record.summary.epsilons:
            known = ", ".join(map(epsilon_name, record.summary.epsilons))
            raise ConfigError(
                f"The study {name!r} has no budget {epsilon_name(epsilon)}; it has {known}."
            )
        for entry in record.entries:
            if entry.record is None or entry.record.failure is not None:
                continue
            answer = entry.record.answer(epsilon, rule)
            rows.append(
                {
                    "study": name,
                    "trial": entry.number,
                    "editor": entry.record.editor,
                    "success": answer.success,
                    "gain": answer.gain,
                    "exact": answer.scores.exact,
                    "scores": answer.scores.figures(),
                    "deviation": answer.deviation.model_dump(),
                    "verdict": answer.verdict.value,
                    "violations": answer.violations,
                    "keeps_constraints": answer.keeps_constraints,
                    "alpha": answer.alpha,
                    "epoch": answer.epoch,
                    "seconds": sum(entry.record.seconds.values()),
                    "parameters": entry.parameters,
                }
            )
    rows.sort(key=lambda row: (not row["keeps_constraints"], -row["gain"]))
    if json_:
        print_json(rows)
        return
    title = f"Trials at ε={epsilon_name(epsilon)}"
    _print_trials(console(), title, rows[:top], metrics, several=len(names) > 1)


def _show_kl(divergence: dict[str, Any] | None) -> str:
    return "–" if divergence is None else f"{divergence['estimate']:.1e}"


def _print_trials(
    out: Console,
    title: str,
    rows: list[dict[str, Any]],
    metrics: Collection[str],
    *,
    several: bool,
) -> None:
    """Print a table of trials; where it is narrow the hyperparameters follow below."""
    from tuner.evaluation.metrics import metric_label

    cells = [
        {
            "trial": (f"{row['study']} " if several else "") + f"#{row['trial']} {row['editor']}",
            "gain": f"{row['gain']:+.3f}",
            "exact": show_share(row["exact"]),
            FACTS_HEADING: show_facts(row["scores"]),
            "edit score": show_share(row["scores"].get("edit_score")),
            "efficacy": show_share(row["scores"].get("efficacy")),
            "drawdown": show_share(row["scores"].get("drawdown")),
            "deviation": f"{row['deviation']['estimate']:+.1e}",
            "divergence": _show_kl(row["deviation"].get("divergence")),
            "verdict": row["verdict"],
            "constraints": show_violations(row["violations"]) if row["violations"] else "–",
            "α": f"{row['alpha']:.2f}",
            "time": show_seconds(row["seconds"]),
            "hyperparameters": show_values(row["parameters"]),
            **{metric_label(name): show_share(row["scores"].get(name)) for name in metrics},
        }
        for row in rows
    ]
    wide = out.width >= WIDE
    facts = any("efficacy" in row["scores"] for row in rows)
    if any("drawdown" in row["scores"] for row in rows):
        judged: tuple[str, ...] = ("efficacy", "drawdown")
    else:
        judged = (FACTS_HEADING, "edit score") if facts else ("exact",)
    # What is asked for and stands in none of the usual columns.
    judged += tuple(
        metric_label(name) for name in metrics if name not in (*HEADLINE_METRICS[:3], *judged)
    )
    columns: tuple[str, ...] = ("trial", "gain", *judged, "deviation", "divergence")
    if any(row["violations"] for row in rows):
        columns += ("constraints",)
    if wide:
        columns += ("verdict", "α", "time", "hyperparameters")
    table = make_table(
        title, columns, right=("gain", *judged, "deviation", "divergence", "α", "time")
    )
    for cell in cells:
        table.add_row(*(cell[column] for column in columns))
    out.print(table)
    if not wide:
        for cell in cells:
            out.print(Text.assemble((f"{cell['trial']}: ", "bold"), cell["hyperparameters"]))


def best(
    name: Annotated[str, typer.Argument(help="A finished study.")],
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "-e", help="Only this budget.")
    ] = None,
    folder: FolderOption = STUDIES,
    json_: JsonFlag = False,
) -> None:
    """Show the selected edit per budget and where its bundle lies."""
    result = _open(folder, name)
    record = result.record
    if not record.winners:
        raise StudyFailed(
            NOTHING_GAINED.format(name)
            if result.finished
            else f"The study {name!r} has selected nothing yet. Run `tuner search` again to finish "
            "it, or see `tuner status`."
        )
    if epsilon is not None:
        chosen = [result.best(epsilon)]
        record = of_budget(record, epsilon)
    else:
        chosen = [result.best(winner.epsilon) for winner in record.winners]
    if json_:
        print_json([{"winner": edit.winner, "bundle": str(edit.folder)} for edit in chosen])
        return
    print_winners(console(), record)
    for edit in chosen:
        console().print(
            f"ε={epsilon_name(edit.winner.epsilon)} bundle: {edit.folder}", soft_wrap=True
        )


def fetch(
    name: Annotated[str, typer.Argument(help="A study that MLflow shows.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the bundle.")],
    tracking_uri: Annotated[
        str,
        typer.Option(
            "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow, as http://localhost:5000."
        ),
    ],
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "-e", help="Which of a study's winners.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Bring the best edit of a study here from MLflow, wherever the study ran."""
    from tuner.search.trackers import MLFLOW, TRACKERS, TrackingPlace

    place = TrackingPlace(STUDIES, tracking_uri)
    kept = TRACKERS.find(MLFLOW).fetch(place, name, epsilon, out)
    if json_:
        print_json({"study": name, "epsilon": kept, "folder": str(out)})
    else:
        console().print(
            f"{out}: the best edit of {name} within {epsilon_name(kept)}", soft_wrap=True
        )
        console().print(f"Export: tuner export {shlex.quote(str(out))} my-edit", soft_wrap=True)


def stop(
    name: Annotated[str, typer.Argument(help="A running study.")],
    cluster: LaunchedOnOption = None,
    ray_address: RayAddressOption = None,
    context: ContextOption = None,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="With --cluster: take it off the cluster, and all that belongs to it."
        ),
    ] = False,
    folder: FolderOption = STUDIES,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait", help="Seconds to wait until it has stopped; 30, or 180 on a cluster."
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Stop a study that runs on this machine or a cluster; nothing is lost.

    `tuner search` continues it here, and `tuner resume` on a cluster.
    """
    backend = find_backend(cluster, ray_address, context)
    if backend is not None:
        from tuner.cli.launch.actions import stop_there

        patience = _GONE_WITHIN_S if wait is None else wait
        stop_there(name, backend, delete=delete, wait_s=patience, json_=json_)
        return
    if delete:
        raise ConfigError("--delete must go with --cluster: a study here is a folder of yours.")
    wait = _STOPPED_WITHIN_S if wait is None else wait
    _open(folder, name)
    driver = _driver(folder / name)
    if driver is None:
        stopped, words = True, f"{name} is not running."
    else:
        if driver.host != socket.gethostname():
            raise ConfigError(f"{name} runs on {driver.host}; stop it there.")
        os.kill(driver.pid, signal.SIGINT)
        stopped = _until(lambda: _driver(folder / name) is None, wait)
        words = f"{name} has stopped." if stopped else f"{name} is still stopping after {wait:g} s."
    if json_:
        print_json({"study": name, "stopped": stopped})
    else:
        console().print(words)
    if not stopped:
        raise typer.Exit(1)


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _open(folder: Path, name: str) -> "StudyResult":
    from tuner.search import open_study

    if not is_folder(folder / name):
        raise unknown_name(f"study in {folder}", name, _study_names(folder))
    return open_study(folder / name, _storage_of(folder / name))


def _storage_of(folder: Path) -> SecretStr | None:
    """Return where the ledger of a study is, if not in its folder."""
    if not is_folder(folder / "trials") or exists(folder / "ledger.journal"):
        return None
    url = read_environment().storage
    if url is None:
        raise ConfigError(
            f"The ledger of the study in {folder} is in a database. Set {_STORAGE} to its URL."
        )
    return url


def _study_names(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/trials"))


def _driver(folder: Path) -> "Holder | None":
    """Return the process that runs a study now, if one does."""
    from tuner.search.storage.database import Database
    from tuner.search.storage.folder import StudyFolder
    from tuner.search.storage.ledger import is_driven

    place, storage = StudyFolder(folder), _storage_of(folder)
    database = Database.at(storage, patience_s=0.0) if storage is not None else None
    # It is not known while it begins or ends.
    return place.read_holder() if is_driven(place, folder.name, database) else None


def _counts(record: StudyResultRecord) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in record.entries:
        counts[entry.state.value] = counts.get(entry.state.value, 0) + 1
    return counts
