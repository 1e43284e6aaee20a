"""The faults by name: each is caused once, and mended, by a function of the cluster."""

import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from tests.cluster.balancer import Passage
from tests.cluster.engine import Engine

from .cluster import Cluster, Node

__all__ = ["FAULTS", "Fault"]

# The lease of a node is 10 s: after that, the others consider a frozen node dead.
_LEASE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault and what it is allowed to do.

    With *lossy* acknowledged messages and sessions may be lost, which is counted.  With *quiet*
    nobody may see that a member has left.  With *patient* every second client waits for an engine
    that is away, and may not be disconnected, unless the fault *disconnects*.  With *keep_messages*
    the engine keeps so few of a room; then what a member missed must be told exactly.
    """

    cause: Callable[[Cluster, random.Random], Awaitable[None]]
    lossy: bool = False
    quiet: bool = False
    patient: bool = False
    disconnects: bool = False
    keep_messages: int | None = None
    replica: bool = False
    sentinel: bool = False


async def _nothing(cluster: Cluster, dice: random.Random) -> None:
    await trio.sleep(1)


async def _node_kill(cluster: Cluster, dice: random.Random) -> None:
    node = dice.choice(cluster.nodes)
    node.kill()
    await trio.sleep(dice.uniform(0, 2))
    await node.start()


async def _node_freeze(cluster: Cluster, dice: random.Random) -> None:
    await _frozen(dice.choice(cluster.nodes), dice.uniform(5, 8))


async def _node_freeze_long(cluster: Cluster, dice: random.Random) -> None:
    await _frozen(dice.choice(cluster.nodes), dice.uniform(_LEASE_SECONDS + 2, _LEASE_SECONDS + 3))


async def _node_freeze_half_minute(cluster: Cluster, dice: random.Random) -> None:
    await _frozen(dice.choice(cluster.nodes), 30)


async def _frozen(node: Node, seconds: float) -> None:
    node.signal(signal.SIGSTOP)
    try:
        await trio.sleep(seconds)
    finally:
        node.signal(signal.SIGCONT)


async def _engine_kill(cluster: Cluster, dice: random.Random) -> None:
    cluster.primary.kill()
    await trio.sleep(dice.uniform(0, 2))
    await cluster.primary.start()


async def _engine_kill_long(cluster: Cluster, dice: random.Random) -> None:
    cluster.primary.kill()
    await trio.sleep(dice.uniform(5, 8))
    await cluster.primary.start()


async def _engine_freeze(cluster: Cluster, dice: random.Random) -> None:
    cluster.primary.freeze()
    try:
        await trio.sleep(dice.uniform(2, 8))
    finally:
        cluster.primary.thaw()


def _wires(cluster: Cluster) -> list[Passage]:
    return [passage for node in cluster.nodes for passage in node.wire.passages]


async def _engine_cut(cluster: Cluster, dice: random.Random) -> None:
    """Cut or reset some node's connection to the engine, several times."""
    for _ in range(5):
        if passages := _wires(cluster):
            passage = dice.choice(passages)
            dice.choice((passage.cut, passage.reset))()
        await trio.sleep(dice.uniform(0, 0.5))


async def _engine_torn(cluster: Cluster, dice: random.Random) -> None:
    """End connections to the engine in the middle of a request."""
    for _ in range(5):
        if passages := _wires(cluster):
            dice.choice(passages).tear(dice.randint(1, 2000))
        await trio.sleep(dice.uniform(0, 0.5))


async def _engine_stall(cluster: Cluster, dice: random.Random) -> None:
    """Pass nothing between one node and the engine for a time."""
    passages = dice.choice(cluster.nodes).wire.passages[:]
    for passage in passages:
        passage.stall()
    await trio.sleep(dice.uniform(1, 7))
    for passage in passages:
        passage.resume()


async def _engine_late(cluster: Cluster, dice: random.Random) -> None:
    """What a node has sent to the engine arrives when its next connection is up."""
    await _late(dice.choice(cluster.nodes).wire.passages[:], dice)


async def _client_late(cluster: Cluster, dice: random.Random) -> None:
    """What clients have sent to a node arrives when they have resumed elsewhere."""
    passages = cluster.front.passages[:]
    await _late(dice.sample(passages, min(3, len(passages))), dice)


async def _late(passages: list[Passage], dice: random.Random) -> None:
    for passage in passages:
        passage.hold()
    await trio.sleep(dice.uniform(0.2, 0.8))
    for passage in passages:
        passage.detach()
    await trio.sleep(dice.uniform(0, 1.5))
    for passage in passages:
        await passage.deliver()


async def _client_cut(cluster: Cluster, dice: random.Random) -> None:
    """Cut, reset, tear and stall connections of clients."""
    for _ in range(5):
        if passages := cluster.front.passages:
            passage = dice.choice(passages)
            dice.choice((passage.cut, passage.reset, passage.stall, lambda p=passage: p.tear(50)))()
        await trio.sleep(dice.uniform(0, 0.5))


async def _failover(cluster: Cluster, dice: random.Random) -> None:
    """Promote a replica that has everything when the nodes are away from the engine."""
    old, new = cluster.primary, cluster.replica
    assert new is not None
    for node in cluster.nodes:
        node.wire.targets = []
    for passage in _wires(cluster):
        passage.reset()
    await trio.sleep(0.2)
    await new.in_sync()
    old.kill()
    await new.promote()
    cluster.use(new)
    await cluster.add_replica()


async def _failover_lost(cluster: Cluster, dice: random.Random) -> None:
    """Promote a replica that lacks the last moments."""
    old, new = cluster.primary, cluster.replica
    assert new is not None
    await new.promote()
    await trio.sleep(dice.uniform(0.2, 1))
    old.kill()
    cluster.use(new)
    await cluster.add_replica()


async def _sentinel(cluster: Cluster, dice: random.Random) -> None:
    """Kill the primary, and let a Sentinel promote its replica; the old one becomes a replica."""
    old, new = cluster.primary, cluster.replica
    assert new is not None
    old.kill()
    with trio.fail_after(60):  # earlier, nodes would be sent to the old one again
        while await cluster.told_by_sentinel() != new.port:
            await trio.sleep(0.1)
    await old.start()
    cluster.primary, cluster.replica = new, old
    with trio.fail_after(60):  # until then another failover has no replica to promote
        while not await _follows(old):
            await trio.sleep(0.1)


async def _follows(engine: Engine) -> bool:
    """Whether it is a replica that its primary feeds."""
    try:
        return (await engine.info("replication")).get("master_link_status") == "up"
    except trio.BrokenResourceError:  # a Sentinel that reconfigures it closes connections
        return False


async def _rolling_restart(cluster: Cluster, dice: random.Random) -> None:
    """Restart all nodes, one after the other, as an operator does: the balancer knows first."""
    for node in cluster.nodes:
        cluster.front.targets = [one.port for one in cluster.nodes if one is not node]
        await node.stop()
        await node.start()
        cluster.front.targets = [one.port for one in cluster.nodes]
        await trio.sleep(dice.uniform(0.5, 1))


async def _retention(cluster: Cluster, dice: random.Random) -> None:
    """Keep clients, and one node, away for longer than messages are kept."""
    passages = cluster.front.passages[:]
    wires = dice.choice(cluster.nodes).wire.passages[:]
    cluster.front.targets = []
    for passage in dice.sample(passages, len(passages) // 3):
        passage.cut()
    for passage in wires:
        passage.stall()
    await trio.sleep(dice.uniform(3, 5))
    for passage in wires:
        passage.resume()
    cluster.front.targets = [node.port for node in cluster.nodes]


async def _several(cluster: Cluster, dice: random.Random) -> None:
    """Cause two faults at the same time; those of failovers need everything else to be whole."""
    every = (
        _node_kill,
        _node_freeze,
        _engine_kill,
        _engine_freeze,
        _engine_cut,
        _engine_torn,
        _engine_stall,
        _engine_late,
        _client_cut,
        _client_late,
    )
    async with trio.open_nursery() as nursery:
        one, other = dice.sample(every, 2)
        nursery.start_soon(one, cluster, dice)
        await trio.sleep(dice.uniform(0, 1))
        if {one, other} != {_engine_kill, _engine_freeze} and {one, other} != {
            _node_kill,
            _node_freeze,
        }:
            nursery.start_soon(other, cluster, dice)


FAULTS = {
    "nothing": Fault(cause=_nothing, quiet=True),
    "node-kill": Fault(cause=_node_kill, quiet=True),
    "node-freeze": Fault(cause=_node_freeze, quiet=True),
    "node-freeze-long": Fault(cause=_node_freeze_long, patient=True, disconnects=True),
    "node-freeze-half-minute": Fault(
        cause=_node_freeze_half_minute, patient=True, disconnects=True
    ),
    "engine-kill": Fault(cause=_engine_kill, quiet=True, patient=True),
    "engine-kill-long": Fault(cause=_engine_kill_long, patient=True),
    "engine-freeze": Fault(cause=_engine_freeze, patient=True),
    "engine-cut": Fault(cause=_engine_cut, quiet=True, patient=True),
    "engine-torn": Fault(cause=_engine_torn, quiet=True, patient=True),
    "engine-stall": Fault(cause=_engine_stall, patient=True),
    "engine-late": Fault(cause=_engine_late, quiet=True, patient=True),
    "client-cut": Fault(cause=_client_cut, quiet=True),
    "client-late": Fault(cause=_client_late, quiet=True),
    "failover": Fault(cause=_failover, replica=True),
    "failover-lost": Fault(cause=_failover_lost, replica=True, lossy=True),
    # Losses are reported to the clients that are connected then: at least one must be.
    "sentinel": Fault(
        cause=_sentinel, replica=True, sentinel=True, lossy=True, patient=True, disconnects=True
    ),
    "retention": Fault(cause=_retention, keep_messages=20),
    "several": Fault(cause=_several),
    "rolling-restart": Fault(cause=_rolling_restart, quiet=True),
}
