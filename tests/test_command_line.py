"""The console command: its list of commands, and commands that behave as under `python -m`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework.__main__ import COMMANDS, main

PACKAGE = Path(__file__).resolve().parents[1] / "framework"


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cloze", *arguments])
    # runpy warns of a module that was imported before, which does not happen on a command line.
    monkeypatch.delitem(sys.modules, f"framework.{arguments[0]}" if arguments else "", raising=False)
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_every_module_that_is_a_command_is_listed(monkeypatch, capsys):
    modules = {file.stem for file in PACKAGE.glob("*.py") if "\nif __name__ ==" in file.read_text(encoding="utf-8")}
    assert set(COMMANDS) == modules - {"__main__"}
    for arguments in ((), ("--help",), ("-h",)):
        assert call(monkeypatch, *arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out and text in out for name, text in COMMANDS.items())


@pytest.mark.parametrize(
    ("name", "remedy"), [("trian", "Did you mean `train`?"), ("xyz", "`cloze --help` describes them.")]
)
def test_an_unknown_command_is_rejected(name, remedy, monkeypatch, capsys):
    assert call(monkeypatch, name) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(
        f"ConfigError: there is no command `{name}`. Commands are prepare, "
    )
    assert output.err.endswith(f"{remedy}\n")


@pytest.mark.parametrize("name", ["status", "launch", "machine", "report"])
def test_all_helps_begin_with_the_command_line_and_its_purpose(name, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(rf"(usage: )?python -m framework\.{name}\b[^:]*: [a-z].*", first), first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "--evry", "3"), "unrecognized arguments: --evry"),
        (("status", "nix", "--runs", "nowhere"), "there is no run nix"),
        (("launch", "trochrun"), "trochrun is not a launch script"),
        (("launch",), "the following arguments are required: SCRIPT"),
    ],
)
def test_commands_with_options_exit_like_the_others(arguments, words, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert (
        output.out == ""
        and output.err.startswith("ConfigError: ")
        and words in output.err
        and output.err.count("\n") == 1
    )


def test_the_list_imports_none_of_the_commands():
    program = (
        "import sys; from framework.__main__ import main; sys.argv[1:] = []; main(); "
        "sys.exit(bool({'torch', 'hydra', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120, stdout=-3).returncode == 0


def test_help_of_every_command_imports_no_torch():
    program = (
        "import sys; from framework.__main__ import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    sys.argv[1:] = [name, '--help']\n"
        "    try:\n        main()\n"
        "    except SystemExit as leaving:\n        assert not leaving.code, name\n"
        "    assert not {'torch', 'lightning', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("python -m framework.") >= len(COMMANDS)


def test_commands_that_need_no_model_import_no_torch():
    program = "import sys, framework.prepare, framework.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
