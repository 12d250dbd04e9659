import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """What concerns one exercise runs in one process (`--dist loadgroup`): verdicts are remembered there."""
    for item in items:
        id = getattr(item, "callspec", None) and item.callspec.params.get("id")
        if isinstance(id, str) and "checks" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group(id))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors are tiny: a second thread costs more than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
