"""Reader and check of the rendezvous address of a run, before torch waits for this address."""

import os
import re
import socket
import time
from collections.abc import Mapping

from framework.errors import DistributedError

_RESOLVE_SECONDS = 20.0
"""Time for host names to appear in DNS when hosts start simultaneously, such as pods of Kubernetes."""

_RETRY_SECONDS = 1.0


def meeting_point(
    environ: Mapping[str, str] = os.environ, resolve_seconds: float = _RESOLVE_SECONDS
) -> tuple[str, int]:
    """Returns the host and port of the store that all processes use.

    Args:
        environ: Environment variables.
        resolve_seconds: Time in which the host name must resolve. The lookup is retried once per second.

    Raises:
        DistributedError: MASTER_ADDR is not set or does not resolve, or MASTER_PORT is not a port.
    """
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT") or ""
    if not address:
        raise DistributedError(
            "MASTER_ADDR is not set. Several processes meet at this address. Start through torchrun or a script of "
            "launch/, which set it."
        )
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise DistributedError(
            f"MASTER_PORT is {port!r}. It must be a port, a whole number from 1 to 65535. Start through torchrun or a "
            "script of launch/, which set it."
        )
    _resolve(address, resolve_seconds)
    return address, int(port)


def _resolve(address: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() + _RETRY_SECONDS > end:
                raise DistributedError(
                    f"MASTER_ADDR is {address!r}, which does not resolve to an address here ({error}). All processes "
                    "meet at this host. Give its IP address, or enter the name in DNS or /etc/hosts."
                ) from error
        time.sleep(_RETRY_SECONDS)
