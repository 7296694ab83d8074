"""Starts a command by its name: `cloze train experiment=NAME`, the same as `python -m framework.train experiment=NAME`.

Only the chosen command is imported.
"""

import difflib
import runpy
import sys

COMMANDS = {
    "prepare": "turn text into a vocabulary and a token store",
    "plan": "compute memory, traffic, time and cost of a run on any number of GPUs",
    "train": "pre-train or fine-tune an encoder, or resume a run",
    "evaluate": "measure a run, a checkpoint or an export on a split",
    "predict": "predict each row of a file, in order",
    "explain": "show which words made each prediction",
    "audit": "test a model beyond its accuracy: edited texts, behaviour, groups",
    "mine": "find hard negatives for pairs of texts",
    "export": "write a folder that transformers loads",
    "report": "redraw the plots and report.html of a run",
    "status": "show the progress of runs",
    "calibrate": "measure this machine for plans",
    "preflight": "check all nodes and their links before training",
    "launch": "run a launch script of this installation",
    "machine": "count the GPUs and cores that this process may use",
}
"""One line for each command."""

_USAGE_ERROR = 2


def main() -> None:
    """Runs the command that the command line names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return
    if name not in COMMANDS:
        sys.stderr.write(f"ConfigError: {_unknown(name)}\n")
        sys.exit(_USAGE_ERROR)
    sys.argv[1:] = rest
    # As under `python -m`: loader processes find the main module by its name.
    runpy.run_module(f"framework.{name}", run_name="__main__", alter_sys=True)


def help_text() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}\n" for name, text in COMMANDS.items()]
    return (
        "cloze COMMAND [key=value ...]: the same as python -m framework.COMMAND\n\n"
        f"== Commands ==\n\n{''.join(lines)}\n"
        "`cloze COMMAND --help` shows the settings of a command.\n"
    )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    remedy = f"Did you mean `{close[0]}`?" if close else "`cloze --help` describes them."
    return f"there is no command `{name}`. Commands are {', '.join(COMMANDS)}. {remedy}"


if __name__ == "__main__":
    main()
