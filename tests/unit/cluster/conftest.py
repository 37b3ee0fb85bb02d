import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from loopwright_cluster.embedding.minilm import MiniLmEmbedding
from loopwright_common.contracts.signals import Signal

MODEL = Path(__file__).parents[3] / ".cache" / "models" / "minilm-int8"
START = datetime(2026, 11, 26, 10, tzinfo=UTC)


@pytest.fixture(scope="session")
def make_signal():
    """Builds a signal; ``at`` is seconds after a fixed start, ``frames`` may be (file, function) pairs."""

    def make(id="s1", *, at=0.0, project="shop", source="sentry", kind="log", title="something happened", frames=(), **fields):
        moment = START + timedelta(seconds=at)
        return Signal.model_validate(
            {
                "id": id, "project": project, "source": source, "kind": kind, "title": title, "occurred_at": moment, "received_at": moment,
                "frames": [{"file": frame[0], "function": frame[1]} if isinstance(frame, (tuple, list)) else frame for frame in frames],
                **fields,
            }
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def incidents(make_signal):
    """Made-up incidents by domain: [(domain, [(group, signal), ...])]. The first lot set v1's figures, the second did not."""
    found = {}
    for part, entries in json.loads((Path(__file__).parent / "incidents.json").read_text()).items():
        found[part] = []
        for entry in entries:
            rows = []
            for number, row in enumerate(entry["signals"]):
                fields = {key: value for key, value in row.items() if key != "group"}
                rows.append((row["group"], make_signal(f"{row['group']}-{row['kind']}-{number}", **fields)))
            found[part].append((entry["domain"], rows))
    return found


@pytest.fixture(scope="session")
def minilm():
    if not (MODEL / "manifest.json").exists():
        pytest.skip(f"no embedding model in {MODEL}: run the set-up")
    return MiniLmEmbedding(MODEL)
