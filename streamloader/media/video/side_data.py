"""Read what FFmpeg attaches to decoded frames, also where PyAV does not know all kinds of it.

PyAV lists the side data of a frame as a whole, and refuses the list if FFmpeg has given one of the entries a type that
PyAV has no name for: the EXIF tags of JPEG, PNG and TIFF pictures in a MOV or AVI, for example.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from av.sidedata.sidedata import Type

if TYPE_CHECKING:
    from av.frame import Frame

__all__ = ["find_side_data"]


def find_side_data(frame: Frame, name: str) -> Iterator[bytes]:
    """Yield the bytes of all side data of one type.

    Args:
        frame: Decoded frame, of a video or a sound.
        name: FFmpeg's name of the type without its prefix, such as ``"DISPLAYMATRIX"``.
    """
    try:
        entries: Any = frame.side_data
    except ValueError:
        _name_all_types()
        entries = frame.side_data
    for entry in entries:
        if entry.type.name == name:
            yield bytes(entry)


def _name_all_types() -> None:
    """Have PyAV accept types that it has no name for, instead of refusing the frame that has one."""

    def make_member(cls: type[Type], value: object) -> Type:
        member: Any = object.__new__(cls)
        member._name_, member._value_ = f"UNKNOWN_{value}", value
        return cast("Type", member)

    Type._missing_ = classmethod(make_member)  # type: ignore[assignment]
