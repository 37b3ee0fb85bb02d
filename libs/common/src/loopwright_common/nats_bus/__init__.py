"""The bus on NATS JetStream. The only package that imports nats, and of nats only the core protocol: JetStream is spoken as JSON.

bus          NatsBus: what services hold
connection   one connection that comes back by itself; requests that fail as soon as it is lost
streams      the streams of the table of subjects, declared and updated in place
publishing   acknowledged publishing, atomic batches
consuming    durable pull consumers
lease        one active consumer over all replicas
dead         dead letters
stores       buckets and objects
timers       scheduled messages
opening      from settings to a connected bus
"""

from loopwright_common.nats_bus.bus import NatsBus
from loopwright_common.nats_bus.opening import open_bus

__all__ = ["NatsBus", "open_bus"]
