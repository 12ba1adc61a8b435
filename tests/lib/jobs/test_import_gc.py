"""lib/jobs/import_gc.py: the collector rests for an import, and works as ever after
it."""

import gc
import weakref

import pytest

from lib.jobs.import_gc import collector_at_rest


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_it_rests_for_the_import_and_leaves_it_alone_later() -> None:
    seen: list[str] = []
    before = gc.get_freeze_count()
    gc.callbacks.append(lambda phase, info: seen.append(phase))
    try:
        with pytest.raises(ImportError), collector_at_rest():
            modules = [[number] for number in range(200_000)]
            assert seen == []
            raise ImportError
        assert gc.get_freeze_count() - before > len(modules)
        garbage = weakref.ref(Cycle())
        assert gc.isenabled() and garbage() is not None
        gc.collect()
        assert garbage() is None and seen
    finally:
        gc.callbacks.pop()
