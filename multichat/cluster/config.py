"""How a node takes part in a cluster."""

from dataclasses import dataclass, field

from multichat.backend.events import MAX_BANS, MAX_TOPICS
from multichat.cluster.changes import Settings
from multichat.cluster.connection import ConnectionConfig
from multichat.cluster.directory import DirectoryConfig
from multichat.journal.retention import Retention

__all__ = ["ClusterConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How a node takes part in a cluster.

    *node* is the node's name; if it is empty, a random one is used.  A start fails if the node has
    not joined the cluster *start_seconds* after it was connected to the engine.  After
    *unavailable_seconds* without the engine nothing can be decided.  *retention*, *directory* and
    the limits of accounts, topics and bans should be the same on all nodes.
    """

    connection: ConnectionConfig
    node: str = ""
    directory: DirectoryConfig = field(default_factory=lambda: DirectoryConfig(settings=Settings()))
    retention: Retention = field(default_factory=Retention)
    start_seconds: float = 20.0
    unavailable_seconds: float = 3.0
    max_accounts: int = 10_000
    max_topics: int = MAX_TOPICS
    max_bans: int = MAX_BANS
