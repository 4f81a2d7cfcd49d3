"""The short form of the soak; `python tests/sandbox/soak.py` is the long one."""

import pytest
from soak import grown, soak
from test_walls import sandbox  # noqa: F401 - a fixture: every isolating back end

from agentrl.sandbox import RunnerSandbox


def test_nothing_is_lost_and_nothing_is_left(sandbox: RunnerSandbox) -> None:  # noqa: F811
    report = soak(sandbox, num_executions=160, num_sessions=4)
    assert report.faults == []
    assert report.num_executions == 160
    assert report.num_attacks > 5
    assert grown(report) == {}


@pytest.mark.parametrize("name", ["descriptors", "containers", "cgroups", "threads"])
def test_what_is_left_would_be_seen(name: str) -> None:
    from soak import Report, footprint

    report = Report(before=footprint())
    report.after = {**report.before, name: report.before[name] + 1}
    assert list(grown(report)) == [name]
