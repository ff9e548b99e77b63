"""Extract the main text of a page. The functions run in a process of their own, because pages are untrusted."""

from __future__ import annotations

import contextlib
from typing import Any, Final, NamedTuple

from streamloader.errors import MissingDependency, UnreadableStream
from streamloader.streams.articles.encoding import decode_page

__all__ = ["ExtractionSettings", "extract_article"]

_REFUSALS: Final = ("noindex", "none", "noai")
_TDM_NAME: Final = "tdm-reservation"


class ExtractionSettings(NamedTuple):
    """What belongs to the main text.

    Attributes:
        favor: ``"balance"``, ``"precision"`` (less text, hardly any of it from around the article) or ``"recall"``.
        comments: Whether readers' comments are kept.
        tables: Whether tables are kept.
        obeys_robots: Whether a page that refuses its use for indexes or for training is refused.
    """

    favor: str
    comments: bool
    tables: bool
    obeys_robots: bool


def extract_article(
    body: bytes, content_type: str, charset: str | None, url: str, name: str, settings: tuple[Any, ...]
) -> dict[str, str]:
    """Return the main text of a page, and its encoding, as ``{"text": ..., "encoding": ...}``.

    Args:
        body: Bytes of the page.
        content_type: Media type of the response.
        charset: Encoding that the headers of the response declare, or None.
        url: Address of the page, for trafilatura.
        name: Address without secrets, for error messages.
        settings: Values of :class:`ExtractionSettings`.

    Raises:
        UnreadableStream: If the page is not text, has no main text, or refuses its use.
        MissingDependency: If the extra ``articles`` is not installed.
    """
    chosen = ExtractionSettings(*settings)
    page, encoding = decode_page(body, charset, name)
    text = page if content_type == "text/plain" else _extract_main_text(page, url, name, chosen)
    text = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    if not text.strip():
        raise UnreadableStream(f"{name} has no main text", address=name)
    return {"text": text.encode("utf-8", "replace").decode(), "encoding": encoding}


def _extract_main_text(page: str, url: str, name: str, settings: ExtractionSettings) -> str:
    try:
        import trafilatura
        from trafilatura.settings import use_config
        from trafilatura.utils import load_html
    except ImportError as error:
        raise MissingDependency("articles need trafilatura: pip install streamloader[articles]") from error
    config = use_config()
    with contextlib.suppress(KeyError):
        config["DEFAULT"]["EXTRACTION_TIMEOUT"] = "0"  # a signal, which only a main thread can use
    try:
        tree = load_html(page)
        if tree is None:
            return ""
        if settings.obeys_robots:
            _check_meta(tree, name)
        text = trafilatura.extract(
            tree,
            url=url,
            favor_precision=settings.favor == "precision",
            favor_recall=settings.favor == "recall",
            include_comments=settings.comments,
            include_tables=settings.tables,
            config=config,
        )
    except (UnreadableStream, MemoryError):
        raise
    except Exception as error:
        raise UnreadableStream(
            f"the main text of {name} cannot be extracted: {type(error).__name__}", address=name
        ) from error
    return text or ""


def _check_meta(tree: Any, name: str) -> None:
    """Check the meta elements of a page.

    Raises:
        UnreadableStream: If one of them refuses the use of the page.
    """
    for element in tree.iter("meta"):
        key = (element.get("name") or "").strip().lower()
        content = (element.get("content") or "").lower()
        words = {word.strip() for word in content.split(",")}
        if (key == "robots" and words & set(_REFUSALS)) or (key == _TDM_NAME and content.strip() == "1"):
            shown = sorted(words & set(_REFUSALS)) or ["1"]
            raise UnreadableStream(f"{name} refuses to be used: it has meta {key}={','.join(shown)}", address=name)
