"""Description of an optimizer (OptimizerSpec). Imports no torch.

Each optimizer is one file in lib/optim/optimizers/: SPEC, builder, and formula in
float64. What needs torch or numpy is imported inside its functions, so that plans and
listings start without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from lib.optim.certify import Row
    from lib.optim.config import OptimConfig
    from lib.optim.groups import Group, OptimizerLike, Tensor
    from lib.optim.reference import Array, State

    # (weight, gradient, state, lr, decay) changes the weight in place. The state is a
    # dict of the weight's own, empty before its first update; its tensors are saved.
    Update = Callable[[Tensor, Tensor, State, float, float], object]
    Builder = Callable[[list[Group], OptimConfig, Collection[str]], OptimizerLike]
    Formula = Callable[[Array, Array, State, int, Mapping[str, Any]], Array]
    DecayFormula = Callable[[Array, float, float, int, OptimConfig], Array]
    Certificates = Callable[[], dict[str, Row]]


def _nothing(*_: object) -> str:
    return ""


def _accept(_: Mapping[str, Any]) -> None:
    return None


def from_torch(kind: str, *reads: str, **options: Any) -> Builder:
    """The builder of torch.optim's `kind`, fused where all parameters are on a GPU.

    reads: the attributes of OptimConfig that it takes, apart from the learning rate.
    options: further arguments.
    """

    def build(
        groups: list[Group], config: OptimConfig, embeddings: Collection[str]
    ) -> OptimizerLike:
        from lib.optim.eager import fused

        given = {name: getattr(config, name) for name in reads}
        return fused(kind, groups, lr=config.learning_rate, **given, **options)

    return build


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """A setting of one optimizer only; its symbol is the name in upper case.

    Its default is in the optimizer's menu, as is the range of a whole number. Bounds
    are inclusive except `above`.
    trial: its value in the certificates of 1,000 updates.
    short: its value in trainings of some 20 updates.
    cap: the most that 26 updates allow it to be, where that matters.
    before: its default, if there are recorded runs from before it existed.
    """

    name: str
    kind: type
    trial: Any
    short: Any
    cap: int | None = None
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    before: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSpec:
    """An optimizer: builder, formula, and what the rest of the project must know.

    build: (groups, config, names of embedding and head weights) -> optimizer. Each
        group has its own weight_decay; the caller sets group["lr"] before each update.
    formula: (weight, gradient, state, n, settings) -> new weight, in float64. state is
        a dict kept for the weight, empty before n = 1; settings has lr, decay,
        embedding (whether the weight is one) and the values of OptimConfig by name.
    reads: the fields of OptimConfig that it uses, without its own.
    decayed: for an L2 penalty, (weight, lr, decay, n, config) -> the weight after n
        updates without gradient. None: decoupled, w (1 - lr decay)^n.
    decay_updates: the n for which `decayed` holds.
    unpruned: of an optimizer whose state scores the weights to prune, the optimizer
        that it is without state pruning.
    lacks_moments: why its state is not Adam's m and v of every weight at all times;
        empty if it is: "exp_avg" and "exp_avg_sq" in torch, "m" and "v" in `formula`.
    is_bfloat16: hidden matrices are updated in bfloat16, which certificates allow for.
    jumps: its update jumps where a gradient changes sign, as that of sign(m) does. The
        trainer's certificate then leaves out weights whose gradient is rounding error.
    kept: numbers that it keeps for each weight between updates.
    kept_hidden: the same for matrices inside the blocks, where it differs.
    kept_if: the setting without which (0) it keeps none; empty: always.
    scratch: further numbers for each weight that one update needs.
    refuse: raises ValueError, with names of fields, for own values that do not go
        together.
    remark: (own values, updates of a run) -> a note for the user, or "".
    resume_at: updates after which certificates stop, and compare a resumed run.
    training_updates: of the trainer's certificate, in which all phases must act.
    certificates, columns: further checks, and their short names.
    place: position in listings; equal ones are sorted by name.
    """

    name: str
    summary: str
    build: Builder
    formula: Formula
    reads: tuple[str, ...] = ()
    own: tuple[Own, ...] = ()
    decayed: DecayFormula | None = None
    decay_updates: int = 20
    unpruned: str = ""
    lacks_moments: str = "does not keep them"
    is_bfloat16: bool = False
    jumps: bool = False
    kept: int = 1
    kept_hidden: int | None = None
    kept_if: str = ""
    scratch: int = 0
    refuse: Callable[[Mapping[str, Any]], None] = _accept
    remark: Callable[[Mapping[str, Any], int], str] = _nothing
    resume_at: tuple[int, int] = (30, 70)
    training_updates: int = 8
    certificates: Certificates | None = None
    columns: tuple[str, ...] = ()
    place: int = 100

    def kept_by(self, is_hidden: bool, values: Mapping[str, Any]) -> int:
        """Numbers kept for each weight of a matrix inside the blocks, or another one,
        with these settings."""
        if self.kept_if and not values[self.kept_if]:
            return 0
        hidden = self.kept if self.kept_hidden is None else self.kept_hidden
        return hidden if is_hidden else self.kept
