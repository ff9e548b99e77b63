from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamloader.engine.messages import Message, MessageDecoder, MessageKind, encode_message

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
PAYLOADS = st.none() | st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text())
NUMBERS_OF_A_MESSAGE = (
    st.integers(0, (1 << 32) - 1),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.integers(-(1 << 31), (1 << 31) - 1),
)
MESSAGES = st.builds(
    Message, st.sampled_from(sorted(set(MessageKind) - {MessageKind.INFO})), *NUMBERS_OF_A_MESSAGE, PAYLOADS
) | st.builds(Message, st.just(MessageKind.INFO), *NUMBERS_OF_A_MESSAGE, st.none() | st.binary(min_size=1))


@given(st.lists(MESSAGES, max_size=6), st.data())
def test_messages_survive_any_cuts_of_the_socket(messages, data):
    sent = b"".join(encode_message(MessageKind(message.kind), *message[1:]) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    decoder = MessageDecoder()
    got = []
    for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        got += decoder.decode(sent[start:stop])
    assert got == messages


def test_an_incomplete_message_is_kept_for_later():
    decoder = MessageDecoder()
    whole = encode_message(MessageKind.LOG, payload={"message": "ä" * 100})
    assert list(decoder.decode(whole[:-1])) == []
    assert list(decoder.decode(whole[-1:])) == [Message(MessageKind.LOG, 0, 0, 0, 0, -1, {"message": "ä" * 100})]


def test_payloads_may_hold_what_json_does_not_know():
    (message,) = MessageDecoder().decode(encode_message(MessageKind.ERROR, payload={"details": {"path": b"x"}}))
    assert message.payload == {"details": {"path": "b'x'"}}
