"""Places: accepted addresses, the placement of chunks, and that no password is ever stored."""

from __future__ import annotations

from collections import Counter

import pytest

from streamloader.archive.catalog.base import Place
from streamloader.archive.ingest.placement import PlacementTarget, choose_target, parse_places, resolve_targets
from streamloader.errors import ConfigError
from streamloader.stores.registry import select_options

CONTENTS = [f"{number:064x}" for number in range(40)]


def shares(*weights):
    return [PlacementTarget(number, f"/place/{number}", weight) for number, weight in enumerate(weights)]


def spread(chosen, chunks=100):
    return {
        (content, number): choose_target(content, number, chosen).number
        for content in CONTENTS
        for number in range(chunks)
    }


def test_places_get_their_shares():
    counts = Counter(spread(shares(1.0, 2.0, 0.0, 5.0)).values())
    assert counts[2] == 0
    for number, share in ((0, 500), (1, 1000), (3, 2500)):
        assert abs(counts[number] - share) < 4 * share**0.5  # a fixed sample: it does not vary


def test_a_further_place_only_takes_chunks():
    before, after = spread(shares(1.0, 2.0)), spread(shares(1.0, 2.0, 3.0))
    moved = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert {new for _, new in moved.values()} == {2}
    assert abs(len(moved) - 2000) < 150


def test_the_answer_does_not_depend_on_the_order_of_places_or_on_the_unit_of_shares():
    assert spread(shares(1.0, 2.0, 3.0)) == spread(list(reversed(shares(1e12, 2e12, 3e12))))


def test_where_chunks_go_never_changes():
    """Otherwise a resumed run would leave files behind."""
    assert [choose_target(CONTENTS[7], number, shares(1.0, 1.0, 1.0)).number for number in range(12)] == EXPECTED


EXPECTED = [0, 0, 1, 2, 0, 1, 1, 1, 0, 2, 2, 0]


def test_what_may_be_named_as_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_places("here") == (Place(0, str(tmp_path / "here"), 1.0),)
    assert parse_places(tmp_path / "x") == (Place(0, str(tmp_path / "x"), 1.0),)
    assert parse_places(["file:///a%20b", "ssh://me@box/v/"]) == (
        Place(0, "/a b", 1.0),
        Place(1, "ssh://me@box/v", 1.0),
    )
    assert parse_places({"/a": 2, "s3://b": 0}, first=3) == (Place(3, "/a", 2.0), Place(4, "s3://b", 0.0))


@pytest.mark.parametrize(
    ("stores", "why"),
    [
        ([], "at least one"),
        (["/a", "/a/"], "twice"),
        ({"/a": -1}, "weight"),
        ({"/a": float("nan")}, "weight"),
        ({"/a": True}, "weight"),
        ([""], "address of a folder"),
        ([3], "address of a folder"),
    ],
)
def test_what_may_not(stores, why):
    with pytest.raises(ConfigError, match=why):
        parse_places(stores)


def test_a_password_in_a_place_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="stores no passwords") as raised:
        parse_places("ssh://me:hunter-seven@box/videos")
    assert "hunter-seven" not in str(raised.value)
    assert "box/videos" in str(raised.value)


def test_no_place_for_new_chunks():
    with pytest.raises(ConfigError, match="no place accepts"):
        resolve_targets([Place(0, "/a", 0.0)], None)
    with pytest.raises(ConfigError, match="no place accepts"):
        resolve_targets([Place(0, "/a", 1.0), Place(1, "/b", 0.0)], None, only=[1])


def test_free_space_counts_times_the_weight(tmp_path):
    chosen = resolve_targets([Place(0, str(tmp_path / "not-yet"), 1.0), Place(1, str(tmp_path), 3.0)], None, "free")
    assert chosen[0].share > 1 << 20
    assert chosen[1].share == pytest.approx(3 * chosen[0].share, rel=0.2)


def test_a_place_that_does_not_report_its_free_space():
    with pytest.raises(ConfigError, match=r"does not report its free space.*spread='weight'"):
        resolve_targets([Place(0, "memory://x/y", 1.0)], None, "free")


def test_options_of_one_address_of_many():
    both = {"ssh://me@box": {"port": 1}, "ssh://me@box/deep": {"port": 2}, "s3://": {"region": "x"}}
    assert select_options("ssh://me@box/a", both) == {"port": 1}
    assert select_options("ssh://me@box/deep/a", both) == {"port": 2}
    assert select_options("ssh://me@box/deeper", both) == {"port": 1}
    assert select_options("ssh://me@boxer/a", both) == {}
    assert select_options("s3://any/thing", both) == {"region": "x"}
    assert select_options("/local", both) == {}


def test_options_of_all_addresses():
    assert select_options("ssh://box/a", {"port": 1}) == {"port": 1}
    assert select_options("/local", {"port": 1}) == {}
    assert select_options("ssh://box", None) == {}
    with pytest.raises(ConfigError, match="mixes address prefixes"):
        select_options("ssh://box", {"port": 1, "s3://": {}})
    with pytest.raises(ConfigError, match="mapping"):
        select_options("ssh://box", {"ssh://": 1})
