"""Any terminal, any limit of the operating system: work goes on, or one sentence and exit code 2."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings

import pytest

from cmrcnet.cli import app
from cmrcnet.progress import metered, printable

HOSTILE = "P1\x1b[2J\x1b]0;title\x07\x9b31m\u202eS1\r"


def run(*words: str, env: dict[str, str] | None = None, **how) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cmrcnet", *words]
    return subprocess.run(command, check=False, env=os.environ | (env or {}), **how)


@pytest.fixture(autouse=True)
def our_messages_only():
    before = warnings.filters[:], warnings.showwarning
    yield
    warnings.filters[:], warnings.showwarning = before


def test_control_characters_do_not_pass():
    assert printable(HOSTILE) == "P131mS1"
    assert printable("Müller, A\tβ\n") == "Müller, A\tβ\n"


def test_names_reach_the_terminal_without_their_escape_codes(capfd):
    import logging

    def verb():
        print(f"section {HOSTILE}")
        logging.getLogger("cmrcnet").warning("section %s", HOSTILE)
        warnings.warn(f"section {HOSTILE}", app.CmrcnetWarning, stacklevel=1)
        with metered(HOSTILE, 3) as meter:
            logging.getLogger("cmrcnet").info(meter.line(0.0))
        raise app.CmrcnetError(f"section {HOSTILE}")

    assert app.main(["show"], verbs={"show": verb}) == app.USER_ERROR
    shown = "".join(capfd.readouterr())
    assert shown.count("P131mS1") == 5
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_letters_shows_something_else(encoding):
    code = "from cmrcnet.cli import app; app.main(['show'], verbs={'show': lambda: print('M\\u00fcller \\u03b2')})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding) in ("M?ller ?\n", "Müller ?\n")


@pytest.mark.parametrize("stream", ["stderr", "stdout", "both"])
def test_closed_streams_do_not_end_the_work(tmp_path, stream):
    closed = {"stderr": "2>&-", "stdout": ">&-", "both": ">&- 2>&-"}[stream]
    out = tmp_path / "out"
    code = (
        "import sys; from cmrcnet.cli import app\n"
        "def verb():\n"
        f"    out = open({str(out)!r}, 'w')\n"
        "    assert out.fileno() > 2\n"
        "    print('to stdout'); print('to stderr', file=sys.stderr, flush=True)\n"
        "    out.write('whole')\n"
        "sys.exit(app.main(['work'], verbs={'work': verb}))\n"
    )
    done = subprocess.run(["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], check=False)
    assert done.returncode == 0
    assert out.read_text() == "whole"


def test_a_reader_of_messages_that_has_gone_does_not_end_the_work(tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time; from cmrcnet.cli import app\n"
        "def verb():\n"
        "    time.sleep(0.5)\n"
        "    for _ in range(3): print('x' * 70000, file=sys.stderr, flush=True)\n"
        f"    open({str(out)!r}, 'w').write('whole')\n"
        "sys.exit(app.main(['work'], verbs={'work': verb}))\n"
    )
    script = '"$0" -c "$1" 2> >(exit 0)'
    assert subprocess.run(["bash", "-c", script, sys.executable, code], check=False).returncode == 0
    assert out.read_text() == "whole"


def test_python_without_docstrings_is_refused_in_a_sentence():
    done = run("inspect", "--help", env={"PYTHONOPTIMIZE": "2"}, capture_output=True, text=True)
    assert done.returncode == app.USER_ERROR
    assert "PYTHONOPTIMIZE=2" in done.stderr and "unset it" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "x", "m/model.json"), "refused m/model.json: permission denied; ask for perm"),
        (OSError(errno.EMFILE, "x", "b/vectors.npy"), "refused b/vectors.npy: too many open files; raise the number"),
        (OSError(errno.EFBIG, "x"), "refused: file too large; raise the limit of file sizes"),
        (RuntimeError("Can't decrement (errno = 27, error message = 'File too large')"), "refused: file too large"),
        (OSError(errno.ENOSPC, "x", "t.h5ad"), "The disk is full: t.h5ad"),
        (OSError(errno.ENAMETOOLONG, "x", "n" * 9), "refused nnnnnnnnn: file name too long; choose a shorter name"),
        (MemoryError(), "There is not enough memory for this"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "There is not enough memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "There is not enough memory for this"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
def test_what_the_system_refuses_is_one_sentence(capsys, error, sentence):
    def verb():
        raise error

    assert app.main(["work"], verbs={"work": verb}) == app.USER_ERROR
    shown = capsys.readouterr().err
    assert sentence in shown and len(shown.strip().splitlines()) == 1


def test_other_faults_keep_their_traceback():
    def verb():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        app.main(["work"], verbs={"work": verb})
