"""What a loader has to remember to go on elsewhere: made, merged, checked. Plain JSON values and nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np

from streamloader.engine.grants import cursor_array
from streamloader.engine.quarantine import Quarantined
from streamloader.engine.workload import START, Cursor, Place
from streamloader.errors import LengthUnknown, StateError

if TYPE_CHECKING:
    from streamloader.engine.plan import Plan
    from streamloader.stream_table import StreamTable
    from streamloader.streams.base import StreamDataset

__all__ = ["Origin", "make_state", "merge_states", "read_state"]

_LOGGER = logging.getLogger("streamloader")
_VERSION: Final = 1
_RULES: Final = 1  # counted up whenever equal arguments come to mean another order of steps
_KEYS: Final = ("version", "fingerprint", "on_error", "epoch", "batch", "lanes", "quarantined")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a state belongs to, and which of the lanes this rank hosts.

    Attributes:
        fingerprint: of data set, shape, seed and rules of the plan.
        plan, table: to place lanes that a state does not hold.
        hosted: global numbers of this rank's lanes.
        on_error: whether streams that fail are left, so that lengths alone do not say where lanes are.
    """

    fingerprint: dict[str, Any]
    plan: Plan
    table: StreamTable
    hosted: range
    on_error: str

    @classmethod
    def of(cls, dataset: StreamDataset, table: StreamTable, plan: Plan, hosted: range, on_error: str) -> Origin:
        """Describe a loader."""
        fields = {name: [str(field.dtype), list(field.shape)] for name, field in dataset.fields.items()}
        settings = json.dumps([fields, dict(dataset.settings)], sort_keys=True, default=str)
        fingerprint = {
            "dataset": type(dataset).__name__,
            "streams": len(table),
            "index": table.digest(),
            "settings": hashlib.sha256(settings.encode()).hexdigest(),
            "lanes": plan.lanes,
            "window": plan.window,
            "seed": plan.seed,
            "shuffle": plan.shuffle,
            "switch": plan.switch,
            "tail": plan.tail,
            "rules": _RULES,
        }
        return cls(fingerprint, plan, table, hosted, on_error)


_SAYS: Final = {
    "dataset": "the kind of data set",
    "streams": "the number of streams",
    "index": "the keys or lengths of streams (SHA-256)",
    "settings": "the fields or settings of the data set (SHA-256)",
    "lanes": "the global lanes (batch_size x world_size)",
    "rules": "the rules of the plan: use the version of streamloader that saved it",
}


def make_state(origin: Origin, place: Place, quarantined: Iterable[Quarantined]) -> dict[str, Any]:
    """Describe `place`, as JSON values. Its size is O(lanes of this rank)."""
    hosted = origin.hosted
    cursors = [list(START)] * len(hosted) if place.cursors is None else cursor_array(place.cursors).tolist()
    left: dict[str, list[list[Any]]] = {str(lane): [] for lane in hosted}
    for one in quarantined:
        if one.epoch >= place.epoch:
            left[str(one.lane)].append([one.epoch, one.position, one.step, one.stream, one.key, one.reason])
    return {
        "version": _VERSION,
        "fingerprint": dict(origin.fingerprint),
        "on_error": origin.on_error,
        "epoch": place.epoch,
        "batch": place.batch,
        "lanes": {str(lane): list(cursor) for lane, cursor in zip(hosted, cursors, strict=True)},
        "quarantined": left,
    }


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Put together the states that the ranks of one run saved after the same batch.

    Returns:
        a state that holds the lanes of all of them, for any number of ranks.

    Raises:
        StateError: they were not saved after the same batch of the same run.
    """
    merged: dict[str, Any] = {}
    for state in states:
        _check_shape(state)
        if not merged:
            merged = {**state, "lanes": dict(state["lanes"]), "quarantined": dict(state["quarantined"])}
            continue
        _check_fingerprint(merged["fingerprint"], state["fingerprint"], "the states do not belong together")
        for name in ("epoch", "batch"):
            if merged[name] != state[name]:
                raise StateError(
                    f"the states were saved at different moments: {name} {merged[name]} and {state[name]}. "
                    "Have all ranks save after the same batch"
                )
        for name in ("lanes", "quarantined"):
            merged[name].update(state[name])
        if state["on_error"] == "skip":
            merged["on_error"] = "skip"
    if not merged:
        raise StateError("there is no state to be merged")
    return merged


def read_state(state: Any, origin: Origin) -> tuple[Place, list[Quarantined]]:
    """Check a state, or the states of all ranks, and return what it says of the lanes that this rank hosts.

    Raises:
        StateError: it is none, or belongs to something else; the message says what differs.
    """
    if isinstance(state, Sequence) and not isinstance(state, (str, bytes)):
        state = merge_states(state)
    _check_shape(state)
    _check_fingerprint(state["fingerprint"], origin.fingerprint, "the state belongs to another loader")
    epoch, batch = state["epoch"], state["batch"]
    if batch == 0:
        place = Place(epoch, 0)
    else:
        lanes = {int(name): tuple(cursor) for name, cursor in state["lanes"].items()}
        if not all(lane in lanes for lane in origin.hosted):
            lanes = _placed(origin, epoch, batch, lanes, skipping=state["on_error"] == "skip")
        chosen = [lanes[lane] for lane in origin.hosted]
        _check_cursors(origin, epoch, dict(zip(origin.hosted, chosen, strict=True)))
        place = Place(epoch, batch, np.array(chosen, np.int64).tobytes())
    left = [
        Quarantined(stream, key, of, int(name), position, step, reason)
        for name, entries in state["quarantined"].items()
        if int(name) in origin.hosted
        for of, position, step, stream, key, reason in entries
    ]
    return place, left


def _placed(origin: Origin, epoch: int, batch: int, known: dict[int, Cursor], *, skipping: bool) -> dict[int, Cursor]:
    """Place the lanes that a state does not hold by the declared lengths, if those it does hold agree with these."""
    missing = [lane for lane in origin.hosted if lane not in known]
    ask = "load the states of all ranks: load_state_dict([state, state, ...])"
    lengths = origin.table.lengths
    if skipping:
        raise StateError(f"the state does not hold lanes {missing}, where streams may have been left: {ask}")
    try:
        for lane, cursor in known.items():
            placed = origin.plan.place(epoch, lane, batch, lengths)
            if _next_step(origin, epoch, lane, cursor) != _next_step(origin, epoch, lane, placed):
                raise StateError(
                    f"the state does not hold lanes {missing}, and lane {lane}, which it holds, is not where the "
                    f"declared lengths say: {ask}"
                )
        placed_lanes = {lane: origin.plan.place(epoch, lane, batch, lengths) for lane in missing}
    except LengthUnknown:
        raise StateError(f"the state does not hold lanes {missing}, and streams declare no lengths: {ask}") from None
    text = (
        "the state does not hold lanes %s: they are placed by the declared lengths, which must be true. To be sure, %s"
    )
    _LOGGER.warning(text, missing, ask)
    return placed_lanes | known


def _next_step(origin: Origin, epoch: int, lane: int, cursor: Cursor) -> tuple[int, int]:
    """Return the position and step that a lane reads next, without streams that are over or empty."""
    position, step, _ = cursor
    lengths = origin.table.lengths[origin.plan.lane(epoch, lane).ordinals]
    most = (
        len(lengths) * (position // len(lengths) + 2) if origin.plan.tail == "cycle" and len(lengths) else len(lengths)
    )
    while position < most and step >= lengths[position % len(lengths)]:
        position, step = position + 1, 0
    return position, step


# --- is it a state? ---------------------------------------------------------------------------------------------------


def _check_shape(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise StateError(f"a state is a dict, as state_dict() returns it, got {type(state).__name__}")
    version = state.get("version")
    if version != _VERSION:
        newer = isinstance(version, int) and version > _VERSION
        hint = "update streamloader to load it" if newer else "it was not made by state_dict()"
        raise StateError(f"this is no state of version {_VERSION}, but {version!r}: {hint}")
    missing = [name for name in _KEYS if name not in state]
    if missing:
        raise StateError(f"the state lacks {', '.join(missing)}: it is not complete")
    lanes, left = state["lanes"], state["quarantined"]
    sound = (
        isinstance(state["fingerprint"], Mapping)
        and state["on_error"] in ("raise", "skip")
        and _is_number(state["epoch"])
        and _is_number(state["batch"])
        and isinstance(lanes, Mapping)
        and all(_is_lane(name) and _is_cursor(cursor) for name, cursor in lanes.items())
        and isinstance(left, Mapping)
        and all(_is_lane(name) and all(map(_is_entry, entries)) for name, entries in left.items())
    )
    if not sound:
        raise StateError("the state is damaged: it holds values that state_dict() never puts there")


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_lane(name: Any) -> bool:
    return isinstance(name, str) and name.isascii() and name.isdigit()


def _is_cursor(cursor: Any) -> bool:
    if not isinstance(cursor, (list, tuple)) or len(cursor) != len(START):
        return False
    position, step, ended = cursor
    return _is_number(position) and _is_number(step) and (_is_number(ended) or ended == -1)


def _is_entry(entry: Any) -> bool:
    *numbers, key, reason = entry if isinstance(entry, (list, tuple)) and len(entry) == 6 else (None, None, None)  # noqa: PLR2004
    return all(map(_is_number, numbers)) and isinstance(key, str) and isinstance(reason, str)


def _check_fingerprint(one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> None:
    differing = [name for name in other if one.get(name) != other[name]]
    if differing:
        told = "; ".join(f"{_SAYS.get(name, name)}: {one.get(name)!r}, here {other[name]!r}" for name in differing)
        raise StateError(f"{what}: {told}")


def _check_cursors(origin: Origin, epoch: int, lanes: dict[int, Cursor]) -> None:
    for lane, (position, step, _) in lanes.items():
        count = len(origin.plan.lane(epoch, lane).ordinals)
        if (position > count and origin.plan.tail != "cycle") or (step and position >= count and not count):
            raise StateError(
                f"the state is damaged: lane {lane} has {count} streams in epoch {epoch}, and is said to be at step "
                f"{step} of number {position}"
            )
