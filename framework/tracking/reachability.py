"""Asks the server of Weights & Biases for a sign of life: wandb itself retries for its whole time limit.

Nothing here imports `wandb`.
"""

import ssl
import threading
from collections.abc import Mapping
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener


class _KeepRedirects(HTTPRedirectHandler):
    """Counts a redirect as an answer."""

    def redirect_request(self, *_: Any) -> None:
        return None


def why_unreachable(server: str, proxies: Mapping[str, str], seconds: float) -> str | None:
    """Returns why a server cannot be reached; None if it answers anything, even an error.

    Args:
        server: URL of the server.
        proxies: Proxies by scheme. NO_PROXY and loopback addresses bypass them, as in wandb.
        seconds: Time limit, which includes the resolution of the name.
    """
    answers: list[str | None] = []
    # The resolver has no time limit of its own, so it runs in a thread that may be left behind.
    thread = threading.Thread(target=lambda: answers.append(_ask(server, proxies, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"{_address(server)} does not answer within {seconds:g} s"


def _ask(server: str, proxies: Mapping[str, str], seconds: float) -> str | None:
    opener = build_opener(ProxyHandler({} if _is_loopback(server) else dict(proxies)), _KeepRedirects)
    try:
        url = (
            urlsplit(server)._replace(netloc=_address(server)).geturl()
        )  # urllib takes credentials for a part of the host
        opener.open(Request(url, method="HEAD"), timeout=seconds).close()
    except HTTPError as answer:
        answer.close()
    except (HTTPException, ValueError):
        return None  # no URL or no HTTP: wandb decides
    except OSError as error:
        reason = getattr(error, "reason", error)
        # wandb may trust other certificates than Python.
        return None if isinstance(reason, ssl.SSLError) else f"{_address(server)}: {reason}"
    return None


def _address(server: str) -> str:
    """Returns host and port without credentials."""
    return urlsplit(server).netloc.rpartition("@")[2]


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
