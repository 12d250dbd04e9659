"""One thread for every test: the tensors are small, and pytest spreads over the cores by processes."""

import torch

torch.set_num_threads(1)
