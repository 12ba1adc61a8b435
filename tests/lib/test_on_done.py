"""lib/on_done.py: the command for the end of long work."""

import json
import sys

import pytest

from lib.on_done import on_done_command, run_on_done

SHOW = (
    "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('x', 'w'))"
)


def test_words_are_not_read_by_a_shell_and_make_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MAKEFLAGS", "MAKELEVEL", "KABLATE_SETTINGS", "KABLATE_PART"):
        monkeypatch.setenv(name, "x")
    words = on_done_command(f"""'{sys.executable}' -c "{SHOW}" 'a b' $HOME;id >y""")
    run_on_done(words, {"RESULTS": "/r", "EXIT_CODE": "1"})
    given, environ = json.loads((tmp_path / "x").read_text())
    assert given == ["a b", "$HOME;id", ">y"]
    ours = {k: v for k, v in environ.items() if k.startswith(("KABLATE", "MAKE"))}
    assert ours == {"KABLATE_RESULTS": "/r", "KABLATE_EXIT_CODE": "1"}
    assert environ["PATH"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("echo 'a", "ON_DONE=echo 'a: No closing quotation"),
        ("nosuchprogram --now", "there is no program 'nosuchprogram'. No shell"),
        ("./tell.sh", "there is no program './tell.sh'"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path, monkeypatch, text, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tell.sh").write_text("not executable")
    with pytest.raises(ValueError) as error:
        on_done_command(text)
    assert hint in str(error.value)


def test_a_failure_is_told_and_nothing_else(tmp_path, capsys):
    run_on_done([], {})
    run_on_done([sys.executable, "-c", "raise SystemExit(7)"], {})
    script = tmp_path / "script"
    script.write_text("#!/nowhere/interpreter\n")
    script.chmod(0o755)
    run_on_done([str(script)], {})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("ON_DONE: ") and first.endswith("ended with 7")
    assert second.endswith("script did not start: No such file or directory")
