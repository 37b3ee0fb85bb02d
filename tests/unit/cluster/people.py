"""A seeded stream of what people write and what machines report about the same things: many pairs in it are hard to tell."""

import random
from datetime import timedelta

from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_common.contracts.signals import Signal
from loopwright_common.testing.memory_bus import MemoryBus

from tests.unit.cluster.conftest import START, Flow

PARTS = (
    "billing page", "login form", "export of invoices", "search box", "dark theme", "upload of pictures", "mail digest", "time zone menu",
    "address book", "order history",
)  # fmt: skip
DOES = (
    "is slow", "shows nothing", "forgets what I typed", "fails with an error", "shows the wrong total", "hangs for a minute",
    "loses the last line", "prints twice", "ignores the filter", "opens the wrong page",
)  # fmt: skip
WHEN = (
    "after a reload", "on my phone", "since the update", "with many items", "when I am logged out", "in the evening", "for a new customer",
    "with an empty field", "behind a proxy", "in French",
)  # fmt: skip
NAMES = tuple(
    f"{verb}_{noun}"
    for verb in ("resolve", "render", "flush", "merge", "parse", "queue")
    for noun in ("cycle", "totals", "ledger", "cursor", "batch", "digest")
)


class Letters(HashingEmbedding):
    """The stand-in for the embedding, taken for a real one: so the matcher speaks, and a test needs no model."""

    name = "letters"
    degraded = False


async def speaking_flow(folder, judging=None):
    """A Flow whose matcher speaks, on an embedded index in this folder."""
    flow = Flow(MemoryBus("cluster"), Letters(), QdrantEdgeIndex(folder, 384))
    flow.judging = judging
    return await flow.restart()


def stream(seed, count):
    """Signals in their order, and the problem that each is about by its id."""
    rng = random.Random(seed)
    problems = [tuple(rng.choice(words) for words in (PARTS, DOES, WHEN, NAMES)) for _ in range(count // 4)]
    signals, about = [], {}
    for number in range(count):
        problem = rng.randrange(len(problems))
        part, does, when, name = problems[problem]
        kind = rng.choices(["text", "exception", "alert"], [0.65, 0.2, 0.15])[0]
        if kind == "text":
            said = [f"The {part} {does} {when}."]
            if rng.random() < 0.5:
                said.append(f"I think it is {name} that {does}.")
            if rng.random() < 0.5:
                said.append(f"It happens {rng.choice(WHEN)}, {rng.randint(2, 90)} times a day.")
            rng.shuffle(said)
            fields = {
                "source": "http", "kind": rng.choice(["issue", "ticket"]), "body": " ".join(said), "service": rng.choice(["", "web"]),
                "title": rng.choice([f"{part} {does}", f"{does} {when}: {part}", f"{name} and the {part}"]),
            }  # fmt: skip
        elif kind == "exception":
            frames = [{"file": "app.py", "function": "dispatch"}, {"file": f"{name}.py", "function": name}]
            fields = {
                "source": "sentry", "kind": kind, "title": f"KeyError: in {name}", "exception_type": "KeyError", "service": "web",
                "frames": frames,
            }  # fmt: skip
        else:
            fields = {
                "source": "alertmanager", "kind": kind, "title": f"{part} {does}", "service": "web",
                "labels": {"alertname": f"{name}_high"},
            }  # fmt: skip
        moment = START + timedelta(seconds=400 * number)
        signals.append(
            Signal.model_validate({"id": f"s{number}", "project": "shop", "occurred_at": moment, "received_at": moment, **fields})
        )
        about[f"s{number}"] = problem
    return signals, about
