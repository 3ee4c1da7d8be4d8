"""The suite that every adapter passes: subclass it, and give a ``subject`` fixture.

class TestMyRuntime(AdapterConformance):
    @pytest.fixture
    def subject(self) -> Subject: ...
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import safetensors_bytes
from tests.conformance.subject import Subject
from weightguard import Manifest, fingerprint
from weightguard.errors import IntegrityError, WeightguardError
from weightguard.guard import (
    Accounting,
    Adapter,
    Attachable,
    Guard,
    Incident,
    Incomplete,
    LiveTensor,
    Pace,
    Pinned,
    Settings,
    State,
    Writable,
)
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.schedule import BlockRef
from weightguard.scan.digest import BLOCK_BYTES

FLIPS = 60
"""Single-bit flips a subject, one at a time, beside those at the edges of every tensor."""

CLEAN_SECONDS = 1.0
PATIENCE = 60.0
"""Seconds that a busy machine is given for what an idle one does at once."""


def codes(guard: Guard) -> list[str]:
    return [incident.code for incident in guard.incidents if incident.code != "WG910"]


def live_bytes(adapter: Adapter) -> dict[str, bytes]:
    return {t.name: bytes(adapter.read(t.name, 0, t.nbytes)) for t in adapter.tensors()}


def flip(subject: Subject, name: str, bit: int) -> None:
    """Flip one bit of a tensor's live bytes."""
    old = subject.adapter.read(name, bit // 8, bit // 8 + 1)[0]
    subject.poke(name, bit // 8, bytes([old ^ 1 << bit % 8]))


def one_pass(guard: Guard) -> None:
    """Scrub in portions until as many bytes were verified as there are, from wherever it stands."""
    left = guard.status().pass_bytes
    while left > 0:
        left -= guard.scrub(3 * BLOCK_BYTES)


def answered(subject: Subject) -> None:
    """Run the forward pass that asks a device for what the next one judges, where there is one."""
    if any(tensor.distant for tensor in subject.adapter.tensors()):
        subject.run()


def quiet(**settings: object) -> Settings:
    return Settings(**{"on_incident": ("metrics", "repair"), **settings})  # type: ignore[arg-type]


def biggest(adapter: Adapter) -> LiveTensor:
    return max(adapter.tensors(), key=lambda tensor: tensor.nbytes)


class Copy:
    """A golden copy of live tensors, in memory."""

    def __init__(self, tensors: dict[str, bytes]):
        self._tensors = tensors

    def block(self, entry: TensorBaseline, ref: BlockRef) -> bytes:
        return self._tensors[ref.tensor][ref.start : ref.stop]


def attested(adapter: Adapter, folder: Path) -> Manifest:
    """Return a manifest of the live tensors as they are now."""
    checkpoint = {
        tensor.name: (
            tensor.dtype.name,
            tensor.shape,
            bytes(adapter.read(tensor.name, 0, tensor.nbytes)),
        )
        for tensor in adapter.tensors()
    }
    path = folder / "model.safetensors"
    path.write_bytes(safetensors_bytes(checkpoint))
    return fingerprint(path)


class AdapterConformance:
    """Tests of one adapter; see the module."""

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError

    @pytest.fixture
    def guard(self, subject: Subject) -> Guard:
        return Guard(subject.adapter, settings=quiet())

    # the protocol

    def test_lists_each_tensor_once(self, subject: Subject) -> None:
        tensors = subject.adapter.tensors()
        names = [name for tensor in tensors for name in (tensor.name, *tensor.aliases)]
        assert tensors
        assert len(set(names)) == len(names)
        spans = sorted((t.token.storage, t.token.storage + t.nbytes) for t in tensors if t.nbytes)
        for (_, stop), (start, _) in itertools.pairwise(spans):
            assert stop <= start, "two tensors share memory"

    def test_describes_what_it_lists(self, subject: Subject) -> None:
        for tensor in subject.adapter.tensors():
            assert subject.adapter.describe(tensor.name) == tensor
        assert subject.adapter.describe("no such tensor") is None

    def test_reads_any_range(self, subject: Subject) -> None:
        generator = random.Random(1)
        for tensor in subject.adapter.tensors():
            whole = bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes))
            assert len(whole) == tensor.nbytes
            for _ in range(5):
                start = generator.randint(0, tensor.nbytes)
                stop = generator.randint(start, tensor.nbytes)
                view = subject.adapter.read(tensor.name, start, stop)
                assert isinstance(view, memoryview)
                assert view.format == "B"
                assert bytes(view) == whole[start:stop]

    def test_reads_the_bytes_that_run(self, subject: Subject) -> None:
        """Every covered byte counts: a flip in it changes what the model computes."""
        clean = subject.run()
        name = biggest(subject.adapter).name
        flip(subject, name, 30)
        assert subject.run() != clean
        flip(subject, name, 30)
        assert subject.run() == clean

    def test_writing_leaves_the_token_alone(self, subject: Subject) -> None:
        if not isinstance(subject.adapter, Writable):
            return
        for tensor in subject.adapter.tensors():
            if tensor.nbytes:
                first = bytes(subject.adapter.read(tensor.name, 0, 1))
                subject.adapter.write(tensor.name, 0, first)
            assert subject.adapter.describe(tensor.name) == tensor

    def test_coverage_adds_up(self, subject: Subject, guard: Guard) -> None:
        coverage = guard.coverage()
        assert coverage.covered == sum(t.nbytes for t in subject.adapter.tensors())
        gaps = subject.adapter.gaps() if isinstance(subject.adapter, Incomplete) else ()
        assert coverage.gaps == tuple(gaps)
        assert (coverage.ratio == 1) == (not any(gap.nbytes for gap in gaps))

    # finding and repairing

    def test_a_sound_model_raises_nothing(self, subject: Subject, guard: Guard) -> None:
        for _ in range(3):
            one_pass(guard)
            subject.run()
        report = guard.check()
        assert report.complete
        assert report.findings == ()
        assert report.coverage.bytes_checked == guard.coverage().covered
        assert codes(guard) == ["WG916"] * len({gap.kind for gap in guard.coverage().gaps})
        assert guard.state is State.HEALTHY

    def test_every_flip_is_found_located_and_repaired_within_a_pass(
        self, subject: Subject, guard: Guard, claim: Callable[[str], None]
    ) -> None:
        generator = random.Random(2)
        tensors = [tensor for tensor in subject.adapter.tensors() if tensor.nbytes]
        edges = [(t, bit) for t in tensors for bit in (0, 8 * t.nbytes - 1)]
        weights = [tensor.nbytes for tensor in tensors]
        drawn = generator.choices(tensors, weights, k=FLIPS)
        flips = edges + [(t, generator.randrange(8 * t.nbytes)) for t in drawn]
        clean, output = live_bytes(subject.adapter), subject.run()
        for tensor, bit in flips:
            before = len(guard.incidents)
            flip(subject, tensor.name, bit)
            one_pass(guard)
            found = guard.incidents[before:]
            self._assert_found(found, tensor, bit, isinstance(subject.adapter, Writable))
            if not isinstance(subject.adapter, Writable):
                flip(subject, tensor.name, bit)
                one_pass(guard)
            assert guard.state is State.HEALTHY
        assert live_bytes(subject.adapter) == clean
        assert subject.run() == output
        claim(f"{type(self).__name__}: {len(flips)} of {len(flips)} flips found within one pass")

    def _assert_found(
        self, found: tuple[Incident, ...], tensor: LiveTensor, bit: int, repaired: bool
    ) -> None:
        assert [i.code for i in found] == ["WG901", "WG907" if repaired else "WG908"]
        location = found[0].finding.location
        assert (location.tensor, location.block) == (tensor.name, bit // 8 // BLOCK_BYTES)
        layout = tensor.layout
        assert location.row == bit // 8 // layout.row_bytes
        (element,) = found[0].finding.evidence["elements"]
        assert element["confirmed"]
        width = 8 * tensor.dtype.block_bytes
        if tensor.dtype.has_scalar_elements and tensor.dtype.block_elements == 1:
            assert element["flipped_bits"] == [bit % width]
        assert found[1].cause == found[0].number

    def test_damage_beyond_residues_is_said_once_and_never_written_over(
        self, subject: Subject, guard: Guard
    ) -> None:
        name = biggest(subject.adapter).name
        damaged = bytes(byte ^ 0xFF for byte in subject.adapter.read(name, 8, 40))
        clean = bytes(subject.adapter.read(name, 8, 40))
        subject.poke(name, 8, damaged)
        for _ in range(3):
            one_pass(guard)
        assert codes(guard)[-2:] == ["WG901", "WG908"]
        assert codes(guard).count("WG901") == 1
        assert bytes(subject.adapter.read(name, 8, 40)) == damaged
        assert guard.state is State.DEGRADED
        subject.poke(name, 8, clean)
        one_pass(guard)
        assert guard.state is State.HEALTHY

    def test_a_golden_copy_restores_what_residues_cannot(self, subject: Subject) -> None:
        if not isinstance(subject.adapter, Writable):
            return
        golden, output = Copy(live_bytes(subject.adapter)), subject.run()
        guard = Guard(subject.adapter, settings=quiet(), golden=golden)
        name = biggest(subject.adapter).name
        subject.poke(name, 100, bytes(4000))
        one_pass(guard)
        assert codes(guard)[-2:] == ["WG901", "WG907"]
        assert guard.incidents[-1].finding.evidence["source"] == "golden copy"
        assert subject.run() == output

    def test_a_damaged_golden_copy_is_not_used(self, subject: Subject) -> None:
        zeros = {name: bytes(len(data)) for name, data in live_bytes(subject.adapter).items()}
        guard = Guard(subject.adapter, settings=quiet(), golden=Copy(zeros))
        name = biggest(subject.adapter).name
        clean = bytes(subject.adapter.read(name, 100, 200))
        subject.poke(name, 100, b"\x55" * 100)
        one_pass(guard)
        assert codes(guard)[-2:] == ["WG901", "WG908"]
        assert bytes(subject.adapter.read(name, 100, 200)) == b"\x55" * 100 != clean

    # before the guard

    def test_damage_from_before_the_guard_is_healed_when_it_is_sealed(
        self, subject: Subject, tmp_path: Path
    ) -> None:
        if isinstance(subject.adapter, Accounting):
            return
        tensor, clean, output = biggest(subject.adapter), live_bytes(subject.adapter), subject.run()
        with attested(subject.adapter, tmp_path) as manifest:
            flip(subject, tensor.name, 8 * tensor.nbytes - 3)
            guard = Guard(subject.adapter, manifest, quiet())
        found, outcome = (i for i in guard.incidents if i.code != "WG916")
        assert (found.code, found.tensor, outcome.cause) == ("WG401", tensor.name, found.number)
        if isinstance(subject.adapter, Writable):
            assert outcome.code == "WG907"
            assert (live_bytes(subject.adapter), subject.run()) == (clean, output)
            assert guard.baseline.tensors[tensor.name].attestation == "attested"
            assert guard.check().findings == ()
            assert guard.metrics.value("weightguard_repairs_total") == 1  # type: ignore[attr-defined]
        else:
            assert (outcome.code, guard.state) == ("WG908", State.DEGRADED)

    @pytest.mark.parametrize("repairs", [True, False])
    def test_a_golden_copy_heals_what_residues_cannot_when_it_is_sealed(
        self, subject: Subject, tmp_path: Path, repairs: bool
    ) -> None:
        if isinstance(subject.adapter, Accounting) or not isinstance(subject.adapter, Writable):
            return
        tensor = max(subject.adapter.tensors(), key=lambda tensor: tensor.layout.rows)
        clean, output = live_bytes(subject.adapter), subject.run()
        settings = quiet(on_incident=("metrics", "repair") if repairs else ("metrics",))
        with attested(subject.adapter, tmp_path) as manifest:
            subject.poke(tensor.name, 0, bytes(3 * tensor.layout.row_bytes))
            guard = Guard(subject.adapter, manifest, settings, golden=Copy(clean))
        assert (subject.run() == output) == repairs
        told = [code for code in codes(guard) if code != "WG916"]
        assert told == (["WG401", "WG907"] if repairs else ["WG401"])
        assert guard.state is (State.HEALTHY if repairs else State.DEGRADED)

    def test_other_weights_are_not_overwritten_from_a_golden_copy(
        self, subject: Subject, tmp_path: Path
    ) -> None:
        if isinstance(subject.adapter, Accounting):
            return
        tensor = max(subject.adapter.tensors(), key=lambda tensor: tensor.layout.rows)
        clean = live_bytes(subject.adapter)
        others = bytes(byte ^ 1 for byte in clean[tensor.name])
        with attested(subject.adapter, tmp_path) as manifest:
            subject.poke(tensor.name, 0, others)
            guard = Guard(subject.adapter, manifest, quiet(), golden=Copy(clean))
        assert [code for code in codes(guard) if code != "WG916"] == ["WG401"]
        assert bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes)) == others

    # writers

    def test_an_undeclared_write_is_no_corruption(self, subject: Subject, guard: Guard) -> None:
        tensor = biggest(subject.adapter)
        before = bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes))
        after = bytes([before[0] ^ 1]) + before[1:]
        subject.rewrite(tensor.name, after)
        one_pass(guard)
        one_pass(guard)
        assert codes(guard)[-1:] == ["WG902"]
        assert {"WG901", "WG907"}.isdisjoint(codes(guard))
        assert bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes)) == after
        assert guard.state is State.DEGRADED
        subject.rewrite(tensor.name, before)
        one_pass(guard)
        one_pass(guard)
        assert guard.state is State.HEALTHY

    def test_equal_bytes_written_again_are_nothing(self, subject: Subject, guard: Guard) -> None:
        for tensor in subject.adapter.tensors():
            data = bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes))
            subject.rewrite(tensor.name, data)
        one_pass(guard)
        one_pass(guard)
        assert guard.state is State.HEALTHY
        # the new tokens are known by now: what changes under them is corruption again
        flip(subject, biggest(subject.adapter).name, 9)
        one_pass(guard)
        assert "WG901" in codes(guard)
        assert "WG902" not in codes(guard)

    def test_a_declared_update_is_sealed(self, subject: Subject, guard: Guard) -> None:
        tensor = biggest(subject.adapter)
        data = bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes))
        with guard.update():
            assert guard.state is State.SEALING
            subject.rewrite(tensor.name, bytes([data[0] ^ 3]) + data[1:])
            assert guard.scrub(BLOCK_BYTES) == 0
            assert not guard.check().complete
        one_pass(guard)
        assert guard.state is State.HEALTHY
        assert codes(guard)[-1] == "WG903"
        flip(subject, tensor.name, 5)
        one_pass(guard)
        assert "WG901" in codes(guard)

    def test_an_update_that_fails_leaves_the_baseline(self, subject: Subject, guard: Guard) -> None:
        tensor = biggest(subject.adapter)
        data = bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes))

        def fails_halfway() -> None:
            with guard.update():
                subject.rewrite(tensor.name, bytes([data[0] ^ 3]) + data[1:])
                raise KeyError

        with pytest.raises(KeyError):
            fails_halfway()
        one_pass(guard)
        assert codes(guard)[-1] == "WG902"

    def test_updates_race_with_scrubbing_and_requests(self, subject: Subject) -> None:
        tensor = biggest(subject.adapter)
        data = bytes(subject.adapter.read(tensor.name, 0, tensor.nbytes))
        with Guard(subject.adapter, settings=quiet(pace=Pace(1 << 40))) as guard:
            for turn in range(8):
                with guard.update():
                    subject.rewrite(tensor.name, bytes([data[0] ^ turn]) + data[1:])
                subject.run()
                time.sleep(0.01)
            assert guard.check().findings == ()
        assert set(codes(guard)) - {"WG916"} == {"WG903"}

    # load, threads, processes

    def test_no_false_alarm_under_load(self, subject: Subject) -> None:
        stop = threading.Event()
        outputs: set[bytes] = set()

        def serve() -> None:
            while not stop.is_set():
                outputs.add(subject.run())

        def read() -> None:
            while not stop.is_set():
                live_bytes(subject.adapter)

        with Guard(
            subject.adapter, settings=quiet(pace=Pace(1 << 40), step_bytes=BLOCK_BYTES)
        ) as guard:
            threads = [threading.Thread(target=target) for target in (serve, serve, read)]
            for thread in threads:
                thread.start()
            time.sleep(CLEAN_SECONDS)
            ends = time.monotonic() + PATIENCE
            while guard.status().passes <= 2 and time.monotonic() < ends:
                time.sleep(0.02)
            stop.set()
            for thread in threads:
                thread.join()
            assert guard.status().passes > 2
            assert guard.state is State.HEALTHY
            assert set(codes(guard)) <= {"WG916"}
        assert len(outputs) == 1

    def test_the_background_thread_finds_and_repairs(self, subject: Subject) -> None:
        output = subject.run()
        found = threading.Event()
        settings = quiet(pace=Pace(1 << 40), on_incident=("repair", lambda incident: found.set()))
        with Guard(subject.adapter, settings=settings):
            found.clear()
            flip(subject, biggest(subject.adapter).name, 77)
            assert found.wait(20)
            if isinstance(subject.adapter, Writable):
                assert subject.run() == output

    def test_a_forked_child_goes_on_guarding(self, subject: Subject) -> None:
        with Guard(subject.adapter, settings=quiet(pace=Pace(1 << 40))) as guard:
            child = os.fork()
            if child == 0:
                try:
                    os._exit(_child(subject, guard))
                finally:
                    os._exit(2)  # the child must never go on as a second test run
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert "WG901" not in codes(guard)

    def test_pickling_is_refused(self, guard: Guard) -> None:
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(guard)

    # reactions in the forward pass

    def test_a_forward_pass_pays_for_checks_and_raises(self, subject: Subject) -> None:
        if not isinstance(subject.adapter, Attachable):
            return
        settings = quiet(step_bytes=64 * BLOCK_BYTES, on_incident=("metrics", "raise"))
        name = biggest(subject.adapter).name
        with Guard(subject.adapter, settings=settings):
            clean = subject.run()
            flip(subject, name, 4)
            answered(subject)
            for _ in range(2):
                with pytest.raises(IntegrityError) as caught:
                    subject.run()
                assert caught.value.report.findings[0].rule == "WG901"
            flip(subject, name, 4)
            assert subject.run() == clean
        flip(subject, name, 4)
        subject.run()  # nobody watches any more
        flip(subject, name, 4)

    def test_pinned_bytes_are_looked_at_before_every_pass(self, subject: Subject) -> None:
        if not isinstance(subject.adapter, Attachable):
            return
        name = biggest(subject.adapter).name
        output = subject.run()
        with Guard(subject.adapter, settings=quiet(on_incident=("repair",))) as guard:
            guard.pin([Pinned(name, 4, 8)])
            subject.run()
            flip(subject, name, 40)
            answered(subject)
            repaired = subject.run()
            assert codes(guard)[-2] == "WG901"
            if isinstance(subject.adapter, Writable):
                assert repaired == output

    def test_raise_before_repair_stops_at_every_incident(self, subject: Subject) -> None:
        if not isinstance(subject.adapter, Attachable):
            return
        name = biggest(subject.adapter).name
        orders = {True: ("raise", "repair"), False: ("repair", "raise")}
        for stops, order in orders.items():
            settings = quiet(step_bytes=64 * BLOCK_BYTES, on_incident=order)
            with Guard(subject.adapter, settings=settings) as guard:
                clean = subject.run()
                flip(subject, name, 4)
                answered(subject)
                if stops or not isinstance(subject.adapter, Writable):
                    with pytest.raises(IntegrityError, match=r"WG901") as caught:
                        subject.run()
                    assert caught.value.report.findings[0].rule == "WG901"
                if isinstance(subject.adapter, Writable):
                    assert subject.run() == clean
                    assert guard.state is State.HEALTHY
                else:
                    flip(subject, name, 4)
                    answered(subject)
                    assert subject.run() == clean

    def test_quarantine_ends_with_a_repair(self, subject: Subject) -> None:
        states: list[State] = []
        settings = quiet(on_incident=("quarantine", lambda _: states.append(guard.state), "repair"))
        guard = Guard(subject.adapter, settings=settings)
        states.clear()
        flip(subject, biggest(subject.adapter).name, 3)
        one_pass(guard)
        assert states[0] is State.QUARANTINED
        repaired = isinstance(subject.adapter, Writable)
        assert guard.state is (State.HEALTHY if repaired else State.QUARANTINED)

    @pytest.mark.parametrize("error", [ValueError("no such pager"), SystemExit(3)])
    def test_a_callback_that_raises_stops_nothing(
        self, subject: Subject, error: BaseException
    ) -> None:
        def broken(incident: Incident) -> None:
            if incident.code == "WG901":  # which the guard's own thread comes upon
                raise error

        guard = Guard(subject.adapter, settings=quiet(on_incident=(broken, "repair")))
        flip(subject, biggest(subject.adapter).name, 3)
        background = threading.Thread(target=one_pass, args=(guard,))
        background.start()
        background.join()
        assert "WG912" in codes(guard)
        assert codes(guard)[-1] in ("WG907", "WG908", "WG912")
        if isinstance(subject.adapter, Writable):
            assert guard.state is State.HEALTHY

    def test_a_closed_guard_says_so(self, guard: Guard) -> None:
        guard.close()
        for use in (guard.start, guard.check, guard.scrub):
            with pytest.raises(WeightguardError, match="closed"):
                use()
        guard.step()  # a forward pass that was on its way must not fail
        status = guard.status()
        assert (status.state, status.ready) == ("closed", False)

    def test_passes_are_counted(self, guard: Guard) -> None:
        assert (guard.status().passes, guard.status().last_full_pass) == (0, None)
        guard.check()
        one_pass(guard)
        assert guard.status().passes == 2
        assert guard.status().last_full_pass is not None


def _child(subject: Subject, guard: Guard) -> int:
    """In the forked child: damage this process's copy of the model, and wait for the guard."""
    flip(subject, biggest(subject.adapter).name, 12)
    for _ in range(400):
        if "WG901" in codes(guard):
            return 0
        time.sleep(0.02)
    return 1
