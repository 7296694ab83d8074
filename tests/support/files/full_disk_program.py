"""Program that a test runs as `python -m ... FOLDER BYTES`. It saves twice, the second time with a file size limit."""

import resource
import signal
import sys
from pathlib import Path

import torch

from framework.checkpoint.save import SaveError
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import build

if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoints, limit_bytes = Path(sys.argv[1]), int(sys.argv[2])
    tiny = build("single")
    save_checkpoint(checkpoints, 1, tiny.model, tiny.optimizer, {})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        save_checkpoint(checkpoints, 2, tiny.model, tiny.optimizer, {})
    except SaveError as error:
        sys.exit(f"SaveError: {error}")
