"""State that stays where the kernels work: single streams, and pools of independent ones."""

from cylstm.streams.network import NetworkStream
from cylstm.streams.network_pool import NetworkPool
from cylstm.streams.pool import PoolFullError, StreamPool
from cylstm.streams.state_rows import StateStatistics
from cylstm.streams.stream import Stream

__all__ = [
    "NetworkPool",
    "NetworkStream",
    "PoolFullError",
    "StateStatistics",
    "Stream",
    "StreamPool",
]
