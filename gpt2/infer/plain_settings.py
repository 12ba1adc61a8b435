"""Settings as plain data: what exported code has in the place of gpt2/settings.

A model reads its settings and checks nothing, so that it needs neither the schema nor
the optimizers and pruning methods that this consists of.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class PlainSettings:
    """Settings by part and name, as in settings.model.n_head; ``parts`` as in job.json.

    Of the properties of gpt2.settings.schema.Settings it has those that a model reads.
    """

    model: SimpleNamespace
    mechanisms: SimpleNamespace
    optim: SimpleNamespace
    data: SimpleNamespace
    resources: SimpleNamespace

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], vocab_size: int) -> None:
        self.parts, self.vocab_size = parts, vocab_size
        for name, values in parts.items():
            setattr(self, name, SimpleNamespace(**values))

    def replace(self, **changes: Any) -> PlainSettings:
        """A copy with fields changed by flat name; KeyError for an unknown one."""
        parts = {name: dict(values) for name, values in self.parts.items()}
        for field, value in changes.items():
            holders = [values for values in parts.values() if field in values]
            if not holders:
                raise KeyError(f"no such setting: {field}")
            holders[0][field] = value
        return PlainSettings(parts, self.vocab_size)


# The names by which the model's sources import them.
Settings = PlainSettings
Resources = SimpleNamespace
