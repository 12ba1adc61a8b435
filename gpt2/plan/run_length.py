"""Convert tokens, epochs or time into optimizer updates, and shares into rates.

Torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from gpt2.data.token_files import DataError, MissingData, read_meta, request_of
from gpt2.settings.schema import SYMBOL_OF, Settings
from lib.kconfig.dotconfig import COMMAND_LINE, SAVED

NO_END = 100_000_000  # maximum updates of a run with a time budget; as in Kconfig
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds_of(time: str) -> float:
    """Seconds of "2h", "90m", "1h30m" or "45s"; 0 for the empty string.

    Raises ValueError for anything else.
    """
    found = _TIME.fullmatch(time)
    if not found:
        raise ValueError(
            f"TIME_BUDGET={time!r} is not a time: write 2h, 90m, 1h30m or 45s"
        )
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = 3600.0 * hours + 60.0 * minutes + seconds
    if time and not total:
        raise ValueError(f"TIME_BUDGET={time!r} must be above 0")
    return total


def last_update(settings: Settings) -> int:
    """Number of the last update of a run; 0 with a time budget."""
    return 0 if settings.optim.time_budget else settings.optim.max_iters


def tokens_of(settings: Settings) -> int:
    """Number of tokens that a run trains on, including those of repeated epochs."""
    return settings.tokens_per_update * settings.optim.max_iters


def resolve(
    settings: Settings,
    origins: Mapping[str, str],
    parameters: Callable[[Settings], int],
) -> tuple[Settings, dict[str, str]]:
    """Convert a budget in another unit to updates, and a share of the peak learning
    rate to the final one; returns settings and origins.

    Tokens and epochs are rounded up to whole updates; an epoch has as many tokens as
    the training split. parameters: of the baseline, for TOKENS_PER_PARAMETER.

    Raises ValueError for two budgets at once (including a number of updates on the
    command line), an invalid time, or epochs of unprepared data.
    """
    settings, origins = _with_final_rate(settings, origins)
    budgets = {
        "train_tokens": settings.matrix.train_tokens,
        "train_epochs": settings.matrix.train_epochs,
        "tokens_per_parameter": settings.matrix.tokens_per_parameter or 0.0,
        "time_budget": seconds_of(settings.optim.time_budget),
    }
    asked = [field for field, amount in budgets.items() if amount]
    if not asked:
        return settings, dict(origins)
    if len(asked) > 1:
        symbols = " and ".join(SYMBOL_OF[field] for field in asked)
        raise ValueError(f"{symbols} are both set, but a run has one budget: clear one")
    (field,) = asked
    if _was_given("max_iters", origins, instead=field):
        raise ValueError(
            f"GPT2_MAX_ITERS={settings.optim.max_iters} was given, but "
            f"{SYMBOL_OF[field]} ({origins.get(field, 'default')}) sets the length "
            "of a run: leave one out, or clear it, for example TIME= or MAX_TOKENS=0"
        )
    amount = budgets[field]
    if field == "tokens_per_parameter":  # of any length: it is not known yet
        amount *= parameters(settings.replace(max_iters=NO_END))
    updates = _updates(settings, field, amount)
    origin = f"{SYMBOL_OF[field]} ({origins.get(field, 'default')})"
    return settings.replace(max_iters=updates), {**origins, "max_iters": origin}


def _was_given(field: str, origins: Mapping[str, str], instead: str) -> bool:
    """Whether a field was given on the command line that another one replaces, and not
    before: what `make defconfig-x` saved gives way to what this command says."""
    origin, newer = origins.get(field), origins.get(instead) == COMMAND_LINE
    return origin == COMMAND_LINE or (origin == SAVED and not newer)


def _with_final_rate(
    settings: Settings, origins: Mapping[str, str]
) -> tuple[Settings, Mapping[str, str]]:
    """Final learning rate from MIN_LR_RATIO, if it is set. Raises ValueError if both
    are given on the command line.

    The product is that of the decimal numbers: 0.1 of 3e-4 is 3e-5, as one writes it
    for GPT2_MIN_LR, so that both are one run. In binary it is 2.9999999999999997e-05.
    """
    ratio, peak = settings.matrix.min_lr_ratio, settings.optim.learning_rate
    if ratio is None:
        return settings, origins
    origin = origins.get("min_lr_ratio", "default")
    if _was_given("min_lr", origins, instead="min_lr_ratio"):
        raise ValueError(
            f"GPT2_MIN_LR={settings.optim.min_lr:g} was given, but MIN_LR_RATIO "
            f"({origin}) sets the final learning rate: leave one out, or clear "
            "MIN_LR_RATIO="
        )
    found = {**origins, "min_lr": f"{SYMBOL_OF['min_lr_ratio']} ({origin})"}
    product = float(Decimal(repr(ratio)) * Decimal(repr(peak)))
    return settings.replace(min_lr=product), found


def _updates(settings: Settings, field: str, amount: float) -> int:
    if field == "time_budget":
        if settings.pruning.prune_method != "none":
            raise ValueError(
                "TIME_BUDGET: a pruning schedule needs the number of updates; set "
                "GPT2_MAX_ITERS, GPT2_MAX_TOKENS or GPT2_MAX_EPOCHS instead"
            )
        return NO_END
    tokens = amount
    if field == "train_epochs":
        try:
            meta = read_meta(settings.resources.data_dir, request_of(settings))
        except (DataError, MissingData) as error:
            raise ValueError(f"GPT2_MAX_EPOCHS={amount:g}: {error}") from error
        tokens = amount * meta["splits"]["train"]["tokens"]
    return max(1, math.ceil(tokens / settings.tokens_per_update))
