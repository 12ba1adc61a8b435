"""Small texts that a run goes through twice, and audited runs on them."""

import pytest

from tests.gpt2.audit.runs import audit, audited_job
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import finish


def letters(count: int = 6, lines: int = 20) -> dict[str, str]:
    """Documents in which a character may take two bytes, unlike from split to split."""
    return {
        f"doc{n}.txt": "".join(
            f"Zeile {k}: " + "äöü"[: n % 4] * n + "\n" for k in range(lines)
        )
        for n in range(count)
    }


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("letters"), letters())


@pytest.fixture(scope="session")
def job(data_dir):
    return audited_job(data_dir)


@pytest.fixture(scope="session")
def done(job, tmp_path_factory):
    """A finished run that was not disturbed; tests that change files copy it."""
    run_dir = tmp_path_factory.mktemp("audited") / "run"
    finish(job, run_dir)
    return run_dir


@pytest.fixture(scope="session")
def audited(done):
    """Its audit."""
    return audit(done)
