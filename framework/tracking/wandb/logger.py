"""Logs a run to Weights & Biases through Lightning's WandbLogger, on rank 0 only.

The run is logged online if credentials are configured, else offline. `wandb` is imported only when a logger is built,
and the search for credentials uses no network.
"""

import hashlib
import logging
import netrc
import os
import re
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from framework.data.reading.credentials import safe_argument
from framework.errors import check_choice
from framework.tracking.console import print_line
from framework.tracking.logger_config import LoggerConfig
from framework.tracking.rank_log import RUN_LOGGER
from framework.tracking.reachability import why_unreachable
from framework.tracking.wandb.content import log_content

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

_DEFAULT_SERVER = "https://api.wandb.ai"

_PROBE_SECONDS = 5.0
"""Time for the server to answer. After it, the run is logged offline. WANDB_INIT_TIMEOUT overrides it."""

_INIT_SECONDS = 20.0
"""Time for a server that answers to accept the run. WANDB_INIT_TIMEOUT overrides it."""

_FINISH_SECONDS = 120.0
"""Time for the final upload of a run, below the limit for hangs. `wandb sync` uploads the rest."""

_MAX_REASON_CHARACTERS = 200
_MAX_ID_LENGTH = 64


def build_wandb_logger(
    run_folder: Path, run_id: str, config: Mapping[str, Any], settings: LoggerConfig
) -> "WandbLogger":
    """Builds the logger of one run. Starting the same run id again continues the same W&B run. Call on rank 0 only.

    If the server cannot be reached or rejects the key, the run is logged offline with a message. Unset groups and job
    types are taken from WANDB_RUN_GROUP and WANDB_JOB_TYPE, which the jobs of a sweep have.

    Args:
        run_folder: Run folder; the folder `wandb/` is written into it.
        run_id: `run.id` of the config; see `wandb_run_id`.
        config: Resolved config without secrets, shown with the run.
        settings: Project, group, job type, tags and mode.

    Raises:
        ConfigError: The mode is none of the three.
    """
    offline = _is_offline(settings.mode)
    problem = None if offline else _why_unreachable()
    if offline or problem is not None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # crash reports would use the network
    os.environ.setdefault("WANDB_SILENT", "true")  # the banner would break the progress bar
    import wandb

    wandb.setup()  # reads WANDB_SILENT now; Lightning 2.6 passes an argument to init that makes wandb 0.31 warn
    open_run = partial(_open_run, run_folder, run_id, config, settings)
    if not offline and problem is None:
        try:
            return open_run(None)
        except (wandb.Error, OSError, ValueError) as error:
            problem = str(error)
            os.environ["WANDB_ERROR_REPORTING"] = "false"
            wandb.teardown(exit_code=1)  # W&B's service process still holds the run id
            wandb.setup()
    if problem is not None:
        _report_offline(run_folder, problem)
    return open_run("offline")


def _open_run(
    run_folder: Path, run_id: str, config: Mapping[str, Any], settings: LoggerConfig, mode: str | None
) -> "WandbLogger":
    """Builds the logger and opens its W&B run; the mode None means online."""
    logger = _logger_class(run_folder)(
        name=run_id,
        save_dir=str(run_folder),
        id=wandb_run_id(run_id),
        project=settings.project,
        group=settings.group,
        job_type=settings.job_type or os.environ.get("WANDB_JOB_TYPE") or "train",
        tags=list(settings.tags),
        mode=mode,  # Lightning's own `offline` would write into the environment
        settings=_settings(),
    )
    with _masked_command_line():
        logger.log_hyperparams(dict(config))  # opens the W&B run
    return logger


@contextmanager
def _masked_command_line() -> Iterator[None]:
    """Masks secrets in `sys.argv`, which W&B reads and sends when a run opens."""
    before = list(sys.argv)
    sys.argv[1:] = map(safe_argument, before[1:])
    try:
        yield
    finally:
        sys.argv[:] = before


def _is_offline(mode: str) -> bool:
    check_choice("logger.mode", mode, ("auto", "online", "offline"))
    return mode == "offline" or (mode == "auto" and not has_credentials())


def _why_unreachable() -> str | None:
    settings = _settings_files()
    of_wandb = {scheme: _setting(f"{scheme}_proxy", settings) for scheme in ("http", "https")}
    proxies = getproxies() | {scheme: proxy for scheme, proxy in of_wandb.items() if proxy}
    try:
        seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", _PROBE_SECONDS))
    except ValueError:
        return None  # wandb itself reports the invalid value
    return why_unreachable(_setting("base_url", settings) or _DEFAULT_SERVER, proxies, seconds)


def _setting(name: str, files: Mapping[str, str]) -> str | None:
    return os.environ.get(f"WANDB_{name.upper()}") or files.get(name)


def _settings() -> Any:
    """Returns W&B's settings with our time limits, unless the environment sets them or the version lacks them."""
    from wandb import Settings

    limits = {"init_timeout": _INIT_SECONDS, "finish_timeout": _FINISH_SECONDS}
    ours: dict[str, Any] = {
        name: seconds
        for name, seconds in limits.items()
        if name in Settings.model_fields and f"WANDB_{name.upper()}" not in os.environ
    }
    return Settings(**ours)


def _report_offline(run_folder: Path, problem: str) -> None:
    reason = " ".join(problem.split())[:_MAX_REASON_CHARACTERS]
    text = (
        f"W&B cannot be used ({reason}). The run is logged offline. Upload it later with "
        f"`wandb sync {run_folder / 'wandb'}/offline-run-*`."
    )
    logging.getLogger(RUN_LOGGER).warning(text)
    print_line(text)


def _logger_class(run_folder: Path) -> "type[WandbLogger]":
    """Returns the logger class. It is defined in a function because Lightning's module imports wandb."""
    from lightning.pytorch.loggers import WandbLogger

    class RunLogger(WandbLogger):
        """Logs each row with its step, and finishes the W&B run when our run ends.

        Lightning lets W&B count rows instead, so a resumed run would start again at 0. It also keeps the W&B run open,
        and the next run of this process would continue it.
        """

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

        def finalize(self, status: str) -> None:
            super().finalize(status)
            if status == "success":
                log_content(self.experiment, run_folder)
            self.experiment.finish(exit_code=0 if status == "success" else 1)

    return RunLogger


def wandb_run_id(run_id: str) -> str:
    """Returns the W&B id of a run: letters, digits, dash and underscore, at most 64 characters.

    If characters are replaced or removed, a hash of the run id is appended, so that ids stay distinct.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", run_id)
    if safe == run_id and len(safe) <= _MAX_ID_LENGTH:
        return safe
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{safe[: _MAX_ID_LENGTH - len(digest) - 1]}-{digest}"


def has_credentials() -> bool:
    """Returns True if wandb has a key: in WANDB_API_KEY, in a netrc entry for its server, or in its settings files.

    WANDB_MODE=offline, dryrun or disabled counts as no key, because wandb itself would not connect.
    """
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = _settings_files()
    server = _setting("base_url", settings) or _DEFAULT_SERVER
    return bool(settings.get("api_key")) or _netrc_has(urlsplit(server).netloc)


def _settings_files() -> dict[str, str]:
    config_folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    parser = ConfigParser(interpolation=None)
    try:
        parser.read([config_folder / "settings", Path("wandb") / "settings"])
    except (ConfigParserError, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if "default" in parser else {}


def _netrc_has(host: str) -> bool:
    paths = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            entry = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False
