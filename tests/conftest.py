"""Tests run on one thread: small tensors, and results that do not depend on the machine; and with Ctrl-C as a terminal
has it, also where the tests themselves run in the background, whose processes inherit that it is ignored."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
