"""Rules of robots.txt (RFC 9309). They are parsed in a process of their own, because they are untrusted."""

from __future__ import annotations

from typing import Any, Final

from streamloader.errors import MissingDependency
from streamloader.streams.articles.feeds import collect_addresses

__all__ = ["MAX_ROBOTS_BYTES", "REFUSING_TAGS", "check_robots"]

MAX_ROBOTS_BYTES: Final = 500 << 10  # RFC 9309, section 2.5: what crawlers must parse at least
REFUSING_TAGS: Final = ("noindex", "none", "noai")  # of X-Robots-Tag
_MAX_SITEMAPS: Final = 1000


def check_robots(rules: str, agent: str, url: str) -> dict[str, Any]:
    """Return what rules say about an address, as ``{"allowed": bool, "delay": seconds, "sitemaps": [...]}``.

    Args:
        rules: Text of a robots.txt.
        agent: Product token of the crawler, such as ``"streamloader"``.
        url: Address of the page.

    Raises:
        MissingDependency: If the extra ``articles`` is not installed.
    """
    try:
        from protego import Protego
    except ImportError as error:
        raise MissingDependency("articles need protego: pip install streamloader[articles]") from error
    parsed = Protego.parse(rules)
    delay = parsed.crawl_delay(agent) or 0.0
    rate = parsed.request_rate(agent)
    if rate is not None and rate.requests:
        delay = max(delay, rate.seconds / rate.requests)
    listed = collect_addresses(((str(sitemap), "") for sitemap in parsed.sitemaps), url)
    return {"allowed": bool(parsed.can_fetch(url, agent)), "delay": float(delay), "sitemaps": listed[:_MAX_SITEMAPS]}
