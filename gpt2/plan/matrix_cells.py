"""Cells of the test matrix: optimizer x pruning method x sparsity.

Torch-free. A cell changes the optimizer, its learning rate where it has its own,
and the pruning; everything else (updates, tokens, evaluation, schedule, cadence
and scope of pruning) is the same for all cells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.settings.checks import heads_pruned
from gpt2.settings.schema import SYMBOL_OF, Matrix, Settings
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS, VARIANTS, why_not
from lib.pruning.schedules import CubicSchedule, ramp

BASELINE = "adamw-none"


@dataclass(frozen=True, slots=True)
class LeftOutCell:
    """A cell of the matrix that is not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixCell:
    """One combination. sparsity, variant: None where they mean nothing."""

    optimizer: str
    method: str
    sparsity: float | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        return cell_name(self.optimizer, self.method, self.sparsity, self.variant)

    @property
    def title(self) -> str:
        """Optimizer and pruning in words."""
        kind = OPTIMIZERS[self.optimizer]
        if self.sparsity is None:
            return kind.summary
        score = METHODS[self.method].summary
        if self.variant is not None:
            score = f"{self.variant}, the lowest {VARIANTS[self.variant]}"
        return f"{kind.summary}; prunes {100 * self.sparsity:g}%: {score}"


def cell_name(
    optimizer: str, method: str, sparsity: float | None, variant: str | None
) -> str:
    """Name such as adamw-none, adamwspam-magnitude-50, adamwprune-bitter7-state-50."""
    share = None if sparsity is None else f"{100 * sparsity:g}"
    words = (optimizer, variant, method, share)
    return "-".join(word for word in words if word is not None)


def cells_of(settings: Settings) -> tuple[list[MatrixCell], list[LeftOutCell]]:
    """Cells to run, the baseline first, and cells left out with the reason.

    Raises ValueError if a set is empty or two cells would have one name.
    """
    matrix = settings.matrix
    _require_sets(matrix)
    cells: list[MatrixCell] = []
    left_out: list[LeftOutCell] = []
    for optimizer in chosen(matrix, OPTIMIZERS):
        for method in chosen(matrix, METHODS):
            reason = why_not(optimizer, method)
            if reason is None:
                cells += _pair(matrix, optimizer, method)
            else:
                left_out.append(LeftOutCell(f"{optimizer}-{method}", reason))
    if not cells:
        reasons = "; ".join(f"{x.name}: {x.reason}" for x in left_out)
        raise ValueError(f"no cell of the test matrix is possible: {reasons}")
    _require_names(cells)
    there = {cell.name: cell for cell in cells}
    twins = {cell.name: _twin(cell, settings, there) for cell in cells}
    for name, twin in twins.items():
        if twin is not None:
            left_out.append(twin)
            del there[name]
    return sorted(there.values(), key=lambda cell: cell.name != BASELINE), left_out


def chosen(matrix: Matrix, names: Iterable[str]) -> list[str]:
    """The ``names`` that are in the configured set, in their order."""
    return [name for name in names if matrix.has(name)]


def _require_sets(matrix: Matrix) -> None:
    for what, names in (("OPTIMIZER", OPTIMIZERS), ("PRUNING METHOD", METHODS)):
        if not chosen(matrix, names):
            some = ", ".join(SYMBOL_OF[f"with_{name}"] for name in names)
            raise ValueError(
                f"the test matrix has no {what.lower()}: set one of {some} to y"
            )
    for method in chosen(matrix, METHODS):
        variants = METHODS[method].variants
        if variants and not chosen(matrix, variants):
            some = ", ".join(SYMBOL_OF[f"with_{name}"] for name in variants)
            raise ValueError(
                f"the test matrix has {method} pruning but no score for it: set one of "
                f"{some} to y"
            )


def _pair(matrix: Matrix, optimizer: str, method: str) -> Iterator[MatrixCell]:
    """All cells of one possible pair."""
    if method == "none":
        yield MatrixCell(optimizer=optimizer, method=method)
        return
    variants = METHODS[method].variants
    scores = chosen(matrix, variants) if variants else [None]
    for score in scores:
        for sparsity in matrix.sparsities:
            yield MatrixCell(
                optimizer=optimizer, method=method, sparsity=sparsity, variant=score
            )


def _require_names(cells: list[MatrixCell]) -> None:
    names = [cell.name for cell in cells]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(
            f"CONFIG_TEST_MATRIX_SPARSITIES: values too close to tell their cells "
            f"apart: {', '.join(double)}"
        )


# ---- cells with identical results -----------------------------------------------


def _twin(
    cell: MatrixCell, settings: Settings, there: Collection[str]
) -> LeftOutCell | None:
    """Reason why a cell would only repeat another one of the matrix."""
    if cell.variant is None:
        return None
    like = METHODS[cell.method].same_ranking.get(cell.variant, cell.variant)
    unpruned = OPTIMIZERS[cell.optimizer].unpruned
    magnitude = cell_name(unpruned, "magnitude", cell.sparsity, None)
    one_rate = rates_of(settings, unpruned) == rates_of(settings, cell.optimizer)
    if like == "bitter1" and magnitude in there and one_rate:
        why = f"scores by |w|, and all else is {unpruned}'s: the same as {magnitude}"
        return LeftOutCell(cell.name, why)
    same = cell_name(cell.optimizer, cell.method, cell.sparsity, like)
    if like != cell.variant and same in there:
        return LeftOutCell(cell.name, f"ranks all weights as {like} does: see {same}")
    return None


# ---- changes of a cell, and its comparison partner ------------------------------


def rates_of(settings: Settings, optimizer: str) -> tuple[float, float]:
    """Peak and final learning rate of an optimizer's cells.

    With its own peak rate the final rate is scaled along, so that all cells have a
    schedule of the same shape.
    """
    optim = settings.optim
    own = settings.matrix.own_rate(optimizer)
    if own is None:
        return optim.learning_rate, optim.min_lr
    return own, optim.min_lr * own / optim.learning_rate


def cell_changes(cell: MatrixCell, settings: Settings) -> dict[str, Any]:
    """Fields that a cell sets, over the configured settings."""
    changes: dict[str, Any] = {
        "optimizer": cell.optimizer,
        "prune_method": cell.method,
    }
    if settings.matrix.own_rate(cell.optimizer) is not None:
        peak, final = rates_of(settings, cell.optimizer)
        changes |= {"learning_rate": peak, "min_lr": final}
    if cell.sparsity is not None:
        changes["prune_sparsity"] = cell.sparsity
    if cell.variant is not None:
        changes["adamwprune_variant"] = cell.variant
    return changes


def partner_of(cell: MatrixCell, cells: Sequence[MatrixCell]) -> MatrixCell | None:
    """Comparison partner of a cell: if it is in the matrix, the cell from
    which it differs in one thing. None for the baseline, which comes first.

    - unpruned: adamw unpruned;
    - magnitude, heads: the same optimizer unpruned, for the price of zeros or heads;
    - other methods: magnitude of the same optimizer (adamw for adamwprune) at the
      same sparsity, for what the better score is worth; else as magnitude;
    - where none of these is in the matrix: the first cell.
    """
    if cell is cells[0]:
        return None
    method = METHODS[cell.method]
    own = OPTIMIZERS[cell.optimizer].unpruned or cell.optimizer
    wanted = [BASELINE]
    if cell.method != "none":
        wanted.insert(0, cell_name(own, "none", None, None))
        if method.against != "none":
            wanted.insert(0, cell_name(own, method.against, cell.sparsity, None))
    there = {other.name: other for other in cells}
    return next((there[name] for name in wanted if name in there), cells[0])


# ---- invalid settings -------------------------------------------------------------


def pruning_schedule(settings: Settings) -> CubicSchedule:
    """Pruning schedule of a run. ValueError if no mask update fits into it."""
    pruning = settings.pruning
    return ramp(
        sparsity=pruning.prune_sparsity,
        warmup_steps=pruning.prune_warmup,
        interval=pruning.prune_interval,
        ramp_end=pruning.prune_ramp_end,
        steps=settings.optim.max_iters,
    )


def require_effect(settings: Settings) -> None:
    """Refuse pruning for which no mask update fits into the run or no head goes,
    a stable phase without updates, and settings of an optimizer that exclude each
    other. Raises ValueError, naming the symbols.
    """
    optim, pruning = settings.optim, settings.pruning
    own = optim.own_of(optim.optimizer)
    try:
        OPTIMIZERS[optim.optimizer].refuse(own)
    except ValueError as error:
        message = str(error)
        for name in own:
            message = message.replace(f"{name}=", f"{SYMBOL_OF[name]}=")
        raise ValueError(message) from error
    _require_stable_phase(settings)
    if pruning.prune_method == "none":
        return
    if optim.time_budget:
        raise ValueError(
            f"TIME_BUDGET={optim.time_budget}: the schedule of {pruning.prune_method} "
            "pruning needs to know the updates; give GPT2_MAX_ITERS instead"
        )
    try:
        pruning_schedule(settings)
    except ValueError as error:
        raise ValueError(
            f"PRUNING_SPARSITY={pruning.prune_sparsity:g}, "
            f"PRUNING_WARMUP_STEPS={pruning.prune_warmup}, "
            f"PRUNING_INTERVAL={pruning.prune_interval}, "
            f"GPT2_MAX_ITERS={optim.max_iters}: {error}"
        ) from error
    _require_heads(settings)


def _require_stable_phase(settings: Settings) -> None:
    """Refuse to keep or continue a stable phase that is over at update 0."""
    optim, resources = settings.optim, settings.resources
    asked = "KEEP_STABLE=y" if resources.keep_stable else "STABLE_FROM"
    used = resources.keep_stable or resources.stable_from
    if used and optim.decay_updates >= optim.max_iters:
        raise ValueError(
            f"{asked}: with LR_DECAY_SHARE={optim.lr_decay_share:g} the decay takes "
            f"all of the {optim.max_iters} updates, so that there is no stable phase"
        )


def _require_heads(settings: Settings) -> None:
    """Refuse a sparsity that prunes no head at all."""
    m, sparsity = settings.model, settings.pruning.prune_sparsity
    is_structured = METHODS[settings.pruning.prune_method].is_structured
    if not is_structured or heads_pruned(settings, sparsity)[1]:
        return
    raise ValueError(
        f"PRUNING_SPARSITY={sparsity:g}, PRUNING_SCOPE={settings.pruning.prune_scope}: "
        f"of GPT2_N_HEAD={m.n_head} heads in {m.n_layer} layers, of which each keeps "
        "one, none would be pruned"
    )
