from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamloader.engine.messages import Kind, Record, Splitter, pack

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
PAYLOADS = st.none() | st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text())
RECORDS = st.builds(
    Record,
    st.sampled_from(Kind),
    st.integers(0, (1 << 32) - 1),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.integers(-(1 << 31), (1 << 31) - 1),
    PAYLOADS,
)


@given(st.lists(RECORDS, max_size=6), st.data())
def test_records_survive_any_cuts_of_the_socket(records, data):
    sent = b"".join(pack(Kind(record.kind), *record[1:]) for record in records)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    splitter = Splitter()
    got = []
    for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        got += splitter.feed(sent[start:stop])
    assert got == records


def test_an_unfinished_record_is_kept_for_later():
    splitter = Splitter()
    whole = pack(Kind.LOG, payload={"message": "ä" * 100})
    assert list(splitter.feed(whole[:-1])) == []
    assert list(splitter.feed(whole[-1:])) == [Record(Kind.LOG, 0, 0, 0, 0, -1, {"message": "ä" * 100})]


def test_payloads_may_hold_what_json_does_not_know():
    (record,) = Splitter().feed(pack(Kind.ERROR, payload={"details": {"path": b"x"}}))
    assert record.payload == {"details": {"path": "b'x'"}}
