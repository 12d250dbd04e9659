import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors are tiny: a second thread costs more than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
