"""lib/output.py: commands whose streams are closed, full, ASCII; Ctrl-C; python -O."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scratch import ROOT

ENVIRON = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
BOOTSTRAP = ROOT / "scripts/_bootstrap.py"
NO_COMMANDS = ("__init__", "_bootstrap", "kablate")  # the last runs one of the others
COMMANDS = [
    *(p for p in sorted((ROOT / "scripts").glob("*.py")) if p.stem not in NO_COMMANDS),
    *(ROOT / "gpt2/train_ra_mla.py", ROOT / "lib/jobs/launcher.py"),
]
COMMAND = """
import os, subprocess, sys
sys.path[0] = {root!r}
from lib.output import begin, exit_code
begin()
def main():
{body}
sys.exit(exit_code(main))
"""


def command(tmp_path: Path, body: str) -> list[str]:
    """A command of this project that does what `body` says; its main returns 0."""
    script = tmp_path / "tool.py"
    lines = "".join(f"    {line}\n" for line in [*body.splitlines(), "return 0"])
    script.write_text(COMMAND.format(root=str(ROOT), body=lines), encoding="utf-8")
    return [sys.executable, str(script)]


def run(words, **options):
    """Exit code, stdout and stderr."""
    environ = {**ENVIRON, **options.pop("environ", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    done = subprocess.run(list(map(str, words)), env=environ, **pipes)
    return done.returncode, done.stdout, done.stderr


# ---- a full disk, a reader that leaves ------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("kconfig.py", "list-defconfigs"),
        ("report.py", "--help"),
        ("verify.py", "--help"),  # which ends as what imports torch does
        ("-u", "report.py", "--help"),
    ],
    ids=lambda words: words[0],
)
def test_output_on_a_full_disk_is_reported_in_one_line(words):
    python = [sys.executable, *(word for word in words if word == "-u")]
    words = [word for word in words if word != "-u"]
    with open("/dev/full", "w") as full:
        script = ROOT / "scripts" / words[0]
        code, _, said = run([*python, script, *words[1:]], stdout=full)
    name = words[0].removesuffix(".py")
    expected = f"{name}: cannot write: No space left on device\n"
    assert (code, said.decode()) == (6, expected)


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_command_goes_on_when_its_reader_has_left(tmp_path, options):
    body = "for n in range(9999): print('line', n)\nopen('done', 'w').close()"
    python, script = command(tmp_path, body)
    read, write = os.pipe()
    os.close(read)
    ended = run([python, *options, script], stdout=write, cwd=tmp_path)
    os.close(write)
    assert ended == (0, None, b"")
    assert (tmp_path / "done").exists()


def test_a_failure_stays_one_when_the_reader_has_left(tmp_path):
    words = command(tmp_path, "print('line')\nreturn 3")
    read, write = os.pipe()
    os.close(read)
    assert run(words, stdout=write)[0] == 3
    os.close(write)


@pytest.mark.parametrize("environ", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_pipe_that_does_not_block_is_waited_for(tmp_path, environ):
    read, write = os.pipe()
    os.set_blocking(write, False)
    words = command(tmp_path, "print('x' * 1_000_000)")
    process = subprocess.Popen(words, stdout=write, env={**ENVIRON, **environ})
    os.close(write)
    with process, open(read, "rb") as file:
        assert len(file.read()) == 1_000_001
    assert process.returncode == 0


# ---- closed streams -------------------------------------------------------------


def closing(*numbers):
    """A preexec_fn: the standard streams of these numbers are closed."""

    def close():
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_fault(closed):
    words = [sys.executable, ROOT / "scripts/kconfig.py", "list-defconfigs"]
    code, out, error = run(words, preexec_fn=closing(*closed))
    assert (code, error) == (0, b"")
    assert (b"gpt2-quickstart" in out) == (1 not in closed)


def test_no_file_gets_what_a_closed_stream_would_have_taken(tmp_path):
    body = """\
with open('kept', 'w') as file:
    print('lost', flush=True)
    print('lost too', file=sys.stderr, flush=True)
    subprocess.run(['sh', '-c', 'echo a child; echo its error >&2'], check=True)
    file.write('whole')"""
    words = command(tmp_path, body)
    ended = run(words, preexec_fn=closing(0, 1, 2), cwd=tmp_path)
    assert ended == (0, b"", b"")
    assert (tmp_path / "kept").read_text() == "whole"


# ---- encodings ------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_what_an_encoding_lacks_is_escaped(tmp_path, encoding):
    body = "for to in sys.stdout, sys.stderr: print('±0.1 −ł', '\\udcff', file=to)"
    words = command(tmp_path, body)
    code, *texts = run(words, environ={"PYTHONIOENCODING": encoding})
    plus = b"\xb1" if encoding == "latin-1" else b"+-"
    assert code == 0
    assert texts == [plus + b"0.1 -\\u0142 \xff\n"] * 2


def test_a_file_name_of_any_bytes_can_be_printed(tmp_path):
    words = command(tmp_path, "print(os.fsdecode(b'na\\xefve'), 'ï')")
    assert run(words, environ={"PYTHONUTF8": "1"}) == (0, b"na\xefve \xc3\xaf\n", b"")


# ---- Ctrl-C ---------------------------------------------------------------------


PRESS = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_ctrl_c_before_a_command_begins(tmp_path, path):
    """At its first import from this tree; one that is ignored stays ignored."""
    copy = tmp_path / path.relative_to(ROOT)
    (tmp_path / "lib").mkdir()
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
    if path.parent == BOOTSTRAP.parent:
        (copy.parent / BOOTSTRAP.name).write_bytes(BOOTSTRAP.read_bytes())
    (tmp_path / "lib/output.py").write_text(f"{PRESS}raise SystemExit(7)\n")
    words = [sys.executable, "-B", copy]
    assert run(words) == (-signal.SIGINT, b"", b"")
    ignored = run(["sh", "-c", 'trap "" INT; exec "$@"', "sh", *words])
    assert ignored == (7, b"", b"")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_ctrl_c_during_the_imports(tmp_path, path):
    """All import this module, if not themselves then through another."""
    (tmp_path / "typing.py").write_text(PRESS)
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = run([sys.executable, path, "--help"], environ=environ)
    assert ended == (-signal.SIGINT, b"", b"")


def test_ctrl_c_that_was_blocked_while_python_started(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PRESS)
    words = [sys.executable, ROOT / "scripts/kconfig.py", "--help"]
    ended = run(
        words,
        environ={"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]),
    )
    assert ended == (-signal.SIGINT, b"", b"")


def test_ctrl_c_that_a_command_does_not_handle(tmp_path):
    words = command(tmp_path, "raise KeyboardInterrupt")
    assert run(words) == (130, b"", b"tool: interrupted\n")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_begins_before_its_imports_and_minds_its_end(path):
    body = ast.parse(path.read_text()).body
    begins = ("begin()", "import _bootstrap")
    is_begun = [any(b in ast.unparse(part) for b in begins) for part in body]
    before = body[: is_begun.index(True)]
    if path.parent == BOOTSTRAP.parent:
        before += ast.parse(BOOTSTRAP.read_text()).body
    names = {
        part.module if isinstance(part, ast.ImportFrom) else part.names[0].name
        for part in before
        if isinstance(part, ast.Import | ast.ImportFrom)
    }
    assert names <= {"__future__", "_signal", "os", "sys", "lib.output"}
    last = ast.unparse(body[-1])
    assert "exit_code(main)" in last or "run_to_end(" in last


# ---- assertions -----------------------------------------------------------------


def test_assertions_cannot_be_switched_off(tmp_path):
    python, script = command(tmp_path, "print(__debug__, *sys.argv[1:])")
    ended = run([python, script, "a b"], environ={"PYTHONOPTIMIZE": "2"})
    assert ended[:2] == (0, b"True a b\n")
    assert b"tool: PYTHONOPTIMIZE is ignored" in ended[2]
    code, out, said = run([python, "-O", script])
    assert (code, out) == (2, b"") and b"leave out -O" in said
