"""Who may ask what of the broker: one run's pod, for that run's input, until its result is here or its deadline has passed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from loopwright_common.bus import Conflict
from loopwright_common.clock import Clock
from loopwright_common.errors import Refused, Unavailable
from loopwright_common.model import ModelClient, ModelRun

from loopwright_pr_agent.broker.records import KeptRun, PodResult, RunRecords
from loopwright_pr_agent.broker.tokens import Tokens

WRITES_MAX = 20  # of one record against others who write it too: the Job's uid, the costs of calls side by side, the result
RESULT_BYTES_MAX = 900_000  # a message on the bus is at most a mebibyte, and text of control characters is escaped sixfold

log = structlog.get_logger()


class NotAdmitted(Exception):
    """Not this run's token, or a run that is over. Deliberately without a reason: all of these look the same from outside."""


@dataclass
class Live:
    """A run that somebody in this process waits for."""

    bundle: Path
    result: asyncio.Future[PodResult]
    model: ModelRun | None = None
    model_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Runs:
    """The broker's state: records on the bus, and in this process the inputs and those who wait."""

    def __init__(self, records: RunRecords, tokens: Tokens, clock: Clock, model: ModelClient | None = None) -> None:
        self.records, self.tokens = records, tokens
        self._clock = clock
        self._model = model
        self._live: dict[tuple[str, int], Live] = {}

    # For the sandbox

    def offer(self, run: str, generation: int, bundle: Path) -> Live:
        """Hands the input out from now on; ``result`` is set when the pod's result is stored."""
        live = Live(bundle, asyncio.get_running_loop().create_future())
        self._live[run, generation] = live
        return live

    def withdraw(self, run: str, generation: int) -> None:
        self._live.pop((run, generation), None)

    async def change(self, run: str, generation: int, **fields: Any) -> KeptRun | None:
        """Writes fields of a run that is still running its try ``generation``; None when it is not any more."""
        for _ in range(WRITES_MAX):
            kept = await self.records.get(run)
            if kept is None or kept.record.generation != generation or kept.record.state != "running":
                return None
            try:
                return await self.records.update(kept, kept.record.model_copy(update=fields))
            except Conflict:
                continue
        raise Conflict(f"the record of run {run} is written by too many at once")

    # For the pod

    async def admit(self, token: str, run: str | None = None) -> KeptRun:
        """The run that the token is for. Raises NotAdmitted."""
        bearer = self.tokens.read(token)
        if bearer is None or (run is not None and bearer.run != run):
            raise NotAdmitted
        kept = await self.records.get(bearer.run)
        if kept is None or kept.record.generation != bearer.generation or kept.record.state != "running":
            raise NotAdmitted
        if self._clock.now() >= kept.record.deadline:
            raise NotAdmitted
        return kept

    def input_of(self, kept: KeptRun) -> Path:
        """The bundle. Raises Unavailable while nobody here waits for the run: this service began anew and will take it up."""
        live = self._live.get((kept.run, kept.record.generation))
        if live is None:
            raise Unavailable("the run is known but its input is not here yet")
        return live.bundle

    async def take(self, kept: KeptRun, result: PodResult) -> None:
        """Stores the result, the first and only one, and wakes whoever waits. Raises NotAdmitted when the run is over meanwhile."""
        if len(result.model_dump_json()) > RESULT_BYTES_MAX:
            result = result.model_copy(update={"diff": None, "no_diff": f"the diff does not fit into {RESULT_BYTES_MAX} bytes of a record"})
        state = "broken" if result.broken or result.outcome is None else "finished"
        stored = await self.change(kept.run, kept.record.generation, state=state, result=result)
        if stored is None:
            raise NotAdmitted
        log.info("run_result_taken", run=kept.run, outcome=result.outcome, broken=result.broken[:200])
        live = self._live.get((kept.run, kept.record.generation))
        if live is not None and not live.result.done():
            live.result.set_result(result)

    async def complete(self, kept: KeptRun, request: Mapping[str, Any]) -> dict[str, Any]:
        """A chat completion within the run's budget, in the form of the OpenAI API. Raises Refused, Unavailable, Permanent."""
        if self._model is None:
            raise Refused("no model is set up for sandboxes; LOOPWRIGHT_PR_AGENT_MODEL_BASE_URL and _MODEL_NAME name one")
        if not kept.record.model:
            raise Refused("this run was not given the model")
        live = self._live.get((kept.run, kept.record.generation))
        if live is None:
            raise Unavailable("the run is known but nobody here waits for it yet")
        if live.model is None:
            live.model = self._model.start_run(kept.record.cost)
        schema = _schema_of(request)
        tools: Sequence[Mapping[str, Any]] = request.get("tools") or ()
        try:
            completion = await live.model.complete(request["messages"], schema=schema, tools=tools)
        finally:
            async with live.model_lock:  # the last to write has seen all that were before it
                await self.change(kept.run, kept.record.generation, cost=live.model.cost)
        message: dict[str, Any] = {"role": "assistant", "content": completion.content or None}
        if completion.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in completion.tool_calls
            ]
        cost = completion.cost
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": completion.model,
            "choices": [{"index": 0, "message": message, "finish_reason": completion.finish or "stop", "logprobs": None}],
            "usage": {
                "prompt_tokens": cost.input_tokens,
                "completion_tokens": cost.output_tokens,
                "total_tokens": cost.input_tokens + cost.output_tokens,
            },
        }


def _schema_of(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    form = request.get("response_format")
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return None
    described = form.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    return schema if isinstance(schema, Mapping) else None
