"""torch's optimizers without what torch.compile needs of them.

torch wraps their methods so that no trace of its compiler enters them, and to wrap
one imports that compiler: half the time that a run on a CPU takes to start. We compile
models and never an update, so the methods serve as they are inside; they compute the
same. Where a torch wraps in a way that does not show, its wrappers stay.
"""

from __future__ import annotations

from inspect import unwrap

import torch
from torch.optim import Optimizer


class Eager(Optimizer):
    """First base of an optimizer, the methods that all of them share."""

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class SGD(Eager, torch.optim.SGD):
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class Adam(Eager, torch.optim.Adam):
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(Eager, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Muon(Eager, torch.optim.Muon):
    step = torch.no_grad()(unwrap(torch.optim.Muon.step))
