"""A small data set, a job on it, and a run of it that nothing disturbed."""

import pytest

from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import finish, tiny_job


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))


@pytest.fixture(scope="session")
def job(data_dir):
    return tiny_job(data_dir)


@pytest.fixture(scope="session")
def done(job, tmp_path_factory):
    """Directory of the run; tests only read it."""
    run_dir = tmp_path_factory.mktemp("done") / "run"
    finish(job, run_dir)
    return run_dir
