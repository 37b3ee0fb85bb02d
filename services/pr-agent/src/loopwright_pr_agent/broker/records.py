"""What is known of each run, durable: its try, its Job, its result. Every write is a compare-and-set, so one result is used, once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from loopwright_common.bus import KeyValue
from loopwright_common.contracts.base import Contract, UtcDatetime
from loopwright_common.contracts.investigations import Cost
from pydantic import Field, ValidationError

from loopwright_pr_agent.sandbox.port import Outcome

BUCKET, PREFIX = "pr-agent-runs", "run"
TAIL_CHARACTERS_MAX = 64 * 1024
DIFF_CHARACTERS_MAX = 256 * 1024
DIFF_BYTES_MAX = 240_000  # a record is one message on the bus, which takes a mebibyte


class PodResult(Contract):
    """What the runner in the pod says. Every field is the sandbox's word: bounded, shown, never believed further than that."""

    outcome: Outcome | None = None
    exit_code: int | None = Field(default=None, ge=-255, le=255)
    output_tail: str = Field(default="", max_length=TAIL_CHARACTERS_MAX)
    wall_seconds: float = Field(default=0.0, ge=0.0, le=1e6, allow_inf_nan=False)
    cpu_seconds: float = Field(default=0.0, ge=0.0, le=1e7, allow_inf_nan=False)
    diff: str | None = Field(default=None, max_length=DIFF_CHARACTERS_MAX)
    no_diff: str = Field(default="", max_length=2_048)
    broken: str = Field(default="", max_length=4_096)  # the run could not be set up; the command never started


class RunRecord(Contract):
    """One run. ``generation`` counts its tries; ``job_uid`` is the Job of this try, once it is known."""

    key: str
    digest: str
    generation: int
    state: Literal["running", "finished", "broken"] = "running"
    job_uid: str = ""
    deadline: UtcDatetime
    model: bool = False
    cost: Cost = Cost()
    result: PodResult | None = None


@dataclass(frozen=True)
class KeptRun:
    """A record and the revision it was read at."""

    run: str
    record: RunRecord
    revision: int


class RunRecords:
    """The records in a bucket of this service alone."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket

    async def get(self, run: str) -> KeptRun | None:
        entry = await self._bucket.get(f"{PREFIX}.{run}")
        if entry is None or not entry.value:
            return None
        try:
            return KeptRun(run, RunRecord.model_validate_json(entry.value), entry.revision)
        except ValidationError:
            await self._bucket.delete(f"{PREFIX}.{run}")  # of another version of this service: the run begins anew
            return None

    async def create(self, run: str, record: RunRecord) -> KeptRun:
        """Raises Conflict when there is one already."""
        return KeptRun(run, record, await self._bucket.create(f"{PREFIX}.{run}", record.model_dump_json().encode()))

    async def update(self, kept: KeptRun, record: RunRecord) -> KeptRun:
        """Raises Conflict when it changed meanwhile."""
        revision = await self._bucket.update(f"{PREFIX}.{kept.run}", record.model_dump_json().encode(), kept.revision)
        return KeptRun(kept.run, record, revision)

    async def sweep(self, before: datetime) -> int:
        """Forgets runs whose deadline was before ``before``; gives how many."""
        gone = 0
        for key in await self._bucket.keys(f"{PREFIX}."):
            kept = await self.get(key.removeprefix(f"{PREFIX}."))
            if kept is None or kept.record.deadline < before:
                await self._bucket.delete(key)
                gone += 1
        return gone
