"""What the ledger and the timeline say of calls that were cut off, lost, cancelled, refused, or done by a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lanterne.algorithms import Drop, FedAvg, FedBuff, Salf
from lanterne.errors import ProtocolError
from lanterne.fleet import Device, Fleet, Server
from lanterne.protocol import All, Deadline, Dispatch, First, Gather, Pass, Request, exchange
from lanterne.runtime import restore, snapshot
from lanterne.runtime.ledger import Ledger
from lanterne.testing import simulate, tiny_problem, uneven_fleet
from runtime.laboratory import FLEET, METHODS, Lab, W, ask, laboratory, simulator_of
from runtime.toys import ToySplit

WORK = [Pass("forward", 0, 3), Pass("backward", 0, 3)]
BYTES = W.nbytes


def units_of(simulator: Any) -> list[float]:
    """FLOPs up to the end of each unit of `WORK`."""
    return [0.0, *map(float, simulator.pricing.work(WORK).cumulative)]


def device_for(units: float) -> Fleet:
    """One device that needs a second for its download, has no latency, and does `units` FLOPs in a second."""
    return Fleet([Device(down=float(BYTES), up=float(BYTES), flops=units)])


# ------------------------------------------------------------------------------------------------ cut off
def test_a_partial_reply_costs_the_units_that_were_done_and_wastes_the_seconds_after_them() -> None:
    problem = tiny_problem(1)
    w = problem.w.nbytes

    def run(deadline: float) -> Any:
        fleet = Fleet([Device(flops=1e4, down=w / 0.5, up=w / 0.5)])
        return simulate(lambda s: Salf(stack=s, lr=0.3, deadline=deadline), problem, fleet, 1)[1]

    done = units_of(run(100.0))
    work = run(100.0).pricing.work(WORK)
    assert run(100.0).ledger.total.flops == done[-1]
    # Half of unit 5 is done when the device has to stop and send the layers of the first two backward units.
    sent = (problem.w.numel() - problem.stack.edges[1]) * 8 + 8
    deadline = 0.5 + (done[5] + 0.5 * work.flops[5]) / 1e4 + sent / (w / 0.5)
    simulator = run(deadline)
    account = simulator.ledger[0]
    assert (simulator.timeline[0]["outcome"], simulator.timeline[0]["units"]) == ("partial", 5)
    assert account.flops == done[5] < done[-1]
    assert account.wasted == pytest.approx(0.5 * work.flops[5] / 1e4, rel=1e-9)
    assert account.flops_wasted == 0.0
    assert account.busy == pytest.approx(deadline, rel=1e-12)


def test_bytes_of_a_download_that_is_cut_off_are_counted_in_proportion() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(0, passes=WORK)])
        yield Gather(Deadline(0.25), late="cancel")
        return state

    simulator = laboratory(script, device_for(1e3))
    assert (simulator.ledger[0].down, simulator.ledger[0].up) == (BYTES // 4, 0)
    assert simulator.ledger.total.bytes == {"model_down": BYTES // 4}
    assert simulator.timeline[0]["units"] == 0


def test_a_cancelled_call_has_done_the_units_that_it_had_finished() -> None:
    probe = laboratory(lambda s, c: (yield from exchange([ask(0, passes=WORK)])) and s, device_for(1.0))
    done = units_of(probe)

    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(0, passes=WORK)])
        yield Gather(Deadline(1.0 + 0.5), late="cancel")
        return state

    # In the half second after its download it does four units and half of the fifth.
    flops = 2 * (done[4] + (done[5] - done[4]) / 2)
    simulator = laboratory(script, device_for(flops))
    record = simulator.timeline[0]
    assert (record["outcome"], record["units"], record["of"]) == ("cancelled", 4, 6)
    account = simulator.ledger[0]
    assert account.flops == account.flops_wasted == done[4]
    assert (account.down, account.up) == (BYTES, 0)
    assert account.wasted == account.busy == 1.5


def test_bytes_of_an_upload_that_is_cut_off_are_counted_in_proportion() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(0)])
        yield Gather(Deadline(1.75), late="cancel")
        return state

    account = laboratory(script, device_for(1.0)).ledger[0]
    assert (account.down, account.up) == (BYTES, 3 * BYTES // 4)


def test_a_lost_call_has_done_and_moved_what_it_had_by_then() -> None:
    """The device leaves a second after the download: the timeline says which units it had finished."""
    probe = laboratory(lambda s, c: (yield from exchange([ask(0, passes=WORK)])) and s, device_for(1.0))
    done = units_of(probe)
    flops = done[2] + (done[3] - done[2]) / 2
    device = replace(device_for(flops).devices[0], available=((0.0, 2.0), (50.0, 100.0)))

    def script(state: Any, cohort: Any) -> Any:
        (reply,) = yield from exchange([ask(0, passes=WORK)])
        assert (reply.outcome, reply.at) == ("lost", 5.0)
        return state

    simulator = laboratory(script, Fleet([device], detection=3.0))
    record, account = simulator.timeline[0], simulator.ledger[0]
    assert (record["outcome"], record["units"], record["of"]) == ("lost", 2, 6)
    assert account.flops == account.flops_wasted == done[2]
    assert account.busy == account.wasted == 2.0
    assert (account.down, account.up) == (BYTES, 0)
    leaves = replace(device_for(1e9).devices[0], available=((0.0, 1.5), (50.0, 100.0)))
    early = laboratory(script, Fleet([leaves], detection=3.5)).ledger[0]
    assert early.up == pytest.approx(BYTES / 2, abs=8)


def test_a_device_that_never_received_the_model_sends_nothing() -> None:
    problem = tiny_problem(2)
    slow = Device(flops=1e9, down=problem.w.nbytes / 10.0)
    fleet = Fleet([Device(flops=1e9), slow])
    _, simulator = simulate(lambda s: Salf(stack=s, lr=0.3, deadline=1.0, p="zero"), problem, fleet, 1)
    late = next(r for r in simulator.timeline if r["client"] == 1)
    assert (late["outcome"], late["arrived"], late["units"]) == ("lost", 1.0, 0)
    account = simulator.ledger[1]
    assert (account.up, account.flops, account.busy, account.wasted) == (0, 0.0, 1.0, 1.0)
    assert account.down == problem.w.nbytes // 10


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_fails_has_done_all_of_its_work(seed: int) -> None:
    """Also where a difference of two sums of times misses its end by a rounding."""
    fleet = replace(uneven_fleet(failure=1.0), seed=seed)
    fleet = replace(fleet, devices=[replace(d, latency=0.0) for d in fleet.devices])
    _, simulator = simulate(METHODS["fedavg"], tiny_problem(), fleet, 8)
    assert {r["outcome"] for r in simulator.timeline} == {"failed"}
    assert {r["units"] for r in simulator.timeline} == {12}
    assert simulator.ledger.total.flops == simulator.ledger.total.flops_wasted


@pytest.mark.parametrize("name", ["fedavg", "salf", "fedbuff", "split"])
@pytest.mark.parametrize("storm", [{"dropout": 0.4}, {"failure": 0.4}, {"memory": 100.0}])
def test_the_timeline_and_the_ledger_agree_on_who_was_busy(name: str, storm: dict[str, float]) -> None:
    """Of a device that went away, the timeline tells when it stopped and when that was noticed."""
    fleet = replace(uneven_fleet(**storm), detection=0.05)
    _, simulator = simulate(METHODS[name], tiny_problem(), fleet, 4)
    for client in range(6):
        records = [r for r in simulator.timeline if r["client"] == client]
        for r in records:
            assert r["start"] <= r["downloaded"] <= r["computed"] <= r["stopped"] <= r["arrived"]
        busy = sum(r["stopped"] - r["start"] for r in records)
        assert busy == pytest.approx(simulator.ledger[client].busy if records else 0.0, rel=1e-9)


def test_latency_is_no_time_in_which_bytes_travel() -> None:
    """Of a second of latency and a second of download, a quarter of the bytes is there after a second and a quarter."""
    fleet = Fleet([Device(latency=1.0, down=float(BYTES), up=float(BYTES))])

    def script(until: float) -> Any:
        def run(state: Any, cohort: Any) -> Any:
            yield Dispatch([ask(0)])
            yield Gather(Deadline(until), late="cancel")
            return state

        return run

    moved = [(a.down, a.up) for t in (0.5, 1.25, 2.5, 3.75) if (a := laboratory(script(t), fleet).ledger.total)]
    assert moved == [(0, 0), (BYTES // 4, 0), (BYTES, 0), (BYTES, 3 * BYTES // 4)]


def test_a_unit_that_ends_in_the_very_moment_is_done() -> None:
    fleet = Fleet([Device(flops=float(units_of(laboratory(lambda s, c: (yield Gather()) or s, FLEET))[2]))])

    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([ask(0, passes=WORK)])
        yield Gather(Deadline(1.0), late="cancel")
        return state

    assert laboratory(script, fleet).timeline[0]["units"] == 2


# ------------------------------------------------------------------------------------------------ who pays
def test_a_servers_work_is_in_its_own_account() -> None:
    fleet = replace(uneven_fleet(), server=Server(flops=1e6))
    _, simulator = simulate(lambda s: ToySplit(s), tiny_problem(), fleet, 2)
    ledger = simulator.ledger
    clients = [ledger[to] for to in ledger if isinstance(to, int)]
    servers = [ledger[to] for to in ledger if isinstance(to, tuple)]
    assert len(clients) == len(servers) == 6
    assert ledger.total.flops == pytest.approx(sum(a.flops for a in clients), rel=1e-12)
    assert ledger.total.busy == pytest.approx(sum(a.busy for a in clients), rel=1e-12)
    assert all(a.flops > 0 and a.busy > 0 and not a.bytes for a in servers)
    assert all(a.static == 0 for a in servers)


def test_silent_work_is_not_wasted_though_nobody_reads_its_reply() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([Request(0, "put", {"w": W}, silent=True), ask(1), ask(2)])
        yield Gather(Deadline(100.0), of=[])
        yield from exchange([ask(0)])
        return state

    ledger = laboratory(script, FLEET).ledger
    assert (ledger[0].busy, ledger[0].wasted) == (2.0, 0.0)


def test_a_hand_off_counts_in_both_directions() -> None:
    ledger = Ledger()
    ledger.carry(3, "handoff", "up", 70)
    ledger.carry(5, "handoff", "down", 70)
    assert (ledger.total.up, ledger.total.down) == (70, 70)
    assert (ledger[3].up, ledger[3].down, ledger[5].up, ledger[5].down) == (70, 0, 0, 70)
    assert ledger.total.bytes == {"handoff": 140}


# ------------------------------------------------------------------------------------------------ memory
def test_a_device_with_a_byte_too_little_refuses_and_one_with_just_enough_does_not() -> None:
    problem = tiny_problem(1)
    run = lambda memory: simulate(METHODS["salf"], problem, Fleet([Device(memory=memory)]), 1)[1]  # noqa: E731
    static, working = run(1e9).pricing.memory(WORK, 0)
    assert working > 0
    enough = run(float(static + working))
    assert enough.timeline[0]["outcome"] == "complete"
    assert (enough.ledger[0].static, enough.ledger[0].working) == (static, working)
    assert enough.ledger.total.working == working
    little = run(float(static + working - 1))
    assert little.timeline[0]["outcome"] == "refused"
    assert not little.ledger[0].bytes


@pytest.mark.parametrize("method", [FedAvg, Drop, FedBuff, Salf])
@pytest.mark.parametrize(("momentum", "kept", "vectors"), [(0.0, False, 2), (0.5, False, 3), (0.5, True, 3)])
def test_a_velocity_is_in_static_memory_wherever_it_lives(
    method: Any, momentum: float, kept: bool, vectors: int
) -> None:
    problem = tiny_problem()
    for rounds in (1, 2):
        _, simulator = simulate(
            lambda s: method(stack=s, momentum=momentum, keep_momentum=kept), problem, uneven_fleet(), rounds
        )
        assert simulator.ledger.total.static == vectors * problem.w.nbytes


def test_a_state_that_is_given_up_was_held_until_then() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield from exchange([Request(0, "put", {"w": W})])
        yield from exchange([Request(0, "clear")])
        return state

    simulator = laboratory(script, FLEET)
    assert not simulator.numerics.states[0]
    assert simulator.ledger[0].static == 8
    first = laboratory(lambda s, c: (yield from exchange([Request(0, "clear")])) and s, FLEET)
    assert first.ledger[0].static == 0


# ------------------------------------------------------------------------------------------------ other networks
def test_a_pass_may_name_a_network_and_a_number_of_samples() -> None:
    from lanterne.learn import Task
    from lanterne.runtime.pricing import Pricing
    from lanterne.testing.problems import tiny_cnn, tiny_mlp

    data = tiny_problem().data
    main, head = tiny_cnn(), tiny_mlp()
    pricing = Pricing({}, Task(main), 4, torch.float64, data.x, data.y, {"head": head})
    alone = Pricing({}, Task(head), 4, torch.float64, data.x, data.y)
    both = [Pass("forward", 0, 3), Pass("backward", 0, 3)]
    named = [p._replace(network="head", samples=7) for p in both]
    assert pricing.work(named).flops == tuple(f / 4 * 7 for f in alone.work(both).flops)
    static, working = alone.memory(both, 0)
    assert pricing.memory(named, 11) == (static + 11, working // 4 * 7)
    # Blocks of equal number of two networks are two blocks.
    mixed = pricing.memory([Pass("forward", 0, 1), Pass("forward", 0, 1, network="head")], 0)
    assert mixed.static == 8 * (pricing.costs()[0].parameters + alone.costs()[0].parameters)
    with pytest.raises(ProtocolError, match="names a network"):
        pricing.work([Pass("forward", 0, 1, network="tail")])


def test_a_server_has_no_deadline_to_keep() -> None:
    def script(state: Any, cohort: Any) -> Any:
        yield Dispatch([Request(("server", 0), "echo", {"w": W}, deadline=1.0)])
        return state

    with pytest.raises(ProtocolError, match="only devices are cut off"):
        laboratory(script, FLEET)


def test_what_is_computed_ahead_is_bounded_states_included() -> None:
    """Replies of eight bytes with states of eight: two of them are more than one reply's worth."""
    waves = {}
    for bound in (0, 8, 16, 1 << 20):

        def script(state: Any, cohort: Any) -> Any:
            yield Dispatch([Request(c, "count") for c in range(3)])
            for _ in range(3):
                yield Gather(First(1))
            return state

        fleet = Fleet([Device(latency=1.0 + c) for c in range(3)])
        waves[bound] = laboratory(script, fleet, unread_bytes=bound).numerics.waves
    assert waves == {0: 3, 8: 3, 16: 3, 1 << 20: 1}


def test_what_is_computed_for_others_only_is_not_counted_as_unread() -> None:
    """A chain across two rounds: its first reply arrives unread in one, and is taken in during the next."""

    def script(state: Any, cohort: Any) -> Any:
        yield Gather(All())
        first = ask(0)
        yield Dispatch([first, Request(1, "echo", {"w": first["out"]})])
        yield Gather(Deadline(1.5))
        return state

    lab = Lab(script)
    simulator, unread = simulator_of(lab, FLEET), []
    for _ in range(6):
        simulator.round(lab, W)
        unread.append(simulator.numerics.unread)
    assert max(unread) == min(unread[1:])


def test_when_a_device_went_away_is_known_after_a_restart() -> None:
    fleet = Fleet([Device(down=float(BYTES) / 8, available=((0.0, 1.5), (90.0, 99.0)))], detection=50.0)

    def script(state: Any, cohort: Any) -> Any:
        if cohort.round == 0:
            yield Dispatch([ask(0)])
            yield Gather(Deadline(1.0))
        else:
            yield Gather(All())
        return state

    busy = []
    for resumed in (False, True):
        lab = Lab(script)
        simulator = simulator_of(lab, fleet)
        simulator.round(lab, W)
        if resumed:
            snap, simulator = snapshot(simulator), simulator_of(lab, fleet)
            restore(simulator, snap)
        simulator.round(lab, W)
        busy.append(simulator.ledger[0].busy)
    assert busy == [1.5, 1.5]
