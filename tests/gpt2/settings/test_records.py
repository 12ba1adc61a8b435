"""gpt2/settings/records.py: records of older versions stay readable, hash included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2.plan.jobs import identity_of, identity_of_json, job_from_json, was_edited
from gpt2.plan.planning import make_plan
from gpt2.report.arms import config_changes
from gpt2.run.conflicts import conflicts
from gpt2.settings.parse import settings_from, settings_from_dict
from gpt2.settings.records import BEFORE, completed, identity_parts, with_before
from gpt2.settings.schema import IDENTITY_PARTS, PART_OF
from lib.hashing import identity
from lib.jobs.run_files import JOB_FILE
from tests.gpt2.helpers import make_config

# Step 5 with the defaults of commit a5b7cfa, before INIT_SHA256 (inside
# the identity), and PRICE_PER_GPU_HOUR, PREPARE_AHEAD, STEPS_FILE, SWEEP and
# MIN_LR_RATIO (outside of it) existed.
OLDER = Path(__file__).with_name("job_of_a5b7cfa.json")
SAME = {"RA_MLA_ABLATION_MODE": "y", "STEPS": "0,5", "DEVICE": "cpu"}


def older() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(OLDER.read_text())
    return found


def test_a_job_of_an_older_version_is_read_and_keeps_its_hash() -> None:
    job = job_from_json(older())
    assert job.hash == older()["hash"] == "c0941c6acb749ba3"
    (planned,) = [j for j in make_plan(make_config(**SAME)).jobs if j.step == 5]
    assert planned.hash == job.hash
    assert job.settings.data.init_sha256 == ""
    assert job.settings.resources.prepare_ahead == -1
    assert job.settings.matrix.min_lr_ratio is None


def test_a_run_of_an_older_version_is_continued(tmp_path: Path) -> None:
    (planned,) = [j for j in make_plan(make_config(**SAME)).jobs if j.step == 5]
    path = tmp_path / planned.run_dir / JOB_FILE
    path.parent.mkdir(parents=True)
    path.write_text(OLDER.read_text())
    assert conflicts(tmp_path, [planned]) == []
    assert identity_of_json(older()) == identity_of(planned.settings, planned.seed)
    other = make_plan(make_config(**SAME, WEIGHT_DECAY="0.2")).jobs[1]
    (conflict,) = conflicts(tmp_path, [other])
    assert conflict.fields == (("optim.weight_decay", 0.1, 0.2),)


def test_reports_see_no_difference_in_settings_that_did_not_exist() -> None:
    new = job_from_json(older()).settings.to_dict()
    changes = config_changes(older()["settings"], new)
    assert not [c for c in changes if c[0].split(".")[0] in IDENTITY_PARTS]


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_a_new_setting_changes_the_hash_only_when_it_is_used(name: str) -> None:
    """Its default trains what was trained before it existed."""
    settings = settings_from(make_config())
    assert settings.flat()[name] == BEFORE[name], f"{name}: Kconfig's default differs"
    part = PART_OF[name]
    assert name not in identity_parts(settings.to_dict())[part]
    whole = settings.to_dict()
    whole[part][name] = not BEFORE[name] if BEFORE[name] in (True, False) else "other"
    assert name in identity_parts(whole)[part]
    del whole[part][name]
    assert settings_from_dict(whole) == settings
    assert with_before(whole) == settings.to_dict()


def test_equal_numbers_of_other_types_are_other_values() -> None:
    text = settings_from(make_config()).to_dict()
    text["data"]["init_sha256"] = 0
    assert identity_parts(text)["data"]["init_sha256"] == 0


def test_what_cannot_be_added_is_refused_by_name() -> None:
    whole = settings_from(make_config()).to_dict()
    removed = {**whole, "optim": {**whole["optim"], "nesterov": True}}
    with pytest.raises(ValueError, match=r"optim\.nesterov: unknown here: removed"):
        completed(removed)
    del whole["optim"]["eps"]
    with pytest.raises(ValueError, match=r"optim\.eps: missing; use the version"):
        completed(whole)


def test_a_removed_setting_outside_the_identity_is_left_out() -> None:
    whole = settings_from(make_config()).to_dict()
    removed = {**whole, "resources": {**whole["resources"], "hang_updates": 20}}
    assert completed(removed) == whole
    assert settings_from_dict(removed).to_dict() == whole


def test_records_that_are_damaged_stay_as_they_are() -> None:
    damaged: dict[str, Any] = {"model": 5, "pruning": {"x": 1}, "other": []}
    assert with_before(damaged) == damaged
    assert identity_parts(damaged) == {"model": 5, "pruning": {"x": 1}}
    assert identity(identity_parts({})) == identity({})


def test_kconfig_has_all_defaults_that_a_record_may_lack() -> None:
    whole = settings_from(make_config()).to_dict()
    lean = {
        part: dict(values) if part in IDENTITY_PARTS else {}
        for part, values in whole.items()
    }
    assert settings_from_dict(lean) == settings_from(make_config())


def test_settings_that_were_edited_do_not_have_the_hash() -> None:
    job = older()
    assert not was_edited(job)
    for part in (*IDENTITY_PARTS, "resources"):
        assert not was_edited({**job, "settings": job["settings"] | {part: None}})
    job["settings"]["resources"]["output_dir"] = "elsewhere"
    assert not was_edited(job)
    unknown = {**job["settings"]["optim"], "a_newer_setting": 1}
    assert not was_edited({**job, "settings": job["settings"] | {"optim": unknown}})
    for part, name, value in (
        ("mechanisms", "ra_alpha", 0.5),
        ("optim", "max_iters", float("nan")),
        ("resources", "batch_size", None),
    ):
        edited = {**job["settings"][part], name: value}
        assert was_edited({**job, "settings": job["settings"] | {part: edited}})
