"""gpt2/settings/extras.py: a package that a setting needs and that is missing."""

import pytest

from gpt2.settings.extras import check_installed


def test_a_missing_package_is_named_with_what_to_type() -> None:
    check_installed("TRACKER", ["json"], "trackers")
    with pytest.raises(ValueError, match="TRACKER: no_such .*EXTRAS=trackers"):
        check_installed("TRACKER", ["json", "no_such"], "trackers")
