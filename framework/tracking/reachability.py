"""Checks whether the server of Weights & Biases answers, because wandb itself retries for its whole time limit.

This module does not import `wandb`.
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
    """Does not follow redirects: a redirect counts as an answer."""

    def redirect_request(self, *_: Any) -> None:
        return None


def why_unreachable(server: str, proxies: Mapping[str, str], seconds: float) -> str | None:
    """Returns why a server cannot be reached; None if it gives any answer, even an error.

    Args:
        server: URL of the server.
        proxies: Proxies by scheme. NO_PROXY and loopback addresses bypass them, as in wandb.
        seconds: Time limit, including name resolution.
    """
    answers: list[str | None] = []
    # The resolver has no time limit, so it runs in a daemon thread that may outlive this call.
    thread = threading.Thread(target=lambda: answers.append(_request(server, proxies, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"{_address(server)} does not answer within {seconds:g} s"


def _request(server: str, proxies: Mapping[str, str], seconds: float) -> str | None:
    opener = build_opener(ProxyHandler({} if _is_loopback(server) else dict(proxies)), _KeepRedirects)
    try:
        url = (
            urlsplit(server)._replace(netloc=_address(server)).geturl()
        )  # urllib treats credentials as a part of the host
        opener.open(Request(url, method="HEAD"), timeout=seconds).close()
    except HTTPError as answer:
        answer.close()
    except (HTTPException, ValueError):
        return None  # no valid URL, or no HTTP: wandb handles it
    except OSError as error:
        reason = getattr(error, "reason", error)
        # wandb may trust certificates that Python does not.
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
