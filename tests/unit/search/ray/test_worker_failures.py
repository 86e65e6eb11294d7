"""A lost node takes its deaths on itself, also where Ray learns of it late."""

from collections.abc import Iterator

from tuner.search.ray.worker_failures import WorkerFailures


def test_deaths_on_lost_nodes_are_not_counted() -> None:
    deaths = WorkerFailures(lambda node: node == "spot", known_within_s=0.0)
    assert deaths.own(["spot", "here", None, "spot"], most=0) == 2


def test_what_seems_too_much_is_asked_again_until_ray_must_know() -> None:
    answers: Iterator[bool] = iter([False, True])
    late = WorkerFailures(lambda node: next(answers), known_within_s=10.0)
    assert late.own(["spot"], most=0) == 0
    never = WorkerFailures(lambda node: False, known_within_s=0.5)
    assert never.own(["spot"], most=0) == 1


def test_what_is_not_too_much_is_asked_once() -> None:
    answers: Iterator[bool] = iter([False])
    assert (
        WorkerFailures(lambda node: next(answers), known_within_s=10.0).own(["spot"], most=1) == 1
    )
