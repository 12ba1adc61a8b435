"""Remarks on a prepared text that is small for what is trained and evaluated on it."""

from __future__ import annotations

from gpt2.data.token_files import prepared
from gpt2.settings.schema import Settings

# Up to here, text that is read again teaches nearly as much as new text (Muennighoff et
# al. 2023, arXiv 2305.16264).
EPOCHS = 4


def small_text(settings: Settings) -> list[str]:
    """One line if a run repeats its training text more often than EPOCHS, one if its
    validation windows overlap; [] if the text is not prepared, which is refused later.
    """
    try:
        splits = prepared(settings)["splits"]
    except (OSError, ValueError):
        return []
    train, val = splits["train"]["tokens"], splits["val"]["tokens"]
    optim, block = settings.optim, settings.model.block_size
    epochs = optim.max_iters * settings.tokens_per_update / train
    is_asked = settings.matrix.train_epochs or optim.time_budget
    found = []
    if epochs > EPOCHS and not is_asked:
        found.append(
            f"each run reads its {train:,} tokens of training text {epochs:,.0f} "
            f"times: read more than {EPOCHS} times, text teaches less than new text"
        )
    samples = settings.data.eval_samples
    if samples * block > val:
        found.append(
            f"the {samples} validation windows of {block} tokens overlap, as the "
            f"validation text has {val:,} tokens: losses are of a small text"
        )
    return found
