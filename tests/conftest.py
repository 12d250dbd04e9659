"""What all tests share: one thread, and one Chromium."""

import pytest
import torch

pytest_plugins = ["pytester", "tests.oracles.recording"]  # the second holds comparisons against what is committed

# The tensors are small, and pytest spreads over the cores by processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def browser():
    from scripts import chromium

    with chromium.started() as browser:
        yield browser


ROOT_ONLY = "isolation level B can be tested by root only"  # how the reason of such a skip begins


def pytest_terminal_summary(terminalreporter):
    """What was not tried, and what the pages weigh.

    Here, since the controller of pytest-xdist collects nothing and loads this file only.
    """
    reasons = [report.longrepr[2] for report in terminalreporter.getreports("skipped")]
    if missed := [reason.removeprefix("Skipped: ") for reason in reasons if ROOT_ONLY in reason]:
        terminalreporter.write_line(f"NOT RUN: {len(missed)} tests. {missed[0]}", yellow=True, bold=True)
    weights = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        weights |= dict(report.user_properties).get("weight", {})
    if weights:
        terminalreporter.write_line("page weights, compressed, without figures:")
        for page, weight in sorted(weights.items()):
            terminalreporter.write_line(f"  {weight / 1000:6.0f} kB  {page}")
