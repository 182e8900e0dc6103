"""Compares the calls on the emulated GPU with the reference: ``check.py LIBRARY SUITE SEED``.

Runs in a separate process, because a fault ends it. The last line has the number of equal results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import reference
import reference_images
import reference_prompts
import reference_table
from inputs import SCORES, WEIGHTS, address, counts_of, values

from emulator.gpu import (
    CALLS,
    Address,
    Array,
    BoxRule,
    DeviceArray,
    Gpu,
    ImageRule,
    JitterRule,
    LossRows,
    Marks,
    MixRule,
    PassRate,
    PixelStrides,
    Rows,
    Scoring,
    filled,
)

# Sizes around those of warps, blocks and tiles, and a few larger ones.
SIZES = [0, 1, 2, 5, 31, 32, 33, 256, 257, 1000, 4095, 4096, 4097, 8193]
MANY = [16_385, 70_001]
RACE, PRIORITY = 0, 1
BFLOAT16 = 3  # a LossType
num_equal = 0


def same(found: Array, wanted: Any, *what: object) -> None:
    """Fail unless dtype, shape and every bit are equal."""
    global num_equal
    wanted = np.asarray(wanted)
    assert found.dtype == wanted.dtype, (*what, found.dtype, wanted.dtype)
    assert found.shape == wanted.shape, (*what, found.shape, wanted.shape)
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes(), (*what, found, wanted)
    num_equal += 1


def at(i: int, gpu: Gpu | None = None) -> tuple[Address, dict[str, int]]:
    """Return an address for the call, which reads the epoch on the GPU, and for the reference."""
    options = address(i)
    if gpu is None:
        return Address(options["seed"], options["epoch"], None), options
    epoch = gpu.put([options["epoch"]], np.int64)
    return Address(options["seed"], 0, epoch.address), options


def inputs(families: tuple[str, ...]) -> Iterator[tuple[int, str, int, int]]:
    """Yield a number, a kind of input, n and k: all pairs of the first two, with each k in turn."""
    for f, family in enumerate(families):
        for i, n in enumerate(SIZES):
            counts = counts_of(n)
            for k in {counts[(i + f) % len(counts)], counts[(i + f + 2) % len(counts)]}:
                yield i + f, family, n, k


def check_top_k(gpu: Gpu) -> None:
    many = [(i, SCORES[i], n, n // 2) for n in MANY for i in range(len(SCORES))]
    for i, family, n, k in [*inputs(SCORES), *many]:
        where, options = at(i, gpu if i % 3 == 0 else None)
        scores, selected = gpu.put(values(family, n)), gpu.empty(k, dtype=np.int64)
        gpu.run("TopK", scores=scores, n=n, k=k, address=where, selected=selected)
        same(selected.read(), reference.top_k(values(family, n), k, **options), family, n, k)
        gpu.free_all()


def check_epsilon_greedy(gpu: Gpu) -> None:
    for i, family, n, k in [*inputs(("normal", "few", "mixed")), (1, "normal", MANY[1], 9999)]:
        where, options = at(i)
        scores, selected = gpu.put(values(family, n)), gpu.empty(k, dtype=np.int64)
        m = (0, k // 10, k // 2, k)[i % 4]
        gpu.run(
            "EpsilonGreedy", scores=scores, n=n, k=k, num_random=m, address=where, selected=selected
        )
        wanted = reference.epsilon_greedy(values(family, n), k, m, **options)
        same(selected.read(), wanted, family, n, k, m)
        gpu.free_all()


def check_sample(gpu: Gpu) -> None:
    many = [(i, WEIGHTS[i], MANY[1], 5000) for i in range(len(WEIGHTS))]
    for i, family, n, most in [*inputs(WEIGHTS), *many]:
        weights = values(family, n)
        num_positive = int((weights > 0).sum())
        k = min(most, num_positive)
        there, counts = gpu.put(weights), gpu.empty(2, dtype=np.int64)
        gpu.run("CheckWeights", weights=there, n=n, counts=counts)
        same(counts.read(), np.array([num_positive, 0]), family, n)
        where, options = at(i)
        for rule in (RACE, PRIORITY):
            selected, tau = gpu.empty(k, dtype=np.int64), gpu.empty(1, dtype=np.float64)
            gpu.run(
                "WeightedSample",
                weights=there,
                n=n,
                k=k,
                address=where,
                rule=rule,
                selected=selected,
                tau=tau if rule == PRIORITY else None,
            )
            if rule == RACE:
                same(selected.read(), reference.sample(weights, k, **options), family, n, k)
                continue
            wanted, wanted_tau = reference.priority_sample(weights, k, **options)
            same(selected.read(), wanted, family, n, k)
            same(tau.read(), wanted_tau.reshape(1), family, n, k)
        gpu.free_all()


def check_group(gpu: Gpu) -> None:
    """Check what a process does with its rows in a selection across processes."""
    rng = np.random.default_rng(6)
    for i, n in enumerate([1, 33, 4096, 4097, MANY[1]]):
        first = (0, 7, 2**32 - n, 2**39 + 1)[i % 4]
        index, (where, options) = first + np.arange(n), at(i)
        weights = values(WEIGHTS[i], n)
        there = gpu.put(weights)
        ties = reference.shuffled_at(index, reference.TIE, **options)[0]
        for key, purpose in ((1, reference.RACE), (2, reference.PRIORITY)):
            bits = reference.random_bits64(*options.values(), purpose, index)
            of = reference.exponential_variate if key == 1 else reference.unit_interval
            high = reference.priority_bits(weights.astype(np.float64) / of(bits))
            rows = Rows(there.address, n, first, where, key)
            check_rows(gpu, rows, index, reference.joined(high, ties), rng, {})
        scores = values(SCORES[i], n)
        by_score = reference.joined(reference.ordered_bits(scores), ties)
        there = gpu.put(scores)
        rows = Rows(there.address, n, first, where, 0)
        check_rows(gpu, rows, index, by_score, rng, {})
        drops = reference.shuffled_at(index, reference.DROP, **options)[0]
        least = np.sort(by_score)[n // 2]
        for key, is_safe in ((4, by_score >= least), (5, ~(scores < 0.25))):
            rows = Rows(there.address, n, first, where, key, key == 4, int(least), 0.25)
            keys = reference.joined(is_safe.astype(np.uint32), drops)
            check_rows(gpu, rows, index, keys, rng, {"is_safe": is_safe})
        gpu.free_all()


def check_rows(
    gpu: Gpu,
    rows: Rows,
    index: Array,
    keys: Array,
    rng: np.random.Generator,
    classes: dict[str, Array],
) -> None:
    n = len(index)
    for shift in (16, 0) if classes else (48, 32, 16, 0):
        one, top = keys[rng.integers(n)], np.uint64(min(shift + 16, 63))
        prefix = 0 if shift == 48 else int(one >> top << top)
        matching = keys if shift == 48 else keys[keys >> top == one >> top]
        digits = (matching >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64)
        counts = gpu.empty(2**16, dtype=np.int64)
        gpu.run("CountDigits", rows=rows, prefix=prefix, shift=shift, counts=counts)
        same(counts.read(), np.bincount(digits, minlength=2**16), rows.key, n, shift)
    upper, least, lower = np.sort(keys)[[n - 1 - n // 8, n - 1 - n // 4, n - 1 - n // 2]]
    num_open = int(((lower <= keys) & (keys < upper)).sum())
    tiles = -(-n // 4096)
    arrays = [
        gpu.empty(count, dtype=dtype)
        for count, dtype in (
            *((64 * tiles, np.uint64), (tiles, np.int64), (tiles, np.int64), (tiles, np.int32)),
            *((num_open, np.uint64), (num_open, np.uint16)),
        )
    ]
    marks = Marks(*(each.address for each in arrays), num_open, None)
    gpu.run("MarkRows", rows=rows, lower=int(lower), upper=int(upper), marks=marks)
    same(np.sort(arrays[4].read()), np.sort(keys[(lower <= keys) & (keys < upper)]), n)
    wanted = keys >= least
    selected = gpu.empty(int(wanted.sum()), dtype=np.int64)
    weights = gpu.empty(int(wanted.sum()), dtype=np.float32)
    gpu.run(
        "KeepRows",
        rows=rows,
        least=int(least),
        marks=marks,
        selected=selected,
        weights=weights if classes else None,
        weight=1.75,
    )
    same(selected.read(), index[wanted], rows.key, n)
    if classes:
        factors = np.where(classes["is_safe"][wanted], 1.0, 1.75).astype(np.float32)
        same(weights.read(), factors, rows.key, n)


def check_info_batch(gpu: Gpu) -> None:
    for i, family, n, k in [*inputs(SCORES), (1, "normal", MANY[1], 60_000)]:
        scores = values(family, n)
        r = (0.5, 0.3, 0.99)[i % 3]
        dropped = n - k
        wanted = int(min(n, np.ceil(dropped / r)))
        is_exact = k > 0 and (dropped == 0 or dropped < wanted) and i % 2 == 0
        where, options = at(i)
        selected, weights = gpu.empty(n, dtype=np.int64), gpu.empty(n, dtype=np.float32)
        kept = gpu.empty(1, dtype=np.int64)
        gpu.run(
            "InfoBatch",
            scores=gpu.put(scores),
            n=n,
            drop_probability=r,
            num_kept=k if is_exact else -1,
            num_candidates=wanted if is_exact and dropped else 0,
            address=where,
            selected=selected,
            weights=weights,
            kept=kept,
        )
        exact = {"num_kept": k} if is_exact else {}
        indices, factors = reference.info_batch(scores, r, **exact, **options)
        same(kept.read(), np.array([len(indices)]), family, n, exact)
        same(selected.read(len(indices)), indices, family, n, exact)
        same(weights.read(len(indices)), factors, family, n, exact)
        gpu.free_all()


def check_order(gpu: Gpu) -> None:
    rng = np.random.default_rng(0)
    for i, n in enumerate([*SIZES[1:], 2**40 + 1]):
        start, stop = (0, n) if n < 10_000 else (n - 700, n - 3)
        where, options = at(i, gpu if i % 2 else None)
        order = gpu.empty(stop - start, dtype=np.int64)
        fields = {"n": n, "start": start, "stop": stop, "address": where}
        gpu.run("Order", **fields, purpose=reference.SUBSET, order=order)
        same(order.read(), reference.subset(n, start, stop, **options), n)
        places = gpu.empty(stop - start, dtype=np.int64)
        gpu.run("Places", **fields, purpose=reference.SUBSET, places=places)
        same(places.read(), reference.positions(n, start, stop, **options), n)
        gpu.free_all()
    for i, n in enumerate(SIZES[1:]):
        dtype = (np.int32, np.int64)[i % 2]
        samples = rng.integers(0, n, n).astype(dtype)
        where, options = at(i)
        start, stop = n // 3, n - n // 4
        fields = {
            "selected": gpu.put(samples),
            "selected_is_int32": dtype == np.int32,
            "n": n,
            "start": start,
            "stop": stop,
            "address": where,
            "purpose": reference.SHUFFLE,
        }
        order = gpu.empty(stop - start, dtype=np.int64)
        gpu.run("Order", **fields, order=order)
        wanted = reference.order(samples, start, stop, **options).astype(np.int64)
        same(order.read(), wanted, n)
        for row_bytes in (1, 3, 4, 48):
            rows = rng.integers(0, 256, (n, row_bytes), np.uint8)
            batch = gpu.empty(stop - start, row_bytes, dtype=np.uint8)
            faults = gpu.put([0, 0], np.int64)
            missing = 1 if i % 5 == 4 else 0  # the last row is missing
            gpu.run(
                "Gather",
                order=filled(CALLS["Order"], fields),
                rows=gpu.put(rows),
                num_rows=n - missing,
                row_bytes=row_bytes,
                batch=batch,
                faults=faults,
            )
            is_there = wanted < n - missing
            same(batch.read(), rows[wanted] * is_there[:, None].astype(np.uint8), n, row_bytes)
            num_faults = int((~is_there).sum())
            same(faults.read(), np.array([num_faults, n - 1 if num_faults else 0]), n)
        gpu.free_all()


def check_batch(gpu: Gpu) -> None:
    """Check rows and images gathered by index; the last index is out of range."""
    rng = np.random.default_rng(3)
    for n, b in ((1, 1), (33, 40), (300, 257)):
        index = np.append(rng.integers(0, n, b), n)
        there = gpu.put(index)
        for row_bytes in (1, 3, 4, 16, 48, 100):
            rows = rng.integers(0, 256, (n, row_bytes), np.uint8)
            batch, faults = gpu.empty(b + 1, row_bytes, dtype=np.uint8), gpu.put([0, 0], np.int64)
            gpu.run(
                "GatherRows",
                index=there,
                batch_size=b + 1,
                rows=gpu.put(rows),
                num_rows=n,
                row_bytes=row_bytes,
                batch=batch,
                faults=faults,
            )
            same(batch.read(), np.append(rows[index[:-1]], np.zeros_like(rows[:1]), 0), n)
            same(faults.read(), np.array([1, n]), n)
        gpu.free_all()
    for i, (crop, padding, is_reflected, flip, cutout) in enumerate(
        (
            ((8, 7), 0, False, 0.0, 0),
            ((8, 7), 2, False, 0.5, 0),
            ((5, 9), 3, True, 0.5, 3),
            ((1, 1), 0, False, 1.0, 1),
            ((12, 11), 2, False, 0.5, 40),
        )
    ):
        for channels, dtype in ((1, np.uint8), (3, np.uint8), (2, np.int16), (3, np.float64)):
            check_images(gpu, i, channels, dtype, crop, padding, is_reflected, flip, cutout)
    resize = (0.1, 1.0, 0.5, 2.0)
    jitter = (0.5, 1.5, 0.2, 3.0, 0.0, 2.0, -0.5, 0.5)
    for i, (crop, resized, jittered) in enumerate(
        (
            ((5, 4), (*resize, 1), ()),
            ((9, 12), (*resize, 0), ()),
            ((2, 35), (*resize, 1), jitter),
            ((8, 7), (), jitter),
            ((8, 7), (), (1, 1, 1, 1, 0.0, 2.0, -0.1, 0.1)),
        )
    ):
        for channels in (3,) if jittered else (1, 3):
            check_images(
                gpu, i, channels, np.uint8, crop, 0, False, 0.5, i, resize=resized, jitter=jittered
            )


def check_mixtures(gpu: Gpu) -> None:
    rng = np.random.default_rng(4)
    for i, n in enumerate((1, 1000, 2**32 - 1)):
        for alpha in (0.2, 1.0, 3.0):
            for sides in (None, (9, 16)):
                where, options = at(i, gpu if i % 2 else None)
                rows = rng.integers(0, n, 70)
                partners, shares = gpu.empty(70, dtype=np.int64), gpu.empty(70, dtype=np.float32)
                squares = gpu.empty(0 if sides is None else 70, 4, dtype=np.int64)
                gpu.run(
                    "DrawMixtures",
                    index=gpu.put(rows),
                    batch_size=70,
                    rule=MixRule(n, alpha, *(sides or (1, 1)), sides is not None),
                    address=where,
                    partners=partners,
                    shares=shares,
                    squares=None if sides is None else squares,
                )
                wanted = reference_images.mixtures(rows, n, alpha, sides, **options)
                same(partners.read(), wanted[0], n, alpha)
                same(shares.read(), wanted[1], n, alpha)
                if sides is not None:
                    same(squares.read(), wanted[2], n, alpha)
        gpu.free_all()


def strides_of(channels: int, height: int, width: int, last: bool) -> PixelStrides:
    if last:
        return PixelStrides(1, width * channels, channels)
    return PixelStrides(height * width, width, 1)


def check_images(
    gpu: Gpu,
    i: int,
    channels: int,
    dtype: Any,
    crop: tuple[int, int],
    padding: int,
    is_reflected: bool,
    flip: float,
    cutout: int,
    resize: tuple[float, ...] = (),
    jitter: tuple[float, ...] = (),
) -> None:
    box = BoxRule(*resize[:4], bool(resize[4])) if resize else BoxRule()
    lows, highs = jitter[::2], jitter[1::2]
    is_used = [pair != (1, 1) for pair in zip(lows[:3], highs[:3], strict=True)]
    is_used += [pair != (0, 0) for pair in zip(lows[3:], highs[3:], strict=True)]
    change = JitterRule(lows, highs, tuple(is_used)) if jitter else JitterRule()
    rng = np.random.default_rng([i, channels])
    n, b, height, width, fill = 20, 30, 8, 7, 5
    images = rng.integers(0, 100, (n, channels, height, width)).astype(dtype)
    index = np.append(rng.integers(0, n, b), n)
    where, options = at(i, gpu if i % 2 else None)
    alternates = i % 2 == 0
    made = [
        reference_images.image_of(
            images[j],
            crop=crop,
            padding=padding,
            is_reflected=is_reflected,
            flip_probability=flip,
            flip_alternates=alternates,
            cutout=cutout,
            fill=fill,
            resize=resize,
            jitter=jitter,
            sample=j,
            **options,
        )
        for j in index[:-1].tolist()
    ]
    wanted = np.stack([*made, np.full((channels, *crop), fill, dtype)])
    # Bytes may be looked up, and channels may come last in both the source and the batch.
    table = rng.integers(0, 2**16, (channels, 256)).astype(np.uint16)
    is_looked_up = dtype == np.uint8 and channels == 3
    if is_looked_up:
        wanted = table[np.arange(channels)[:, None, None], wanted]
    for from_last, to_last in ((False, False), (True, True)):
        stored = images.transpose(0, 2, 3, 1) if from_last else images
        shape = (b + 1, *crop, channels) if to_last else (b + 1, channels, *crop)
        batch = gpu.empty(*shape, dtype=wanted.dtype)
        faults = gpu.put([0, 0], np.int64)
        gpu.run(
            "GatherImages",
            index=gpu.put(index),
            batch_size=b + 1,
            rule=ImageRule(
                *(channels, height, width, *crop, padding, cutout),
                *(round(flip * 2**32), is_reflected, alternates),
            ),
            address=where,
            images=gpu.put(stored),
            num_images=n,
            **{"from": strides_of(channels, height, width, from_last)},
            to=strides_of(channels, *crop, to_last),
            pixel_bytes=np.dtype(dtype).itemsize,
            fill=int(np.array(fill, dtype).view(f"u{np.dtype(dtype).itemsize}")),
            values=gpu.put(table) if is_looked_up else None,
            value_bytes=2,
            batch=batch,
            faults=faults,
            is_resized=bool(resize),
            box=box,
            is_jittered=bool(jitter),
            jitter=change,
        )
        found = batch.read()
        same(found.transpose(0, 3, 1, 2) if to_last else found, wanted, i, channels, dtype)
        same(faults.read(), np.array([1, n]), i)
    if i % 2 == 0:
        gpu.free_all()


def check_rescored(gpu: Gpu) -> None:
    for i, family in enumerate(SCORES):
        for n in [*SIZES, MANY[0]]:
            scores = values(family, n)
            there = gpu.put(scores)
            mean, counts = gpu.empty(1, dtype=np.float64), gpu.empty(3, dtype=np.int64)
            gpu.run("ScoreMean", scores=there, n=n, mean=mean, counts=counts)
            wanted = reference.score_mean(scores)
            sums = gpu.empty(5, dtype=np.int64)
            gpu.run("ScoreSums", scores=there, n=n, sums=sums)
            kinds = [wanted.num_finite, wanted.num_nonfinite, wanted.num_saturated]
            same(sums.read()[2:], np.array(kinds), family, n)
            found = mean.read()
            same(np.isnan(found), [np.isnan(wanted.mean)], family, n)
            if not np.isnan(wanted.mean):
                same(found, np.array([wanted.mean]), family, n)
            same(counts.read(), np.array(kinds), family, n)
            weights = gpu.empty(n, dtype=np.float32)
            exponent, offset = ((0.5, 0.1), (0.0, 0.0), (2.0, 1e-3))[i % 3]
            gpu.run(
                "PowerWeights", scores=there, n=n, exponent=exponent, offset=offset, weights=weights
            )
            with np.errstate(all="ignore"):
                powers = reference_table.power_weights(scores, exponent, offset)
            same(weights.read(), powers, family, n)
            gpu.free_all()


def check_table(gpu: Gpu) -> None:
    rng = np.random.default_rng(1)
    families = ("normal", "few", "nan", "infinite", "denormal", "mixed", "any bits")
    for i, n in enumerate([1, 2, 31, 256, 3000]):
        scores, records = np.full(n, np.inf, np.float32), np.zeros((n, 4), np.int32)
        state, counts = np.zeros(n, np.int32), np.zeros(n, np.int32)
        there = [gpu.put(array) for array in (scores, records, state, counts)]
        faults, updates = gpu.put([0, 0], np.int64), gpu.put([0], np.int64)
        num_faults = num_updates = 0
        for j, b in enumerate((1, 2, 31, 129, 1000, 3000, 5000, 0, 4097)):
            index = rng.integers(0, n, b)
            bad = rng.random(b) < (0.01 if j % 3 == 2 else 0)
            index[bad] = n + 5
            losses = values(families[(i + j) % len(families)], b)
            loss_type = j % 4
            with np.errstate(all="ignore"):
                losses = losses.astype((np.float32, np.float64, np.float16, np.float32)[loss_type])
            stored = losses
            if loss_type == BFLOAT16:
                stored = (losses.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
                losses = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
            options = {"rule": j % 5, "alpha": (0.8, 1.0, 0.1)[i % 3], "c": 0.5}
            index_there = gpu.put(index)
            gpu.run(
                "Update",
                scores=there[0],
                records=there[1],
                n=n,
                index=index_there,
                losses=gpu.put(stored),
                loss_type=loss_type,
                batch_size=b,
                scoring=Scoring(**options),
                faults=faults,
                num_updates=None if j == 3 else updates,
            )
            num_updates += b > 0 and j != 3
            same(updates.read(), np.array([num_updates]), n, b)
            correct = rng.random(b) < 0.5
            gpu.run(
                "UpdateForgetting",
                state=there[2],
                n=n,
                index=index_there,
                correct=gpu.put(correct),
                batch_size=b,
                faults=faults,
            )
            used = b - b // 3
            gpu.run(
                "CountSelected",
                counts=there[3],
                n=n,
                selected=index_there,
                num_selected=b,
                num_used=gpu.put([used], np.int64),
                faults=faults,
            )
            good = ~bad
            with np.errstate(all="ignore"):
                reference_table.update(scores, records, index[good], losses[good], **options)
            reference_table.update_forgetting(state, index[good], correct[good])
            reference_table.count_selected(counts, index[:used][good[:used]])
            for array, mine in zip((scores, records, state, counts), there, strict=True):
                same(mine.read(), array, n, b)
            num_faults += 2 * int(bad.sum()) + int(bad[:used].sum())
            same(faults.read(), np.array([num_faults, n + 5 if num_faults else 0]), n, b)
        check_visit_bonus(gpu, there[1], records)
        gpu.free_all()


def check_reduce(gpu: Gpu) -> None:
    """Check all forms: a loss for each entry, rows with a mask, and sequences."""
    rng = np.random.default_rng(4)
    reductions = ("max", "mean", "sum")
    for i, b in enumerate([*SIZES, 20_000]):
        for form in range(3):
            family, number = SCORES[(i + form) % len(SCORES)], (i + form) % 3
            reduce, index = reductions[number], rng.integers(-9, (1, 40, 10**9)[i % 3], b)
            rows, given, there = LossRows(None, False, 1, b), {}, {}
            num_losses = b
            if form == 1:
                rows.width = num_losses = 0 if b > 4097 else 5
                num_losses *= b
                given["mask"] = rng.random((b, rows.width)) < 0.3
                there["mask"] = gpu.put(given["mask"])
            if form == 2:
                ends = np.append(0, np.cumsum(rng.integers(0, 4, b)))
                rows.offsets_are_int32 = i % 2 == 0
                given["cu_seqlens"] = ends.astype(np.int32 if i % 2 == 0 else np.int64)
                num_losses = int(ends[-1])
                offsets = gpu.put(given["cu_seqlens"])
                rows.offsets = offsets.address
            losses = values(family, num_losses)
            if form == 1:
                losses = losses.reshape(b, rows.width)
            loss_type = i % 3
            with np.errstate(all="ignore"):
                losses = losses.astype((np.float32, np.float64, np.float16)[loss_type])
            reduced, counts = gpu.empty(b, dtype=np.float32), gpu.empty(b, dtype=np.int64)
            num_samples = gpu.empty(1, dtype=np.int64)
            num_clamped, faults = gpu.put([7], np.int64), gpu.put([0, 0], np.int64)
            fields = {
                "losses": gpu.put(losses),
                "loss_type": loss_type,
                "num_losses": num_losses,
                "index": gpu.put(index),
                "reduction": number,
                "reduced": reduced,
                "counts": counts,
                "num_samples": num_samples,
                "num_clamped": num_clamped,
                "faults": faults,
            }
            gpu.run("ReduceByIndex", rows=rows, **fields, **there)
            with np.errstate(all="ignore"):
                wanted = reference_table.reduce_by_index(losses, index, reduce, **given)
            same(reduced.read(), wanted[0], family, b, form)
            same(counts.read(), wanted[1], family, b, form)
            same(num_samples.read(), np.array([wanted[2]]), family, b, form)
            same(num_clamped.read(), np.array([7 + wanted[3]]), family, b, form)
            same(faults.read(), np.array([0, 0]), family, b, form)
            if form == 2 and num_losses > 0:
                fields["num_losses"] = num_losses - 1
                gpu.run("ReduceByIndex", rows=rows, **fields)
                same(counts.read(), np.zeros(b, np.int64), family, b)
                same(faults.read(), np.array([1, num_losses]), family, b)
        gpu.free_all()


def check_visit_bonus(gpu: Gpu, there: DeviceArray, records: Array) -> None:
    n, c, t = len(records), 0.7, 50.0
    scores = gpu.empty(n, dtype=np.float32)
    log_t = float(reference.natural_log(t))
    gpu.run("VisitBonus", records=there, n=n, c=c, log_t=log_t, scores=scores)
    with np.errstate(all="ignore"):
        same(scores.read(), reference_table.ucb_visits(records, c, t), n)
    message = gpu.refused("VisitBonus", records=there, n=n, c=c, log_t=log_t, scores=scores)
    assert "rebuild dynloader with TORCH_CUDA_ARCH_LIST" in message, message
    assert gpu.last_error() == 0, "the error of a refused launch is still set"


def check_pass_scores(gpu: Gpu) -> None:
    rng = np.random.default_rng(5)
    for i, n in enumerate([1, 2, 31, 32, 257, 3000, MANY[0]]):
        passes = rng.integers(-3, 4, (n, 4), np.int32)
        passes.view(np.float32)[:, :2] = rng.integers(0, 20, (n, 2)) / 2
        scores = gpu.empty(n, dtype=np.float32)
        for rule in range(3):
            rate = PassRate(
                rule=rule,
                target=0.4,
                width=0.2,
                low=0.3,
                high=0.6,
                prior_right=1.0,
                prior_wrong=1.0 + i % 2,
                retry_easy=0.5,
                retry_hard=0.75,
                retire_below=0.1,
                retire_above=0.9,
                evidence=2,
            )
            address = Address(seed=2**63 + i, epoch=rule, epoch_at=None)
            gpu.run(
                "PassScores", passes=gpu.put(passes), n=n, rate=rate, address=address, scores=scores
            )
            wanted = reference_prompts.pass_scores(
                passes,
                rule=rule,
                target=0.4,
                width=0.2,
                low=0.3,
                high=0.6,
                prior=(1.0, 1.0 + i % 2),
                retry_easy=0.5,
                retry_hard=0.75,
                retire_below=0.1,
                retire_above=0.9,
                evidence=2,
                seed=2**63 + i,
                epoch=rule,
            )
            same(scores.read(), wanted, n, rule)
        gpu.free_all()


def check_spread(gpu: Gpu) -> None:
    rng = np.random.default_rng(2)
    for n in SIZES[1:]:
        k = n // 2
        selected = rng.permutation(n)[:k]
        factors = rng.random(k, np.float32)
        ascending = np.sort(selected)
        result, counts = gpu.empty(n, dtype=np.float32), gpu.put(np.zeros(n, np.int32))
        used = k - k // 4
        gpu.run(
            "Spread",
            values=gpu.put(factors),
            selected=gpu.put(selected),
            num_selected=k,
            num_used=gpu.put([used], np.int64),
            rest=1.0,
            n=n,
            result=result,
        )
        wanted = np.ones(n, np.float32)
        wanted[selected[:used]] = factors[:used]
        same(result.read(), wanted, n)
        faults = gpu.put([0, 0], np.int64)
        gpu.run(
            "CountSelected",
            counts=counts,
            n=n,
            selected=gpu.put(ascending),
            is_ascending=True,
            num_selected=k,
            faults=faults,
        )
        once = np.zeros(n, np.int32)
        once[ascending] = 1
        same(counts.read(), once, n)
        gpu.free_all()


def check_exchange(gpu: Gpu) -> None:
    rng = np.random.default_rng(4)
    for n in SIZES[1:]:
        records = rng.integers(0, 3, (n, 4), np.int32)
        known, scores = rng.integers(0, 3, n, np.int32), rng.random(n, np.float32)
        changed, count = gpu.empty(n, dtype=np.int64), gpu.empty(1, dtype=np.int64)
        there = [gpu.put(array) for array in (scores, records, known)]
        gpu.run(
            "ChangedRows",
            records=there[1],
            known_visits=there[2],
            n=n,
            changed=changed,
            count=count,
        )
        wanted = reference_table.changed_rows(records, known)
        same(count.read(), np.array([len(wanted)]), n)
        same(changed.read(len(wanted)), wanted, n)
        index = rng.permutation(n + 2)[: n // 2 + 1].astype(np.int32)
        new_scores = rng.random(len(index), np.float32)
        new_records = rng.integers(0, 3, (len(index), 4), np.int32)
        written = gpu.empty(len(index), dtype=np.bool_)
        given = (scores, records, known, index, new_scores, new_records)
        wins_ties = bool(n % 2)
        gpu.run(
            "WriteNewer",
            scores=there[0],
            records=there[1],
            n=n,
            index=gpu.put(index),
            new_scores=gpu.put(new_scores),
            new_records=gpu.put(new_records),
            known_visits=there[2],
            count=len(index),
            wins_ties=wins_ties,
            is_written=written,
        )
        same(written.read(), reference_table.write_newer(*given, wins_ties=wins_ties), n)
        for found, after in zip(there, given, strict=False):
            same(found.read(), after, n)
        gpu.free_all()


SUITES: dict[str, Callable[[Gpu], None]] = {
    "top_k": check_top_k,
    "epsilon_greedy": check_epsilon_greedy,
    "sample": check_sample,
    "info_batch": check_info_batch,
    "group": check_group,
    "order": check_order,
    "batch": check_batch,
    "mixtures": check_mixtures,
    "rescored": check_rescored,
    "table": check_table,
    "pass_scores": check_pass_scores,
    "spread": check_spread,
    "exchange": check_exchange,
    "reduce": check_reduce,
}


def main() -> None:
    library, suite, seed = sys.argv[1:]
    SUITES[suite](Gpu(Path(library), int(seed)))
    print(f"{num_equal} equal")


if __name__ == "__main__":
    main()
