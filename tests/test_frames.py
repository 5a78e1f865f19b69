from __future__ import annotations

import io
import json
import os
import threading

from hypothesis import given, settings, strategies as st

from promptflow.engine.process.frames import encode, read_frame, write_frame

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=20,
)
messages = st.dictionaries(st.text(st.characters()), values, max_size=4)


@settings(deadline=None)
@given(st.lists(messages, max_size=5))
def test_frames_are_read_as_they_were_written(messages):
    stream = io.BytesIO()
    for message in messages:
        write_frame(stream, message)
    stream.seek(0)
    assert [read_frame(stream) for _ in messages] == messages
    assert read_frame(stream) is None


def test_a_frame_is_four_bytes_of_length_and_json():
    assert encode({"a": "é"}) == b"\0\0\0\x0b" + json.dumps({"a": "é"}, ensure_ascii=False).encode()


@settings(deadline=None)
@given(messages, st.data())
def test_a_stream_cut_anywhere_ends(message, data):
    whole = encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert read_frame(io.BytesIO(whole[:cut])) is None


def test_a_frame_may_come_in_pieces():
    read, write = os.pipe()
    message = {"text": "x" * 300_000}

    def trickle() -> None:
        data = encode(message)
        with os.fdopen(write, "wb", buffering=0) as stream:
            for start in range(0, len(data), 7_001):
                stream.write(data[start : start + 7_001])

    thread = threading.Thread(target=trickle)
    thread.start()
    with os.fdopen(read, "rb", buffering=0) as stream:
        assert read_frame(stream) == message
        assert read_frame(stream) is None
    thread.join()
