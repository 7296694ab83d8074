"""Measures this machine and writes a hardware file for framework.plan: `python -m framework.calibrate NAME`.

Under torchrun or SLURM, with the processes of a training, it also measures the links between them.
"""

import argparse
import re
import sys
from pathlib import Path

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.option_command import OptionParser, option_command
from framework.errors import ConfigError

_NAME = re.compile(r"[\w-]+")


def _options() -> OptionParser:
    parser = OptionParser(
        "python -m framework.calibrate NAME [OPTION ...]",
        "measure this machine for framework.plan; under torchrun or SLURM too",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the file, for hardware=NAME")
    add("--output", type=Path, default=Path("my_conf"), metavar="FOLDER", help="folder for --config-dir (my_conf)")
    add("--price", type=float, metavar="X", help="price of an hour of one device, in your currency")
    return parser


@option_command(_options)
def calibrate(given: argparse.Namespace) -> Path:
    """Writes `FOLDER/hardware/NAME.yaml` on rank 0, and returns its path. Collective: all ranks must call."""
    if not _NAME.fullmatch(given.name):
        raise ConfigError(
            f"NAME is {given.name!r}. It names a file and a config: letters, digits, - and _ only. Give such a name."
        )
    file: Path = given.output / "hardware" / f"{given.name}.yaml"
    if file.exists():
        raise ConfigError(f"{file} exists. A calibration replaces no file. Give another name, or remove the file.")
    # Imported here because this imports torch, which takes seconds that `--help` and wrong options do not need.
    from framework.planning.calibration import measure

    text = measure(given.name, file.parent, given.price)
    if text is not None:
        file.write_text(text, encoding="utf-8")
        usage = f"python -m framework.plan --config-dir {given.output} hardware={given.name}"
        sys.stdout.write(f"{text}\n{file}: use it with `{usage}`\n")
    return file


run = calibrate.run


if __name__ == "__main__":
    calibrate()
