"""Verbs about studies: search, status, compare, best, stop."""

import os
import shlex
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuner.cli.launch.backend_options import find_backend
from tuner.cli.options import (
    STUDIES,
    ContextOption,
    EditsOption,
    EpsilonsOption,
    FolderOption,
    GeneralOption,
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
    show_certificate,
    show_deviation,
    show_facts,
    show_interval,
    show_seconds,
    show_share,
    show_values,
    show_violations,
)
from tuner.cli.stopping import stoppable
from tuner.errors import ConfigError, MissingExtra, StudyFailed, TunerError, unknown_name
from tuner.evaluation.deviation.budget import epsilon_name
from tuner.files.text_file import exists, is_folder
from tuner.settings import read_settings, variable
from tuner.trial.records import (
    StudyResultRecord,
    StudySummary,
    TrialEntry,
    TrialState,
    Winner,
)
from tuner.validation import describe_problem

if TYPE_CHECKING:
    from tuner.search import StudyConfig, StudyResult
    from tuner.search.storage.folder import Holder
    from tuner.tracking import SyncReport

_EXPERIMENT = "tuner"
_STORAGE = variable("storage")
# Narrower than this a table would break its numbers.
_WIDE = 118
# Too long for a column.
_FACTS = "facts"
_STOPPED_WITHIN_S = 30.0
_GONE_WITHIN_S = 180.0
_NOTHING_GAINED = (
    "No trial of {} gained anything within a budget: the base model itself is the answer for each."
)
_BELOW = ("success", _FACTS, "hyperparameters")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb, epilog in (
        (search, "Example: `tuner search --task country_capital --space lora --trials 20`"),
        (status, "Example: `tuner status country_capital-lora`"),
        (compare, "Example: `tuner compare country_capital-lora country_capital-both`"),
        (best, "Example: `tuner best country_capital-lora --epsilon 1e-4`"),
        (fetch, "Example: `tuner fetch my-study my-bundle --tracking-uri http://localhost:5000`"),
        (stop, "Example: `tuner stop country_capital-lora`"),
    ):
        app.command(epilog=epilog)(verb)


@stoppable()
def search(
    study: Annotated[
        Path | None, typer.Argument(help="A study as YAML; options given beside it win.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="A task's name or folder.")
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", "-s", help="A search space's name or file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="builtin:NAME, a folder or a hub id.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Continues the study of that name.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials in all.")] = None,
    epsilons: EpsilonsOption = None,
    steer: Annotated[
        float | None, typer.Option("--steer", help="The budget that steers the sampler.")
    ] = None,
    rule: Annotated[str | None, typer.Option("--rule", help="fitted, best or published.")] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="auto, gp, tpe or random.")
    ] = None,
    edits: EditsOption = None,
    general: GeneralOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the study.")] = None,
    workers: Annotated[
        str | None, typer.Option("--workers", "-w", help="Trials at a time, or auto.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")
    ] = None,
    test_seeds: Annotated[
        int | None, typer.Option("--test-seeds", help="Seeds of the retraining on the test split.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", help="Start no trial after so many seconds.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="URL of a database for the ledger; by default a file of the study.",
            envvar=_STORAGE,
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            help="Where MLflow keeps the runs; by default a database beside the studies.",
            envvar="MLFLOW_TRACKING_URI",
        ),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track/--no-track", help="Show the study in MLflow.")
    ] = True,
    folder: FolderOption = STUDIES,
    json_: JsonFlag = False,
) -> None:
    """Search for the best edit per budget, certify it, and retrain it on the test split.

    Run the same command again to continue a study that was stopped or killed.
    """
    # Said before the heavy libraries load, so that a person sees that something happens.
    messages().print(f"tuner: preparing the study in {folder} …", soft_wrap=True)
    from tuner.cli.hints import tell_hints
    from tuner.cli.progress import StudyDisplay
    from tuner.search import Study

    config = _configure(
        study,
        {
            "task": task,
            "space": space,
            "model": model,
            "name": name,
            "trials": trials,
            "budget": {"epsilons": epsilons} if epsilons else None,
            "epsilon": steer,
            "rule": rule,
            "sampler": sampler,
            "edits": edits,
            "general": general,
            "seed": seed,
            "workers": int(workers) if workers is not None and workers.isdigit() else workers,
            "device": device,
            "dtype": dtype,
            "test_seeds": test_seeds,
            "time_limit_s": time_limit,
            "storage": storage,
        },
    )
    if track:
        # Told now: once the search runs, nothing about MLflow may stop it.
        from tuner.tracking import check_tracking

        check_tracking(tracking_uri, folder)
    watcher = _Watcher(folder, tracking_uri if track else None, track)
    asked = Study.of(config, folder=folder, observe=watcher)
    tell_hints(config.task, asked.task.loss)
    with StudyDisplay(messages()) as display:
        result = asked.run(display)
    if watcher.no_report is not None:
        messages().print(watcher.no_report, soft_wrap=True)
    if json_:
        print_json({"result": result.record, "report": watcher.report_path})
        if watcher.sync is not None and watcher.sync.message:
            messages().print(watcher.sync.message, soft_wrap=True)
    else:
        _close(result.record, watcher, folder)


def _configure(study: Path | None, flags: dict[str, Any]) -> "StudyConfig":
    from tuner.search import StudyConfig, load_study

    given = {key: value for key, value in flags.items() if value is not None}
    if study is not None:
        return load_study(study, given)
    if "task" not in given:
        from tuner.editing.task import task_names

        raise ConfigError(
            "A study needs a task: give --task NAME or a study file. "
            f"Known tasks: {', '.join(task_names())}."
        )
    try:
        return StudyConfig.model_validate(given)
    except ValidationError as error:
        problems = (describe_problem(problem) for problem in error.errors(include_url=False))
        raise ConfigError("\n".join(problems)) from None


class _Watcher:
    """Follows a study for the user: MLflow while it runs, the report when it ends."""

    def __init__(self, folder: Path, uri: str | None, track: bool) -> None:
        self._folder = folder
        self._uri = uri
        self._track = track
        self._tracker: Any = None
        self.report_path: Path | None = None
        self.no_report: str | None = None
        """Why there is no report, where none can be drawn."""
        self.sync: SyncReport | None = None

    def __call__(self, summary: StudySummary) -> "_Watcher":
        if self._track:
            from tuner.tracking import Tracker

            self._tracker = Tracker(self._uri, _EXPERIMENT, summary, self._folder)
            self._tracker.start()
        return self

    def trial_changed(self, entry: TrialEntry) -> None:
        if self._tracker is not None:
            self._tracker.trial_changed(entry)

    def study_finished(self, result: StudyResultRecord) -> None:
        from tuner.report import write_figures, write_report

        folder = result.summary.folder
        figures: tuple[Path, ...] = ()
        try:
            self.report_path = write_report(result, folder / "report.html")
            if self._tracker is not None:
                figures = write_figures(result, folder / "figures")
        except MissingExtra as missing:
            self.no_report = f"No report was drawn: {missing}"
        if self._tracker is not None:
            self._tracker.study_finished(_with_winners(result), self.report_path, figures)

    def close(self) -> None:
        if self._tracker is not None:
            self.sync = self._tracker.close()

    @property
    def uri(self) -> str:
        """Where the runs are."""
        from tuner.tracking import located_uri

        return located_uri(self._uri, self._folder)


def _with_winners(result: StudyResultRecord) -> StudyResultRecord:
    """Return the result with the selected bundles, which bear a certificate, as the winners'."""
    from tuner.search.storage.folder import StudyFolder

    folder = StudyFolder(result.summary.folder)
    won = {(winner.trial, winner.epsilon) for winner in result.winners}
    entries = tuple(
        entry.model_copy(
            update={
                "bundles": tuple(
                    (eps, folder.winner(eps) if (entry.number, eps) in won else path)
                    for eps, path in entry.bundles
                )
            }
        )
        for entry in result.entries
    )
    return result.model_copy(update={"entries": entries})


def _close(record: StudyResultRecord, watcher: _Watcher, folder: Path) -> None:
    out = console()
    _print_winners(out, record)
    name = record.summary.name
    place = "" if folder == STUDIES else f" --folder {shlex.quote(str(folder))}"
    if watcher.report_path is not None:
        out.print(f"Report:  {watcher.report_path}", soft_wrap=True)
    if watcher.sync is not None:
        from tuner.tracking import study_url, ui_address, ui_command

        out.print(f"MLflow:  {ui_command(watcher.uri)}", soft_wrap=True)
        if watcher.sync.experiment_id is not None:
            address = study_url(
                ui_address(watcher.uri),
                watcher.sync.experiment_id,
                record.summary.uid,
                charts=True,
            )
            out.print(f"         {address}", soft_wrap=True)
        if watcher.sync.message:
            messages().print(watcher.sync.message, soft_wrap=True)
    if record.winners:
        epsilon = epsilon_name(record.winners[0].epsilon)
        out.print(
            f"Export:  tuner export {name} my-edit --epsilon {epsilon}{place}",
            soft_wrap=True,
        )


def _of_budget(record: StudyResultRecord, epsilon: float) -> StudyResultRecord:
    """Return what a study says of one budget."""
    winners = tuple(winner for winner in record.winners if winner.epsilon == epsilon)
    summary = record.summary.model_copy(update={"epsilons": (epsilon,)})
    return record.model_copy(update={"summary": summary, "winners": winners})


def _print_winners(out: Console, record: StudyResultRecord) -> None:
    summary = record.summary
    if not record.winners:
        out.print(_NOTHING_GAINED.format(summary.name))
        return
    title = f"{summary.name}: best edit per budget ({summary.model}, rule {summary.rule.value})"
    if out.width >= _WIDE:
        _print_side_by_side(out, title, record.winners)
    else:
        _print_one_by_one(out, title, record.winners)
    won = {winner.epsilon for winner in record.winners}
    lost = ", ".join(epsilon_name(one) for one in summary.epsilons if one not in won)
    if lost:
        out.print(f"ε={lost}: no trial gained anything; the base model itself is the answer.")


def _print_side_by_side(out: Console, title: str, winners: tuple[Winner, ...]) -> None:
    rows = [_facts(winner) for winner in winners]
    table = make_table(title, ("ε", *(key for key in rows[0] if key not in _BELOW)))
    for winner, facts in zip(winners, rows, strict=True):
        table.add_row(
            epsilon_name(winner.epsilon),
            *(value for key, value in facts.items() if key not in _BELOW),
        )
    out.print(table)
    for winner, facts in zip(winners, rows, strict=True):
        for key in (key for key in _BELOW if key in facts):
            out.print(
                Text.assemble((f"ε={epsilon_name(winner.epsilon)} {key}: ", "bold"), facts[key])
            )


def _print_one_by_one(out: Console, title: str, winners: tuple[Winner, ...]) -> None:
    out.print(title, style="bold")
    for winner in winners:
        out.print(f"\nε={epsilon_name(winner.epsilon)}", style="bold")
        grid = Table.grid(padding=(0, 2))
        for key, value in _facts(winner).items():
            grid.add_row(Text(key, style="dim"), value)
        out.print(grid)


def _facts(winner: Winner) -> dict[str, str | Text]:
    """Return what is said about a winner, in the order of a reader's questions."""
    answer, kept = winner.validation, winner.seeds_within_budget
    exact = "" if answer.scores.exact is None else f", exact {answer.scores.exact:.3f}"
    constrained = winner.seeds_within_constraints
    further = "" if constrained is None else f", {constrained}/{len(winner.test)} the constraints"
    figures = answer.scores.fact_figures().items()
    told = ", ".join(f"{name.replace('_', ' ')} {share:.3f}" for name, share in figures)
    return {
        "edit": f"#{winner.trial} {winner.editor}",
        "gain, validation": show_interval(answer.gain, answer.gain_interval),
        "gain, test": show_interval(winner.test_gain, winner.test_gain_interval),
        "seeds": "–" if kept is None else f"{kept}/{len(winner.test)} kept ε{further}",
        "deviation": show_deviation(winner.certificate.deviation),
        "certificate": show_certificate(winner.certificate),
        "success": f"{answer.success:.3f} on validation{exact}",
        **({_FACTS: told} if told else {}),
        "hyperparameters": show_values(_telling(winner))
        + f"; epoch {answer.epoch}, α={answer.alpha:.2f}",
    }


def _telling(winner: Winner) -> dict[str, Any]:
    """Return the hyperparameters that differ from the editor's defaults."""
    from tuner.editors import find_editor

    try:
        editor = find_editor(winner.editor).model_validate(winner.hyperparameters)
    except (ConfigError, ValidationError):
        # Of another version of tuner, or of an outsider's editor that is not here.
        return dict(winner.hyperparameters)
    return editor.model_dump(exclude_defaults=True)


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
        from tuner.tracking import sync as send

        report = folder / name / "report.html"
        sent = send(
            tracking_uri,
            _EXPERIMENT,
            _with_winners(record),
            folder,
            report_path=report if exists(report) else None,
            figures=tuple(sorted((folder / name / "figures").glob("*.html"))),
        )
        messages().print(sent.message or "MLflow is up to date.", soft_wrap=True)
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
        _print_winners(out, record)
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
            f"{_counts(record).get('completed', 0)}/{record.summary.trials}",
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
    for name in names:
        record = _open(folder, name).record
        rule = record.summary.rule
        if epsilon not in record.summary.epsilons:
            known = ", ".join(epsilon_name(one) for one in record.summary.epsilons)
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
    _print_trials(
        console(), f"Trials at ε={epsilon_name(epsilon)}", rows[:top], several=len(names) > 1
    )


def _print_trials(out: Console, title: str, rows: list[dict[str, Any]], *, several: bool) -> None:
    """Print a table of trials; where it is narrow the hyperparameters follow below."""
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
            "verdict": row["verdict"],
            "constraints": show_violations(row["violations"]) if row["violations"] else "–",
            "α": f"{row['alpha']:.2f}",
            "time": show_seconds(row["seconds"]),
            "hyperparameters": show_values(row["parameters"]),
        }
        for row in rows
    ]
    wide = out.width >= _WIDE
    facts = any("efficacy" in row["scores"] for row in rows)
    if any("drawdown" in row["scores"] for row in rows):
        judged: tuple[str, ...] = ("efficacy", "drawdown")
    else:
        judged = (FACTS_HEADING, "edit score") if facts else ("exact",)
    columns: tuple[str, ...] = ("trial", "gain", *judged, "deviation")
    if any(row["violations"] for row in rows):
        columns += ("constraints",)
    if wide:
        columns += ("verdict", "α", "time", "hyperparameters")
    table = make_table(title, columns, right=("gain", *judged, "deviation", "α", "time"))
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
            _NOTHING_GAINED.format(name)
            if result.finished
            else f"The study {name!r} has selected nothing yet. Run `tuner search` again to finish "
            "it, or see `tuner status`."
        )
    if epsilon is not None:
        chosen = [result.best(epsilon)]
        record = _of_budget(record, epsilon)
    else:
        chosen = [result.best(winner.epsilon) for winner in record.winners]
    if json_:
        print_json([{"winner": one.winner, "bundle": str(one.folder)} for one in chosen])
        return
    _print_winners(console(), record)
    for one in chosen:
        console().print(
            f"ε={epsilon_name(one.winner.epsilon)} bundle: {one.folder}", soft_wrap=True
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
    from tuner.tracking import fetch_bundle

    found = fetch_bundle(tracking_uri, _EXPERIMENT, name, epsilon, out)
    if json_:
        print_json({"study": name, "epsilon": found, "folder": str(out)})
    else:
        console().print(
            f"{out}: the best edit of {name} within {epsilon_name(found)}", soft_wrap=True
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
    url = read_settings().storage
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
