import signal

import pytest
import torch
from hypothesis import settings

# Time limits of single examples would fail on a busy machine.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# A shell starts what it runs in the background with Ctrl-C ignored, and the programs under test inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def tiny_numbers_are_kept() -> None:
    torch.set_flush_denormal(False)  # an engine of an earlier test may have set it
