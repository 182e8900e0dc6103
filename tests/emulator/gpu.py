"""Calls from csrc/algorithms/calls.h on the emulated GPU, with NumPy arrays."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_bool,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


class Address(ctypes.Structure):
    _fields_ = [("seed", c_uint64), ("epoch", c_uint32), ("epoch_at", c_void_p)]


class Scoring(ctypes.Structure):
    _fields_ = [("rule", c_int32), ("alpha", c_float), ("c", c_float)]


class PassRate(ctypes.Structure):
    _fields_ = [
        ("rule", c_int32),
        *((name, c_double) for name in ("target", "width", "low", "high")),
        *((name, c_double) for name in ("prior_right", "prior_wrong", "retry_easy", "retry_hard")),
        *((name, c_double) for name in ("retire_below", "retire_above")),
        ("evidence", c_uint32),
    ]


class ImageRule(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("channels", "height", "width")),
        *((name, c_int32) for name in ("crop_height", "crop_width", "padding", "cutout")),
        ("flip_below", c_uint64),
        ("is_reflected", c_bool),
        ("alternates", c_bool),
    ]


class BoxRule(ctypes.Structure):
    _fields_ = [
        *((name, c_double) for name in ("least_area", "most_area", "least_ratio", "most_ratio")),
        ("is_antialiased", c_bool),
    ]


class JitterRule(ctypes.Structure):
    _fields_ = [("low", c_double * 4), ("high", c_double * 4), ("is_used", c_bool * 4)]


class MixRule(ctypes.Structure):
    _fields_ = [
        ("num_samples", c_int64),
        ("alpha", c_double),
        *((name, c_int32) for name in ("height", "width")),
        ("cuts", c_bool),
    ]


class PixelStrides(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("channel", "row", "column")]


class Rows(ctypes.Structure):
    _fields_ = [
        ("values", c_void_p),
        ("n", c_int64),
        ("first", c_int64),
        ("address", Address),
        ("key", c_int32),
        ("has_greedy", c_bool),
        ("least_greedy", c_uint64),
        ("mean", c_double),
    ]


class Marks(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("bits", "tile_counts", "open_starts", "open_counts")),
        *((name, c_void_p) for name in ("open_keys", "open_samples")),
        ("open_capacity", c_int64),
        ("totals", c_void_p),
    ]


class LossRows(ctypes.Structure):
    _fields_ = [
        ("offsets", c_void_p),
        ("offsets_are_int32", c_bool),
        ("width", c_int64),
        ("count", c_int64),
    ]


def call(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


def pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names]


def integers(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in names]


AT = ("address", Address)
ORDER = call(
    "Order",
    *pointers("selected"),
    ("selected_is_int32", c_bool),
    *integers("n", "start", "stop"),
    AT,
    ("purpose", c_uint32),
    *pointers("order"),
)
CALLS = {
    made.__name__: made
    for made in (
        call("TopK", *pointers("scores"), *integers("n", "k"), AT, *pointers("selected")),
        call(
            "EpsilonGreedy",
            *pointers("scores"),
            *integers("n", "k", "num_random"),
            AT,
            *pointers("selected"),
        ),
        call(
            "WeightedSample",
            *pointers("weights"),
            *integers("n", "k"),
            AT,
            ("rule", c_int32),
            *pointers("selected", "tau"),
        ),
        call("CheckWeights", *pointers("weights"), *integers("n"), *pointers("counts")),
        call(
            "InfoBatch",
            *pointers("scores"),
            *integers("n"),
            ("drop_probability", c_double),
            *integers("num_kept", "num_candidates"),
            AT,
            *pointers("selected", "weights", "kept"),
            *pointers("room_context", "room_make"),
        ),
        call(
            "CountDigits",
            ("rows", Rows),
            ("prefix", c_uint64),
            ("shift", c_int32),
            *pointers("counts"),
        ),
        call(
            "MarkRows", ("rows", Rows), ("lower", c_uint64), ("upper", c_uint64), ("marks", Marks)
        ),
        call(
            "KeepRows",
            ("rows", Rows),
            ("least", c_uint64),
            ("marks", Marks),
            *pointers("selected", "weights"),
            ("weight", c_float),
        ),
        ORDER,
        call(
            "Places",
            *integers("n", "start", "stop"),
            AT,
            ("purpose", c_uint32),
            *pointers("places"),
        ),
        call(
            "Gather",
            ("order", ORDER),
            *pointers("rows"),
            *integers("num_rows", "row_bytes"),
            *pointers("batch", "faults"),
        ),
        call(
            "GatherRows",
            *pointers("index"),
            *integers("batch_size"),
            *pointers("rows"),
            *integers("num_rows", "row_bytes"),
            *pointers("batch", "faults"),
        ),
        call(
            "GatherImages",
            *pointers("index"),
            *integers("batch_size"),
            ("rule", ImageRule),
            AT,
            *pointers("images"),
            *integers("num_images"),
            ("from", PixelStrides),
            ("to", PixelStrides),
            ("pixel_bytes", c_int32),
            ("fill", c_uint64),
            *pointers("values"),
            ("value_bytes", c_int32),
            *pointers("batch", "faults"),
            ("is_resized", c_bool),
            ("box", BoxRule),
            ("is_jittered", c_bool),
            ("jitter", JitterRule),
        ),
        call(
            "DrawMixtures",
            *pointers("index"),
            *integers("batch_size"),
            ("rule", MixRule),
            AT,
            *pointers("partners", "shares", "squares"),
        ),
        call("ScoreSums", *pointers("scores"), *integers("n"), *pointers("sums")),
        call("ScoreMean", *pointers("scores"), *integers("n"), *pointers("mean", "counts")),
        call(
            "PowerWeights",
            *pointers("scores"),
            *integers("n"),
            ("exponent", c_double),
            ("offset", c_double),
            *pointers("weights"),
        ),
        call(
            "VisitBonus",
            *pointers("records"),
            *integers("n"),
            ("c", c_double),
            ("log_t", c_double),
            *pointers("scores"),
        ),
        call(
            "ReduceByIndex",
            *pointers("losses"),
            ("loss_type", c_int32),
            *integers("num_losses"),
            *pointers("mask", "index"),
            ("rows", LossRows),
            ("reduction", c_int32),
            *pointers("reduced", "counts", "num_samples", "num_clamped", "faults"),
        ),
        call(
            "PassScores",
            *pointers("passes"),
            *integers("n"),
            ("rate", PassRate),
            AT,
            *pointers("scores"),
        ),
        call(
            "Update",
            *pointers("scores", "records"),
            *integers("n"),
            *pointers("index", "losses"),
            ("loss_type", c_int32),
            *integers("batch_size"),
            ("scoring", Scoring),
            *pointers("faults", "num_updates", "counts"),
        ),
        call(
            "UpdateForgetting",
            *pointers("state"),
            *integers("n"),
            *pointers("index", "correct"),
            *integers("batch_size"),
            *pointers("faults", "counts"),
        ),
        call(
            "CountSelected",
            *pointers("counts"),
            *integers("n"),
            *pointers("selected"),
            ("is_ascending", c_bool),
            *integers("num_selected"),
            *pointers("num_used", "faults"),
        ),
        call(
            "Spread",
            *pointers("values", "selected"),
            *integers("num_selected"),
            *pointers("num_used"),
            ("rest", c_float),
            *integers("n"),
            *pointers("result"),
        ),
        call(
            "ChangedRows",
            *pointers("records", "known_visits"),
            *integers("n"),
            *pointers("changed", "count"),
        ),
        call(
            "WriteNewer",
            *pointers("scores", "records"),
            *integers("n"),
            *pointers("index", "new_scores", "new_records", "known_visits"),
            *integers("count"),
            ("wins_ties", c_bool),
            *pointers("is_written"),
        ),
    )
}


class DeviceArray:
    """An array in the emulated GPU's memory."""

    def __init__(self, library: ctypes.CDLL, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.library, self.shape, self.dtype = library, shape, np.dtype(dtype)
        self.address = library.emulator_allocate(int(np.prod(shape)) * self.dtype.itemsize)

    def read(self, count: int | None = None) -> Array:
        """Copy all elements, or the first ``count``, to the host."""
        shape = self.shape if count is None else (count, *self.shape[1:])
        array = np.empty(shape, self.dtype)
        self.library.emulator_to_host(array.ctypes.data, self.address, array.nbytes)
        return array


class Gpu:
    """The emulated GPU; ``seed`` draws the order of the blocks and threads."""

    def __init__(self, library: Path, seed: int) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.emulator_allocate.restype = c_void_p
        self.library.emulator_allocate.argtypes = [ctypes.c_size_t]
        for copy in (self.library.emulator_to_host, self.library.emulator_to_device):
            copy.argtypes = [c_void_p, c_void_p, ctypes.c_size_t]
        self.library.emulator_seed(c_uint64(seed))
        for name, structure in CALLS.items():
            if not hasattr(self.library, f"run_{name}"):
                continue  # left out, see calls_of() in build.py; run() raises an error
            wanted = getattr(self.library, f"size_of_{name}")()
            assert ctypes.sizeof(structure) == wanted, name
            getattr(self.library, f"run_{name}").argtypes = [POINTER(structure)]

    def empty(self, *shape: int, dtype: DTypeLike) -> DeviceArray:
        return DeviceArray(self.library, shape, dtype)

    def put(self, array: Any, dtype: DTypeLike | None = None) -> DeviceArray:
        array = np.ascontiguousarray(array, dtype)
        there = DeviceArray(self.library, array.shape, array.dtype)
        self.library.emulator_to_device(there.address, array.ctypes.data, array.nbytes)
        return there

    def run(self, name: str, **fields: Any) -> None:
        """Make a call. Fields that are not given are zero."""
        structure = filled(CALLS[name], fields)
        getattr(self.library, f"run_{name}")(ctypes.byref(structure))

    def refused(self, name: str, **fields: Any) -> str:
        """Return the message of a call whose kernel the runtime refuses to launch."""
        refuse = getattr(self.library, f"refused_{name}")
        refuse.restype = ctypes.c_char_p
        return str(refuse(ctypes.byref(filled(CALLS[name], fields))).decode())

    def cost(self, name: str, **fields: Any) -> tuple[int, int, int]:
        """Return the launches, memsets and bytes of scratch of a call, without executing it."""
        self.library.emulator_only_count()
        self.run(name, **fields)
        counts = (ctypes.c_int64 * 3)()
        self.library.emulator_counts(counts)
        return counts[0], counts[1], counts[2]

    def last_error(self) -> int:
        """Return and clear the last error of the runtime."""
        return int(self.library.emulator_last_error())

    def free_all(self) -> None:
        self.library.emulator_free_all()


def filled(structure: type[ctypes.Structure], fields: dict[str, Any]) -> ctypes.Structure:
    known = {name for name, *_ in structure._fields_}
    assert fields.keys() <= known, fields.keys() - known
    return structure(
        **{
            name: value.address if isinstance(value, DeviceArray) else value
            for name, value in fields.items()
        }
    )
