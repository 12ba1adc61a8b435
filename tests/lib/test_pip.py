"""Lines that pip prints where no terminal shows its progress."""

import pytest

from lib.pip import pip_step


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Collecting torch==2.13.0", ""),
        ("  Downloading tqdm-4.67.1-py3-none-any.whl (78 kB)", ""),
        (
            "  Downloading https://host/a/torch-2.13.0-cp312-x86_64.whl (180.4 MB)",
            "downloading torch-2.13.0 (180.4 MB)",
        ),
        (
            "Downloading numpy-2.3.5.whl (16.6 MB)",
            "downloading numpy-2.3.5.whl (16.6 MB)",
        ),
        ("Installing collected packages: a, b, torch", "installing 3 packages"),
    ],
)
def test_long_steps_of_pip_are_reported(line: str, step: str) -> None:
    assert pip_step(line + "\n") == step
