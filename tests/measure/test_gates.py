"""Limits: a missed limit is named, and a limit on a figure that is not measured is refused."""

import math

import pytest

from hlwq_cli.errors import UsageError
from hlwq_cli.measure.divergence import Divergence
from hlwq_cli.measure.gates import Gates, check_gates
from hlwq_cli.measure.perplexity import PairedDelta
from hlwq_cli.measure.report import BenchReport, Measured


def report(kld: float = 0.02, top: float = 0.95, rise: float = 0.01) -> BenchReport:
    divergence = Divergence(kld, 0.0, {}, kld, top, 0.0, 0.0, 0, 10, ())
    return BenchReport(
        None, "", None, (Measured("some/path", 1, 5.0, delta=PairedDelta(rise, 0, 0), divergence=divergence),)
    )


def test_without_limits_nothing_is_missed() -> None:
    assert check_gates(report(), Gates()) == ()


def test_limits_that_are_met_exactly_are_met() -> None:
    assert check_gates(report(), Gates(0.01, 0.02, 0.95)) == ()


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        (Gates(max_ppl_delta=0.009), "ln PPL"),
        (Gates(max_kld=0.019), "KL divergence"),
        (Gates(min_top1=0.951), "top-1 agreement"),
    ],
)
def test_a_missed_limit_names_path_and_measure(gates: Gates, says: str) -> None:
    (clause,) = check_gates(report(), gates)
    assert clause.startswith("some/path: ")
    assert says in clause


def test_every_missed_limit_is_listed() -> None:
    assert len(check_gates(report(), Gates(0, 0, 1))) == 3


def test_nan_misses_every_limit() -> None:
    assert len(check_gates(report(math.nan, math.nan, math.nan), Gates(1, 1, 0))) == 3


@pytest.mark.parametrize("gates", [Gates(max_ppl_delta=1), Gates(max_kld=1), Gates(min_top1=0)])
def test_limits_on_figures_not_measured_are_refused(gates: Gates) -> None:
    with pytest.raises(UsageError):
        gates.check_measured(ppl=True, kld=False, ref=None)


def test_limits_on_measured_figures_are_accepted() -> None:
    Gates(1, 1, 0).check_measured(ppl=False, kld=True, ref="reference")
    Gates(max_ppl_delta=1).check_measured(ppl=True, kld=False, ref="reference")
