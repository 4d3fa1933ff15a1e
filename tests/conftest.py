import pytest
import torch
from hypothesis import settings

# Time limits of single examples would fail on a busy machine.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def tiny_numbers_are_kept() -> None:
    torch.set_flush_denormal(False)  # an engine of an earlier test may have set it
