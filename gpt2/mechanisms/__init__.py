"""The mechanisms, one folder each: spec.py, layer.py, naive.py and Kconfig.

A folder is found by its spec.py; there is no list to add it to. Specs are torch-free,
layers and naive formulas are imported by gpt2/model alone.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms.needs import AttentionNeeds
from gpt2.mechanisms.spec import MULTI_HEAD, Mechanism, Projection

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings


@cache  # specs import this module, so they are not looked for while it is loaded
def mechanisms() -> tuple[Mechanism, ...]:
    """Spec of each folder, in the order in which mechanisms act."""
    found = []
    for name in names():
        spec = module_of(name, "spec").SPEC
        spec.name = name
        found.append(spec)
    return tuple(sorted(found, key=lambda spec: (spec.order, spec.name)))


def names() -> list[str]:
    """Names of the folders with a spec."""
    return [path.parent.name for path in Path(__file__).parent.glob("*/spec.py")]


def module_of(name: str, part: str) -> Any:
    """Module ``spec``, ``layer`` or ``naive`` of a mechanism."""
    return import_module(f"{__name__}.{name}.{part}")


def enabled(settings: Settings) -> list[Mechanism]:
    """Enabled mechanisms, in the order in which they act."""
    return [m for m in mechanisms() if m.is_on(settings.mechanisms)]


def projections() -> list[Projection]:
    """Mechanisms that replace the projection of multi-head attention."""
    return [m for m in mechanisms() if isinstance(m, Projection)]


def projection_of(settings: Settings) -> Projection:
    """Projection to queries, keys and values in a model with these settings."""
    found = (p for p in projections() if p.is_on(settings.mechanisms))
    return next(found, MULTI_HEAD)


def added(settings: Settings) -> list[Mechanism]:
    """Mechanisms that are on, except for the projection."""
    return [m for m in enabled(settings) if not isinstance(m, Projection)]


def needs_of(settings: Settings) -> AttentionNeeds:
    """Requirements of the enabled mechanisms on the attention call."""
    asked: dict[str, Any] = {}
    for mechanism in enabled(settings):
        asked |= mechanism.attention(settings)
    return AttentionNeeds(**asked)
