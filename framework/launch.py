"""Runs a launch script of this installation: `python -m framework.launch torchrun [OPTION ...] experiment=NAME`.

A wheel contains the bash scripts of launch/ and slurm/ inside the package. `--path` prints the path of a script:
`sbatch "$(python -m framework.launch --path train.sbatch)" experiment=NAME`.
"""

import argparse
import os
import sys
from pathlib import Path

import framework
from framework.config.option_command import OptionParser, option_command
from framework.errors import ConfigError

_FOLDERS = ("launch", "slurm")


def scripts() -> dict[str, Path]:
    """Returns the launch scripts by file name. They are inside an installed package, or next to it in a checkout."""
    package = Path(framework.__file__).resolve().parent
    root = package / "scripts" if (package / "scripts").is_dir() else package.parent
    files = [file for folder in _FOLDERS for file in sorted((root / folder).iterdir())]
    # Files to be sourced do not begin with "#!".
    return {file.name: file for file in files if file.suffix in (".sh", ".sbatch") and _is_program(file)}


def _is_program(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"#!"


def _options() -> OptionParser:
    usage = "python -m framework.launch [--path] SCRIPT [ARGUMENT ...]"
    parser = OptionParser(usage, "run a launch script of this installation")
    parser.add_argument("--path", action="store_true", help="print the path of the script and run nothing")
    parser.add_argument("script", metavar="SCRIPT", help=", ".join(scripts()))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="argument of the script")
    return parser


@option_command(_options)
def launch(given: argparse.Namespace) -> None:
    """Replaces this process by a script, or prints the path of the script."""
    available = scripts()
    script = available.get(given.script) or available.get(f"{given.script}.sh")
    if script is None:
        raise ConfigError(
            f"{given.script} is not a launch script. Scripts are {', '.join(available)}. Choose one of these."
        )
    if not given.path:
        os.environ.setdefault("PYTHON", sys.executable)
        os.execvp("bash", ["bash", str(script), *given.arguments])
    sys.stdout.write(f"{script}\n")


run = launch.run


if __name__ == "__main__":
    launch()
