"""Where the tests of the device path run: on a GPU where there is one, else on CPU tensors."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
