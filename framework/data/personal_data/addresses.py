"""Finds addresses on the internet: email addresses, handles, URLs of a user, IP addresses.

An email address follows RFC 5321 without quoted local parts. A URL is personal if it names a user: before the host, in
its path, or in its query.
"""

import ipaddress
import re
from collections.abc import Iterator

from framework.data.personal_data.kinds import Find

WRITTEN_AT = ("(at)", "[at]", "(AT)", "[AT]")
"""At signs in words."""
SITES = (".com/", "t.me/")
"""Parts of URLs of users without a scheme."""
_MAX_LOCAL, _MAX_DOMAIN = 64, 255
_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+'-")
_OPENING = "'.-%+"
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9_-])")
_WRITTEN_AT = re.compile(
    r"(?<![A-Za-z0-9])([A-Za-z0-9][A-Za-z0-9._%+-]{0,63}) ?[(\[](?:at|AT)[)\]] ?"
    r"((?:[A-Za-z0-9-]+(?: ?[(\[](?:dot|DOT)[)\]] ?|\.))+[A-Za-z]{2,24})(?![A-Za-z0-9_-])"
)
_LATIN = "A-Za-z_\u00c0-\u024f"
# A Latin handle ends where Chinese text goes on.
_AT_RULES = (
    r"(?i:import|imported|media|charset|font-face|keyframes|namespace|param|returns?|throws|override|deprecated|property|"
    r"staticmethod|classmethod|dataclass|null)(?!\w|[.-]\w)"
)
"""Words after an at sign in style sheets and source code, and of missing values."""
_HANDLE = re.compile(
    rf"(?!{_AT_RULES})(?:[{_LATIN}](?:[{_LATIN}0-9]|[.-](?=[A-Za-z0-9])){{1,29}}|[^\W\d](?:[\w·]){{1,29}})"
)
_NO_HANDLE_AFTER = re.compile(r"[A-Za-z0-9_.@/&=+#$%^*!\-]")
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_SCHEME = re.compile(r"(?:https?|ftp|sftp|ssh|git|wss?|rtsp|ldaps?|mongodb|postgres(?:ql)?|mysql|redis|amqp)$", re.I)
_SITES = (
    r"(?:(?:www|m|mobile|web|touch|gist|[a-z]{2}-[a-z]{2}|[a-z]{2})\.)?"
    r"(?:twitter|x|instagram|facebook|github|gitlab|twitch|pinterest|soundcloud|vk|weibo|threads|tiktok|flickr)\.com"
    r"|t\.me|space\.bilibili\.com"
)
_PAGES = (
    r"(?:about|account|blog|contact|events?|explore|features|groups?|hashtag|help|home|i|intent|jobs|join|legal|login|"
    r"marketplace|media|news|notifications|pages?|photos?|pricing|privacy|search|settings|share|sharer|signup|site|"
    r"status|support|terms|topics?|trending|tv|watch)(?![\w-])"
)
_PROFILE = re.compile(rf"(?<![\w.-])(?:{_SITES})/(?!{_PAGES}|[\w.-]+\.(?:php|html?|aspx?))@?[\w.-]{{2,}}", re.I)
_BARE_PROFILE = re.compile(rf"(?<![\w./@-])(?:{_SITES}|(?:www\.)?linkedin\.com/in)/", re.I | re.A)
_USER_PART = re.compile(
    r"^[a-z]+://[^/?#\s@]+@"
    r"|/[~@][\w.-]{2,}"
    r"|/(?:u|users?|profiles?|people|members?|authors?|accounts?)/(?!login|new|search)[\w.%@-]{2,}"
    r"|linkedin\.com/in/[\w%-]{2,}"
    r"|[?&;](?:user|username|user_?id|uid|e-?mail|mail|login|account|author|phone|mobile)=[^&\s]+",
    re.I,
)
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.])(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_]|\.\d)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.ASCII
)
# Literal first characters make these fast.
_IPV4_DOTS, _IPV6_COLONS = re.compile(r"\.\d{1,3}\.\d", re.ASCII), re.compile(r":[0-9A-Fa-f]{0,4}:")
_VERSION_BEFORE = re.compile(r"(?:\bv|version|ver\.?|release|firmware|build|rev\.?|section|§)\s*$", re.IGNORECASE)


def find_emails(text: str) -> Iterator[Find]:
    """Yields email addresses, also with "(at)" and "(dot)" in words."""
    at = text.find("@")
    while at >= 0:
        start = at
        while start > 0 and at - start <= _MAX_LOCAL and text[start - 1] in _LOCAL:
            start -= 1
        while start < at and text[start] in _OPENING:
            start += 1
        domain = _DOMAIN.match(text, at + 1)
        if domain is not None and _is_local(text[start:at]) and domain.end() - domain.start() <= _MAX_DOMAIN:
            yield Find(start, domain.end(), "email")
        at = text.find("@", at + 1)
    if any(map(text.__contains__, WRITTEN_AT)):
        for match in _WRITTEN_AT.finditer(text):
            yield Find(match.start(), match.end(), "email")


def _is_local(local: str) -> bool:
    return 0 < len(local) <= _MAX_LOCAL and not local.endswith(".") and ".." not in local


def find_handles(text: str) -> Iterator[Find]:
    """Yields handles such as "@jane_doe"."""
    at = text.find("@")
    while at >= 0:
        if at == 0 or not (_NO_HANDLE_AFTER.match(text, at - 1) or _is_misread_space(text, at)):
            handle = _HANDLE.match(text, at + 1)
            if handle is not None:
                yield Find(at, handle.end(), "handle")
        at = text.find("@", at + 1)


def _is_misread_space(text: str, at: int) -> bool:
    """Returns whether an at sign is half of a Big5 space that was read as Latin-1; a Spanish exclamation has an end."""
    if text[at - 1] != "¡":
        return False
    line_end = text.find("\n", at)
    return text.find("!", at, len(text) if line_end < 0 else line_end) < 0


def find_user_urls(text: str) -> Iterator[Find]:
    """Yields URLs that name a user, whole."""
    mark = text.find("://")
    while mark >= 0:
        scheme = _SCHEME.search(text, max(0, mark - 12), mark)
        end = mark + 3
        if scheme is not None:
            find, end = _user_url(text, scheme.start(), end)
            if find is not None:
                yield find
        mark = text.find("://", end)
    for site in SITES:
        mark = text.find(site)
        while mark >= 0:
            end = mark + len(site)
            bare = _BARE_PROFILE.search(text, max(0, mark - 40), end + 3)
            if bare is not None:
                find, end = _user_url(text, bare.start(), end)
                if find is not None:
                    yield find
            mark = text.find(site, end)


def _user_url(text: str, start: int, least_end: int) -> tuple[Find | None, int]:
    """Returns the URL that begins at an offset if it names a user, and the offset at which the search goes on."""
    rest = _URL_CHARACTERS.match(text, start)
    end = least_end if rest is None else max(least_end, rest.end())
    url = text[start:end].rstrip(".,;:!?'*_~")
    while url.endswith((")", "]")) and url.count(url[-1]) > url.count("(" if url[-1] == ")" else "["):
        url = url[:-1].rstrip(".,;:!?'")
    is_personal = _USER_PART.search(url) or _PROFILE.search(url)
    return (Find(start, start + len(url), "url_user") if is_personal else None), end


def find_ips(text: str) -> Iterator[Find]:
    """Yields IPv4 and IPv6 addresses, except unspecified, loopback, multicast and broadcast ones."""
    for anchor, pattern in ((_IPV4_DOTS, _IPV4), (_IPV6_COLONS, _IPV6)):
        done = 0
        for mark in anchor.finditer(text):
            # An address begins at most four characters before its first dot or colon.
            starts = range(max(done, mark.start() - 4), mark.start() + 1)
            match = next((found for start in starts if (found := pattern.match(text, start))), None)
            if match is None:
                continue
            done = match.end()
            before = max(0, match.start() - 12)
            if _is_address(match.group()) and not _VERSION_BEFORE.search(text, before, match.start()):
                yield Find(match.start(), match.end(), "ip")


def _is_address(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    is_special = address.is_unspecified or address.is_loopback or address.is_multicast
    return not is_special and not written.startswith("0.") and written != "255.255.255.255"
