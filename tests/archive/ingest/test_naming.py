"""Names: of content, chunks, videos and sources."""

from __future__ import annotations

import hashlib
import json

import pytest

from streamloader.archive.catalog.chunk_paths import build_chunk_path, extract_content
from streamloader.archive.ingest.naming import (
    compute_content,
    get_default_name,
    normalize_metadata,
    remove_secrets,
)
from streamloader.errors import ConfigError
from streamloader.media.chunks.settings import CutSettings

DIGEST = "sha256:" + "ab" * 32


def test_content_is_what_the_documentation_says():
    settings = CutSettings(chunk_frames=50).to_json()
    document = {"digest": DIGEST, "format": 1, "settings": {k: v for k, v in settings.items() if k != "verify"}}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert compute_content(DIGEST, settings) == hashlib.sha256(canonical.encode()).hexdigest()


def test_other_settings_are_other_content_but_how_it_is_verified_is_not():
    plain = compute_content(DIGEST, CutSettings().to_json())
    assert compute_content(DIGEST, CutSettings(chunk_frames=999).to_json()) != plain
    assert compute_content(DIGEST, CutSettings(verify="edges").to_json()) == plain


def test_paths_of_chunks():
    content = "0f" * 32
    path = build_chunk_path(content, 7, DIGEST, ".mp4")
    assert path == f"chunks/0f/{content}/000007-abababababababab.mp4"
    assert build_chunk_path(content, 7, DIGEST, "mkv").endswith(".mkv")
    assert extract_content(path) == content
    for other in (f"chunks/0e/{content}/x.mp4", f"chunks/0f/{content}/a/b", "chunks/x", f"x/{path}", path[:-20] + "\n"):
        assert extract_content(other) is None or "\n" in other


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/videos/a b.mp4", "videos/a b.mp4"),
        ("/b/../videos/./a.tar.mkv", "videos/a.tar.mkv"),
        ("file:///x/a%20b.mp4", "x/a b.mp4"),
        ("https://host/v/clip%20one.mp4?sig=abc.def", "v/clip one.mp4"),
        ("s3://bucket/a?b.mp4", "bucket/a?b.mp4"),
        ("ssh://me@box/~/v.mp4", "~/v.mp4"),
        ("/videos/.hidden", "videos/.hidden"),
        ("memory://x/", "x"),
    ],
)
def test_videos_are_called_like_their_files(address, name):
    assert get_default_name(address) == name


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("ssh://me:pass-word-1@box:22/v.mp4", "ssh://me@box:22/v.mp4"),
        ("ssh://me@box/v.mp4", "ssh://me@box/v.mp4"),
        ("https://me:pass-word-1@host/v.mp4", "https://host/v.mp4"),
        ("https://tok-en-2@host/v.mp4", "https://host/v.mp4"),
        ("https://host/v.mp4?X-Amz-Signature=pass-word-1&part=2", "https://host/v.mp4?X-Amz-Signature=***&part=2"),
        ("s3://bucket/v@2.mp4", "s3://bucket/v@2.mp4"),
    ],
)
def test_sources_are_kept_without_secrets(address, kept):
    assert remove_secrets(address) == kept


def test_local_sources_are_kept_as_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert remove_secrets("a.mp4") == str(tmp_path / "a.mp4")
    assert remove_secrets("file:///x/a%20b.mp4") == "/x/a b.mp4"


def test_metadata_is_plain_json():
    assert normalize_metadata(None) == {}
    assert normalize_metadata({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
    for wrong in ([1], {"a": (1, 2)}, {1: 2}, {"a": float("nan")}, {"a": object()}, {"a": b""}):
        with pytest.raises(ConfigError, match="metadata"):
            normalize_metadata(wrong)
