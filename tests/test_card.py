"""tests/card.py: what one process holds of a card no other gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.card import SHARES, VISIBLE, choose, held, shares_for, visible
from tests.scratch import ROOT

FREE = """
import sys
from pathlib import Path
from tests.card import SHARES, lock
with Path(sys.argv[1]).open("ab") as file:
    print(sum(lock(file, share, wait=False) for share in range(SHARES)))
"""
WAITS = """
import sys
from pathlib import Path
from tests.card import held
print("asks", flush=True)
with held(int(sys.argv[2]), Path(sys.argv[1])) as mine:
    print(*mine)
"""


def start(program: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def free(path: Path) -> int:
    return int(start(FREE, path).communicate()[0])


def test_no_share_is_given_to_two(tmp_path: Path) -> None:
    path = tmp_path / "card"
    with held(10, path) as mine:
        assert len(set(mine)) == 10
        assert free(path) == SHARES - 10
        other = start(WAITS, path, SHARES - 5)  # five too many
        assert other.stdout.readline() == "asks\n"
        assert other.poll() is None
    output = other.communicate()[0]
    assert len(set(output.split())) == SHARES - 5
    assert free(path) == SHARES


@pytest.mark.parametrize(
    ("gib", "card", "shares"),
    [(0.1, 80, 1), (2, 80, 1), (8, 80, 4), (15, 80, 7), (15, 8, 32), (1e99, 80, 32)],
)
def test_shares_of_a_card(gib: float, card: float, shares: int) -> None:
    assert shares_for(gib, card) == shares


class Collected:
    """Tests that pytest is about to run."""

    names: list[str]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.nodeid for item in session.items]


def test_who_wants_the_whole_card_comes_last() -> None:
    files = ("tests/gpt2/train/test_on_gpu.py", "tests/lib/gpu/test_backend_probe.py")
    paths = [str(ROOT / name) for name in files]
    words = ["--collect-only", "-q", "-m", "gpu", "-p", "no:xdist", "-p", "no:timeout"]
    found = Collected()  # in this process, which may have torch already
    assert pytest.main([*words, *paths], plugins=[found]) == 0
    assert len(found.names) > 3 and "absurd" in found.names[-1]


@pytest.mark.parametrize(
    ("worker", "shown"), [("gw0", "0"), ("gw1", "3"), ("gw6", "0"), ("", "0,3")]
)
def test_each_worker_sees_one_of_several_cards(
    worker: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "0,3")
    choose(worker, visible())
    assert os.environ[VISIBLE] == shown
