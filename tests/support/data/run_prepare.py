"""Starts a process that prepares a store and may be killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile


def run_process(**options: object) -> str:
    """Runs `tests.support.data.prepare_process` with options and returns its output; it may be killed."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [
        sys.executable,
        "-c",
        "from tests.support.data.prepare_process import main; main()",
        json.dumps(options),
    ]
    # To files: a pipe would stay open until the last worker has ended.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = subprocess.run(command, env=environment, stdout=out, stderr=err, check=False)
        out.seek(0)
        err.seek(0)
        assert done.returncode in (0, -signal.SIGKILL), err.read().decode()
        return out.read().decode()
