"""Saved states of a loader, in plain JSON values: create, merge, check and read them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.engine.grants import cursor_array
from streamloader.engine.quarantine import Quarantined
from streamloader.engine.workload import INITIAL_CURSOR, Cursor, EpochPosition
from streamloader.errors import LengthUnknown, StateError

if TYPE_CHECKING:
    from streamloader.engine.plan import Plan
    from streamloader.stream_table import StreamTable
    from streamloader.streams.base import StreamDataset

__all__ = ["LoaderIdentity", "make_state", "merge_states", "read_state"]

_LOGGER = logging.getLogger("streamloader")
_VERSION: Final = 1
_MAX_COUNT: Final = 1 << 48  # of epochs, batches and steps; the engine computes with 64 bits
_MAX_SHOWN_CHARACTERS: Final = 80  # of one value
_MAX_SHOWN_DIFFERENCES: Final = 12  # as many as a fingerprint has entries
_LANE_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_PLAN_RULES: Final = 2  # to be increased whenever equal arguments give another order of steps
_KEYS: Final = ("version", "fingerprint", "on_error", "epoch", "batch", "lanes", "quarantined")


def _as_json_value(value: Any) -> Any:
    """Return a setting that JSON lacks so that equal settings stay equal: a number of NumPy as one of Python's."""
    return value.item() if isinstance(value, np.generic) else str(value)


@dataclass(frozen=True, slots=True)
class LoaderIdentity:
    """Identity of a loader, which a state must match, and the lanes that this rank hosts.

    Attributes:
        fingerprint: Dataset, shape, seed and rules of the plan.
        plan: Plan of the epochs, used to infer the positions of lanes that a state does not contain.
        table: Streams of the dataset, used for the same purpose.
        hosted_lanes: Global numbers of this rank's lanes.
        on_error: ``"raise"`` or ``"skip"``. With ``"skip"``, positions cannot be inferred from lengths alone.
    """

    fingerprint: dict[str, Any]
    plan: Plan
    table: StreamTable
    hosted_lanes: range
    on_error: str

    @classmethod
    def of_loader(
        cls, dataset: StreamDataset, table: StreamTable, plan: Plan, hosted_lanes: range, on_error: str
    ) -> LoaderIdentity:
        """Return the identity of a loader of `dataset`."""
        fields = {name: [str(field.dtype), list(field.shape)] for name, field in dataset.fields.items()}
        settings = json.dumps([fields, dict(dataset.settings)], sort_keys=True, default=_as_json_value)
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
            "rules": _PLAN_RULES,
        }
        return cls(fingerprint, plan, table, hosted_lanes, on_error)


_DESCRIPTIONS: Final = {
    "dataset": "the kind of dataset",
    "streams": "the number of streams",
    "index": "the keys or lengths of streams (SHA-256)",
    "settings": "the fields or settings of the dataset (SHA-256)",
    "lanes": "the number of global lanes (batch_size x world_size)",
    "rules": "the rules of the plan (load the state with the version of streamloader that saved it)",
}


def make_state(identity: LoaderIdentity, position: EpochPosition, quarantined: Iterable[Quarantined]) -> dict[str, Any]:
    """Return `position` as JSON values. Their size is proportional to the number of lanes of this rank.

    Raises:
        StateError: If a worker has overwritten the cursors of the last batch with impossible ones.
    """
    hosted_lanes = identity.hosted_lanes
    cursors = (
        [list(INITIAL_CURSOR)] * len(hosted_lanes)
        if position.cursors is None
        else cursor_array(position.cursors).tolist()
    )
    if any(number < 0 or step < 0 or ended < -1 for number, step, ended in cursors):
        raise StateError("the positions of the last batch were overwritten in memory: resume from an earlier state")
    entries: dict[str, list[list[Any]]] = {str(lane): [] for lane in hosted_lanes}
    for entry in quarantined:
        if entry.epoch >= position.epoch:
            values = [entry.epoch, entry.position, entry.step, entry.stream, entry.key, entry.reason]
            entries[str(entry.lane)].append([*values, True] if entry.timed_out else values)
    return {
        "version": _VERSION,
        "fingerprint": dict(identity.fingerprint),
        "on_error": identity.on_error,
        "epoch": position.epoch,
        "batch": position.batch,
        "lanes": {str(lane): list(cursor) for lane, cursor in zip(hosted_lanes, cursors, strict=True)},
        "quarantined": entries,
    }


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the states that the ranks of one run saved after the same batch.

    Args:
        states: State of each rank, in any order.

    Returns:
        A state that contains the lanes of all these ranks. It can be loaded with any number of ranks that divides the
        global lanes.

    Raises:
        StateError: If the states were not saved after the same batch of the same run.
    """
    merged: dict[str, Any] = {}
    try:
        listed = [] if isinstance(states, (str, bytes, Mapping)) else list(states)
    except TypeError:
        listed = []
    if not listed:
        raise StateError(f"there are no states to merge: expected those of all ranks, got {type(states).__name__}")
    for state in listed:
        _check_shape(state)
        if not merged:
            merged = {**state, "lanes": dict(state["lanes"]), "quarantined": dict(state["quarantined"])}
            continue
        _check_fingerprint(merged["fingerprint"], state["fingerprint"], "the states belong to different loaders")
        for name in ("epoch", "batch"):
            if merged[name] != state[name]:
                raise StateError(
                    f"the states were saved after different batches: {name} {merged[name]} and {state[name]}. "
                    "Save the states of all ranks after the same batch"
                )
        for name in ("lanes", "quarantined"):
            merged[name].update(state[name])
        if state["on_error"] == "skip":
            merged["on_error"] = "skip"
    return merged


def read_state(state: Any, identity: LoaderIdentity) -> tuple[EpochPosition, list[Quarantined]]:
    """Check a state, or a list of states, and return the position of this rank's lanes and its quarantined streams.

    Raises:
        StateError: If the state is invalid or belongs to another loader. The message says what differs.
    """
    if isinstance(state, Sequence) and not isinstance(state, (str, bytes)):
        state = merge_states(state)
    _check_shape(state)
    _check_fingerprint(state["fingerprint"], identity.fingerprint, "the state belongs to another loader")
    epoch, batch = state["epoch"], state["batch"]
    if batch == 0:
        position = EpochPosition(epoch, 0)
    else:
        lanes = {int(name): tuple(cursor) for name, cursor in state["lanes"].items()}
        if not all(lane in lanes for lane in identity.hosted_lanes):
            lanes = _infer_lanes(identity, epoch, batch, lanes, skipping=state["on_error"] == "skip")
        cursors = [lanes[lane] for lane in identity.hosted_lanes]
        _check_cursors(identity, epoch, batch, dict(zip(identity.hosted_lanes, cursors, strict=True)))
        position = EpochPosition(epoch, batch, np.array(cursors, np.int64).tobytes())
    quarantined = [
        Quarantined(stream, key, in_epoch, int(name), number, step, reason, timed_out != [])
        for name, entries in state["quarantined"].items()
        if int(name) in identity.hosted_lanes
        for in_epoch, number, step, stream, key, reason, *timed_out in entries
    ]
    if any(entry.stream >= len(identity.table) for entry in quarantined):
        raise StateError("the state is damaged: it names a quarantined stream that the dataset does not have")
    return position, quarantined


def _infer_lanes(
    identity: LoaderIdentity, epoch: int, batch: int, saved: dict[int, Cursor], *, skipping: bool
) -> dict[int, Cursor]:
    """Infer the cursors of lanes that a state does not contain from the declared lengths.

    Raises:
        StateError: If the saved cursors contradict the declared lengths, a length is unknown, or streams may have been
            skipped.
    """
    missing = [lane for lane in identity.hosted_lanes if lane not in saved]
    remedy = "load the states of all ranks: load_state_dict([state, state, ...])"
    lengths = identity.table.lengths
    if skipping:
        raise StateError(
            f"the state does not contain lanes {missing}, in which streams may have been skipped: {remedy}"
        )
    try:
        for lane, cursor in saved.items():
            inferred = identity.plan.cursor_at(epoch, lane, batch, lengths)
            if _next_step(identity, epoch, lane, cursor) != _next_step(identity, epoch, lane, inferred):
                raise StateError(
                    f"the state does not contain lanes {missing}, and its lane {lane} contradicts the declared "
                    f"lengths, so the missing lanes cannot be inferred from them: {remedy}"
                )
        inferred_lanes = {lane: identity.plan.cursor_at(epoch, lane, batch, lengths) for lane in missing}
    except LengthUnknown:
        raise StateError(
            f"the state does not contain lanes {missing}, and streams do not declare their lengths: {remedy}"
        ) from None
    _LOGGER.warning(
        "the state does not contain lanes %s: their positions are inferred from the declared lengths, which must be "
        "correct. To be sure, %s",
        missing,
        remedy,
    )
    return inferred_lanes | saved


def _next_step(identity: LoaderIdentity, epoch: int, lane: int, cursor: Cursor) -> tuple[int, int]:
    """Return the position and step that a lane reads next, after skipping finished and empty streams."""
    position, step, ended = cursor
    lane_list = identity.plan.lane(epoch, lane)
    skipped = len(lane_list.ordinals) if lane_list.repeats_substitute(ended) else 0
    lengths = identity.table.lengths[lane_list.substitute if skipped else lane_list.ordinals]
    position = max(position, skipped) - skipped
    end = len(lengths)
    if identity.plan.tail == "cycle" and end:
        end *= position // end + 2
    while position < end and step >= lengths[position % len(lengths)]:
        position, step = position + 1, 0
    return skipped + position, step


# --- validation -------------------------------------------------------------------------------------------------------


def _check_shape(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise StateError(f"a state must be a dict from state_dict(), got {type(state).__name__}")
    version = state.get("version")
    if not _is_count(version) or version != _VERSION:
        hint = "update streamloader to load it" if _is_count(version) else "it was not created by state_dict()"
        raise StateError(f"the state has version {_show(version)}, expected {_VERSION}: {hint}")
    missing = [name for name in _KEYS if name not in state]
    if missing:
        raise StateError(f"the state is incomplete: {', '.join(missing)} missing")
    lanes, quarantined, on_error = state["lanes"], state["quarantined"], state["on_error"]
    valid = (
        isinstance(state["fingerprint"], Mapping)
        and all(map(_is_plain, state["fingerprint"].values()))
        and isinstance(on_error, str)
        and on_error in ("raise", "skip")
        and _is_count(state["epoch"])
        and _is_count(state["batch"])
        and isinstance(lanes, Mapping)
        and all(_is_lane_number(name) and _is_cursor(cursor) for name, cursor in lanes.items())
        and isinstance(quarantined, Mapping)
        and all(
            _is_lane_number(name) and isinstance(entries, (list, tuple)) and all(map(_is_entry, entries))
            for name, entries in quarantined.items()
        )
    )
    if not valid:
        raise StateError("the state is damaged: it contains values that state_dict() never returns")


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _is_plain(value: Any) -> bool:
    """Return whether a value of a fingerprint can be compared: a tensor or array cannot."""
    return value is None or isinstance(value, (bool, int, float, str))


def _is_lane_number(name: Any) -> bool:
    return isinstance(name, str) and _LANE_NUMBER.fullmatch(name) is not None


def _show(value: object) -> str:
    """Return the repr of a value of a state for a message."""
    if isinstance(value, int) and abs(value) > _MAX_COUNT:  # its digits may be too many for str
        return "a huge number"
    return make_printable(repr(value) if _is_plain(value) else type(value).__name__, _MAX_SHOWN_CHARACTERS)


def _is_cursor(cursor: Any) -> bool:
    if not isinstance(cursor, (list, tuple)) or len(cursor) != len(INITIAL_CURSOR):
        return False
    position, step, ended = cursor
    return _is_count(position) and _is_count(step) and (_is_count(ended) or (isinstance(ended, int) and ended == -1))


def _is_entry(entry: Any) -> bool:
    if isinstance(entry, (list, tuple)) and len(entry) == 7 and entry[-1] is True:  # noqa: PLR2004 - it was timed out
        entry = entry[:-1]
    *numbers, key, reason = entry if isinstance(entry, (list, tuple)) and len(entry) == 6 else (None, None, None)  # noqa: PLR2004
    return all(map(_is_count, numbers)) and isinstance(key, str) and isinstance(reason, str)


def _check_fingerprint(saved: Mapping[str, Any], expected: Mapping[str, Any], problem: str) -> None:
    differing = [name for name in expected if saved.get(name) != expected[name]]
    if differing:
        differences = "; ".join(
            f"{make_printable(_DESCRIPTIONS.get(name, name), _MAX_SHOWN_CHARACTERS)}: {_show(saved.get(name))}, here "
            f"{_show(expected[name])}"
            for name in differing[:_MAX_SHOWN_DIFFERENCES]
        )
        raise StateError(f"{problem}: {differences}")


def _check_cursors(identity: LoaderIdentity, epoch: int, batch: int, lanes: dict[int, Cursor]) -> None:
    for lane, (position, step, ended) in lanes.items():
        if ended > batch:
            raise StateError(
                f"the state is damaged: it was saved after {batch} batches, and its lane {lane} ended after {ended}"
            )
        count = len(identity.plan.lane(epoch, lane).ordinals)
        if (position > count and identity.plan.tail != "cycle") or (step and position >= count and not count):
            raise StateError(
                f"the state is damaged: lane {lane} has {count} streams in epoch {epoch}, but its cursor is at step "
                f"{step} of stream number {position}"
            )
