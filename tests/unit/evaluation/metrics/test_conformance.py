"""Every metric keeps the contract of metrics."""

from typing import ClassVar

import pytest

from tuner.evaluation.metrics import METRICS, Metric
from tuner.testing.metrics import MetricContract


def _contract(name: str) -> type[MetricContract]:
    metric: type[Metric] = METRICS.find(name)
    sampled = metric.group == "free text"
    members = {"metric": metric, "draws_by_place": sampled}
    return type(f"Test{metric.__name__}", (MetricContract,), members)


for _name in METRICS.names():
    globals()[f"Test_{_name}"] = _contract(_name)


class Forgetful(Metric):
    """Counts how often it was asked, which no metric may."""

    label = "times asked"
    asked: ClassVar[int] = 0

    @classmethod
    def is_measured_on(cls, split: object, criterion: object) -> bool:
        """Return True."""
        return True

    def measure(self, readings: object) -> float:
        """Return another number each time."""
        type(self).asked += 1
        return float(self.asked)


def test_a_metric_that_breaks_the_contract_fails_by_name() -> None:
    contract = type("TestForgetful", (MetricContract,), {"metric": Forgetful})()
    contract.test_it_is_found_by_its_name_and_says_what_it_is()
    model = MetricContract.model.__wrapped__(contract)
    with pytest.raises(AssertionError):
        contract.test_the_order_of_rows_does_not_matter(model)
