"""Opens the outputs of commands before the work starts: files, FIFOs, devices and standard output.

Handles write errors, closed pipes, and encodings that lack characters of the output.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from framework.errors import ConfigError, DataError
from framework.files import check_room, temporary_path

_STREAM_FOLDERS = ("/dev/fd/", "/dev/std", "/proc/")
_EXIT_CODE_OF_SIGPIPE = 141

WriteText = Callable[[Iterable[str]], None]
"""Writes text to an opened output."""


def check_output_differs(output: str | None, inputs: Iterable[str | None]) -> None:
    """Checks that an output is not one of the input files.

    Raises:
        ConfigError: The output is an input file, possibly under another name.
    """
    for given in inputs:
        if output is None or given is None:
            continue
        with suppress(OSError, ValueError):
            mode = os.stat(output).st_mode
            if stat.S_ISREG(mode) and os.path.samefile(output, given):
                raise ConfigError(
                    f"output={output} is the input file {given}, which would be overwritten. An output must be another "
                    "file. Choose another name."
                )


@contextmanager
def open_output(output: str | None) -> Iterator[WriteText]:
    """Opens an output and yields a function that writes text to it.

    A regular file is written under a temporary name in the same folder and renamed when the block ends without an
    error and something was written. A symlink is kept, and its target is replaced. FIFOs and character devices are
    written directly.

    Args:
        output: Path; None: standard output.

    Raises:
        ConfigError: The file cannot be created: its folder is missing, permission is denied, the disk is full, or the
            path is a folder, a socket or a block device.
        DataError: Writing fails.
    """
    if output is None:
        yield write_to_stdout
        return
    mode = _mode_of(output)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or output.startswith(_STREAM_FOLDERS):
        with _stream(output) as write:
            yield write
        return
    if mode and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ConfigError(f"output={output} is {kind}. It must be a file, a FIFO or a stream. Choose another path.")
    with _open_temporary(output) as write:
        yield write


def _mode_of(output: str) -> int:
    """Returns the mode of the file at a path; 0 if the file does not exist."""
    try:
        return os.stat(output).st_mode
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise _cannot_open(output, error) from error


@contextmanager
def _stream(output: str) -> Iterator[WriteText]:
    try:
        # Append, because /dev/stdout may be a file with content.
        file = Path(output).open("a", encoding="utf-8")  # noqa: SIM115  closed below
    except OSError as error:
        raise _cannot_open(output, error) from error
    try:
        yield lambda pieces: _write(output, file, pieces)
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def _open_temporary(output: str) -> Iterator[WriteText]:
    target = Path(os.path.realpath(output))
    temporary = temporary_path(target)
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(None, "Permission denied")
        file = _probed(temporary)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
        raise _cannot_open(output, error) from error
    is_written = False

    def write(pieces: Iterable[str]) -> None:
        nonlocal is_written
        is_written = True
        _write(output, file, pieces)

    try:
        yield write
        if is_written:
            _replace_target(output, file, temporary, target)
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace_target(output: str, file: IO[str], temporary: Path, target: Path) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(output, error) from error


def _probed(path: Path) -> IO[str]:
    """Opens a new file and checks that the disk is not full."""
    file = path.open("w", encoding="utf-8")
    try:
        check_room(file)
    except OSError:
        with suppress(OSError):
            file.close()
        raise
    return file


def _write(output: str, file: IO[str], pieces: Iterable[str]) -> None:
    try:
        file.writelines(pieces)
        file.flush()
    except OSError as error:
        raise _cannot_write(output, error) from error


def write_to_stdout(pieces: Iterable[str]) -> None:
    """Writes text to standard output. Characters that its encoding lacks are escaped.

    If the reader of a pipe closes it, the process ends silently with the exit code of SIGPIPE.

    Raises:
        DataError: Standard output is closed, or its disk is full.
    """
    stream = sys.stdout
    if stream is None:
        raise DataError(
            "standard output is closed. The result is written there if `output` is null. Set `output`, or keep "
            "standard output open."
        )
    encoding = stream.encoding or "utf-8"
    try:
        for piece in pieces:
            stream.write(piece.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        _silence(stream)
        if isinstance(error, BrokenPipeError):
            sys.exit(_EXIT_CODE_OF_SIGPIPE)
        raise _cannot_write("standard output", error) from error


def _silence(stream: IO[str]) -> None:
    """Redirects a broken stream to the null device, because Python flushes it again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(null, stream.fileno())
    os.close(null)


def _cannot_open(output: str, error: OSError | ValueError) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError(
        f"output={output} cannot be written ({reason}). Its folder must exist, be writable and have free space. "
        "Correct this, or choose another path."
    )


def _cannot_write(output: str, error: OSError) -> DataError:
    return DataError(
        f"{output} cannot be written ({error.strerror}). The result was not saved. Free disk space, or choose another "
        "output."
    )
