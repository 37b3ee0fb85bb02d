"""Models over real HTTP, on the scripted server: limits, retries, structured output, cost, and what is kept quiet."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import pytest_asyncio
import structlog
from loopwright_common.contracts.investigations import Cost
from loopwright_common.errors import Permanent, Refused, Unavailable
from loopwright_common.model import ModelClient, ModelRole
from loopwright_common.spending import BucketSpending, MemorySpending
from loopwright_common.structured import strict_schema
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_common.testing.scripted_model import Reply, ScriptedModel, embedding
from pydantic import BaseModel, Field, SecretStr

KEY = "sk-very-secret-key-0123456789"
ASK = [{"role": "system", "content": "You explain."}, {"role": "user", "content": "Why?"}]
PRICE = {"usd_per_million_input": 10.0, "usd_per_million_output": 30.0}


class Colour(BaseModel):
    name: str = Field(max_length=10)
    warm: bool = False


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel() as model:
        yield model


class Waits(list[float]):
    """Sleeps that are noted, not slept."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest_asyncio.fixture
async def make(server: ScriptedModel, waits: Waits) -> AsyncIterator[Any]:
    made: list[ModelClient] = []

    def make(spending: Any = None, base_url: str = "", **limits: Any) -> ModelClient:
        role = ModelRole(name="explain", base_url=base_url or server.url, api_key=SecretStr(KEY), model="m-1", **limits)
        made.append(ModelClient(role, spending=spending, sleep=waits))
        return made[-1]

    yield make
    for client in made:
        await client.close()


async def test_an_answer_comes_with_its_cost_by_the_roles_prices(server: ScriptedModel, make: Any) -> None:
    server.says(Reply("Because.", usage=(1_000, 200)))
    run = make(**PRICE).start_run()

    answer = await run.complete(ASK)

    assert answer.content == "Because."
    assert answer.model == "scripted-1"
    assert (run.cost.model_calls, run.cost.input_tokens, run.cost.output_tokens) == (1, 1_000, 200)
    assert run.cost.usd == pytest.approx(0.01 + 0.006)
    assert run.cost.wall_seconds > 0
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.requests[0].body["model"] == "m-1"
    assert server.requests[0].body["max_tokens"] == 4_000


async def test_structured_output_asks_for_the_schema_and_gives_the_object(server: ScriptedModel, make: Any) -> None:
    server.answers({"name": "red", "warm": True})

    colour = await make().start_run().structured(Colour, ASK)

    assert colour == Colour(name="red", warm=True)
    form = server.requests[0].body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"]["required"] == ["name", "warm"]
    assert form["json_schema"]["schema"]["additionalProperties"] is False


async def test_an_endpoint_without_schemas_is_asked_in_words_from_then_on(server: ScriptedModel, make: Any) -> None:
    server.takes_schema = False
    server.answers('Here it is:\n```json\n{"name": "red"}\n```', {"name": "blue"})
    client = make()

    first = await client.start_run().structured(Colour, ASK)
    second = await client.start_run().structured(Colour, ASK)

    assert (first.name, second.name) == ("red", "blue")
    assert ["response_format" in asked.body for asked in server.requests] == [True, False, False]
    assert '"maxLength": 10' in server.requests[1].text


async def test_what_is_not_valid_is_repaired_once_and_no_more(server: ScriptedModel, make: Any) -> None:
    server.answers({"name": "x" * 50}, {"name": "red"})
    run = make().start_run()

    assert (await run.structured(Colour, ASK)).name == "red"
    assert run.cost.model_calls == 2
    assert "at most 10 characters" in server.requests[1].text

    server.answers("no JSON at all", '{"name": 5}', {"name": "never asked"})
    with pytest.raises(Permanent, match="also after a repair"):
        await make().start_run().structured(Colour, ASK)
    assert len(server.requests) == 4


async def test_busy_endpoints_are_tried_again_with_growing_waits(server: ScriptedModel, make: Any, waits: Waits) -> None:
    server.fails(500).fails(503).fails(429).answers("at last")
    run = make().start_run()

    assert (await run.complete(ASK)).content == "at last"
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0 <= waits[2] <= 2.0
    assert run.cost.model_calls == 4
    assert run.cost.input_tokens == 100  # what failed with a status was not served, so it is not charged


@pytest.mark.parametrize(
    ("header", "least"),
    [("7", 7.0), ("1.5", 1.5), ("a date in 90 seconds", 20.0), ("soon", 0.0), ("-3", 0.0)],
)
async def test_the_wait_that_an_endpoint_asks_for_is_kept(
    server: ScriptedModel, make: Any, waits: Waits, header: str, least: float
) -> None:
    if header == "a date in 90 seconds":  # made here: parameters are made when tests are collected, minutes before
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    server.fails(429, retry_after=header).answers("ok")

    await make(call_seconds_max=600.0).start_run().complete(ASK)

    assert waits[0] >= least


async def test_a_wait_beyond_the_calls_time_gives_up_at_once_and_says_how_long(server: ScriptedModel, make: Any, waits: Waits) -> None:
    server.fails(429, retry_after="3600")

    with pytest.raises(Unavailable) as raised:
        await make().start_run().complete(ASK)

    assert raised.value.after == timedelta(hours=1)
    assert waits == []


async def test_tries_are_used_up(server: ScriptedModel, make: Any) -> None:
    server.fails(502, times=9)

    with pytest.raises(Unavailable, match="3 attempts"):
        await make(retries_max=2).start_run().complete(ASK)

    assert len(server.requests) == 3


async def test_a_slow_answer_is_given_up_and_counted_as_if_it_had_come(server: ScriptedModel, make: Any) -> None:
    server.says(Reply("late", delay_seconds=5))
    run = make(attempt_seconds_max=0.3, retries_max=0, **PRICE).start_run()
    started = time.monotonic()

    with pytest.raises(Unavailable, match=r"0\.3 s"):
        await run.complete(ASK)

    assert time.monotonic() - started < 3
    assert run.cost.output_tokens == 4_000  # it may be billed
    assert run.cost.usd > 0.12


async def test_an_endpoint_that_is_not_there_is_unavailable_and_costs_nothing(make: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        run = make(base_url=url, retries_max=1, **PRICE).start_run()

        with pytest.raises(Unavailable, match="cannot be reached"):
            await run.complete(ASK)

    assert run.cost.usd == 0.0
    assert run.cost.model_calls == 2


@pytest.mark.parametrize(
    ("status", "code", "error"), [(401, "", Refused), (403, "", Refused), (404, "", Permanent), (429, "insufficient_quota", Refused)]
)
async def test_what_no_retry_can_change_is_not_tried_again(server: ScriptedModel, make: Any, status: int, code: str, error: Any) -> None:
    server.fails(status, code=code)

    with pytest.raises(error):
        await make().start_run().complete(ASK)

    assert len(server.requests) == 1


async def test_a_request_that_is_refused_is_permanent_and_repeats_nothing_of_what_the_endpoint_said(
    server: ScriptedModel, make: Any
) -> None:
    server.says(Reply(status=400, error_message=f"you sent {KEY} and Why?"))

    with pytest.raises(Permanent) as raised:
        await make().start_run().complete(ASK)

    assert KEY not in str(raised.value)
    assert "Why?" not in str(raised.value)
    assert len(server.requests) == 1


async def test_the_other_name_of_the_output_limit_is_learnt(server: ScriptedModel, make: Any) -> None:
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.says(Reply(status=400, error_message=said)).answers("one", "two")
    client = make()

    await client.start_run().complete(ASK)
    await client.start_run().complete(ASK)

    assert ["max_completion_tokens" in asked.body for asked in server.requests] == [False, True, True]


async def test_a_run_ends_at_its_limit_of_calls(server: ScriptedModel, make: Any) -> None:
    server.answers("1", "2", "3")
    run = make(calls_per_run_max=2).start_run()
    await run.complete(ASK)
    await run.complete(ASK)

    with pytest.raises(Refused, match="2 calls a run"):
        await run.complete(ASK)

    assert len(server.requests) == 2


async def test_a_call_that_could_pass_the_runs_budget_is_not_made(server: ScriptedModel, make: Any) -> None:
    run = make(usd_per_run_max=0.11, **PRICE).start_run()  # 4,000 output tokens alone may cost 0.12

    with pytest.raises(Refused, match="US dollars"):
        await run.complete(ASK)

    assert server.requests == []
    assert run.cost == Cost()


async def test_a_long_prompt_is_refused_by_the_tokens_it_could_have(server: ScriptedModel, make: Any) -> None:
    with pytest.raises(Refused, match="input tokens"):
        await make(input_tokens_per_run_max=1_000).start_run().complete([{"role": "user", "content": "x" * 1_000}])

    assert server.requests == []


async def test_calls_side_by_side_cannot_pass_a_budget_together(server: ScriptedModel, make: Any) -> None:
    server.says(*[Reply("ok", usage=(100, 4_000), delay_seconds=0.1)] * 10)
    run = make(usd_per_run_max=0.4, concurrency=10, **PRICE).start_run()

    results = await asyncio.gather(*(run.complete(ASK) for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(result, Refused) for result in results) == 7
    assert run.cost.usd <= 0.4
    assert len(server.requests) == 3


async def test_the_days_budget_holds_over_runs_and_ends_with_the_day(server: ScriptedModel, make: Any) -> None:
    clock = FakeClock()
    client = make(spending=MemorySpending(clock), usd_per_day_max=0.25, **PRICE)
    server.says(*[Reply("ok", usage=(100, 4_000))] * 3)
    await client.start_run().complete(ASK)

    await client.start_run().complete(ASK)

    with pytest.raises(Refused, match="today"):
        await client.start_run().complete(ASK)
    clock.advance(days=1)
    await client.start_run().complete(ASK)

    assert len(server.requests) == 3


async def test_the_days_budget_in_a_bucket_holds_over_processes(server: ScriptedModel, make: Any, memory_bus: MemoryBus) -> None:
    bucket = await memory_bus.key_value("spending")
    server.says(*[Reply("ok", usage=(100, 4_000))] * 20)

    async def process() -> int:
        client = make(spending=BucketSpending(bucket, FakeClock()), usd_per_day_max=0.5, **PRICE)
        done = 0
        for _ in range(4):
            try:
                await client.start_run().complete(ASK)
                done += 1
            except Refused:
                pass
        return done

    done = sum(await asyncio.gather(*(process() for _ in range(3))))

    assert done == 4  # 0.121 each
    memory_bus.broker.available = False
    with pytest.raises(Exception, match="unavailable"):
        await make(spending=BucketSpending(bucket, FakeClock()), **PRICE).start_run().complete(ASK)
    assert len(server.requests) == 4  # a cap that cannot be checked refuses


async def test_an_answer_without_usage_is_counted_as_the_most_it_can_be(server: ScriptedModel, make: Any) -> None:
    server.says(Reply("ok", usage=None))
    run = make().start_run()

    await run.complete(ASK)

    assert run.cost.output_tokens == 4_000
    assert run.cost.input_tokens >= sum(len(message["content"]) for message in ASK)


async def test_tool_calls_come_through_as_the_model_wrote_them(server: ScriptedModel, make: Any) -> None:
    server.calls_tool("grep", {"pattern": "area"}).says(Reply(tool_calls=(("grep", "{not json"),)))
    tool = {"type": "function", "function": {"name": "grep", "parameters": {"type": "object"}}}
    run = make().start_run()

    first = await run.complete(ASK, tools=[tool])
    second = await run.complete(ASK, tools=[tool])

    assert first.finish == "tool_calls"
    assert (first.tool_calls[0].name, json.loads(first.tool_calls[0].arguments)) == ("grep", {"pattern": "area"})
    assert second.tool_calls[0].arguments == "{not json"
    assert server.requests[0].body["tools"] == [tool]


async def test_a_model_that_declines_is_a_refusal(server: ScriptedModel, make: Any) -> None:
    server.says(Reply(refusal="I cannot"), Reply("half", finish="content_filter"))

    for _ in range(2):
        with pytest.raises(Refused, match="declined"):
            await make().start_run().complete(ASK)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"choices": [5]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": {"0": 1}}',
    ],
)
async def test_an_answer_of_another_shape_is_an_error_of_ours_to_name(server: ScriptedModel, make: Any, raw: bytes) -> None:
    server.says(*[Reply(raw=raw)] * 5)

    with pytest.raises((Unavailable, Permanent)):
        await make(retries_max=1).start_run().complete(ASK)


async def test_an_answer_without_end_is_cut_off(server: ScriptedModel, make: Any) -> None:
    server.says(Reply("x" * 9_000_000), Reply("compressed", headers={"content-encoding": "gzip"}))
    client = make(retries_max=0)

    for _ in range(2):
        with pytest.raises(Unavailable):
            await client.start_run().complete(ASK)


async def test_a_redirect_does_not_carry_the_key_away(server: ScriptedModel, make: Any) -> None:
    with ScriptedModel() as other:
        server.says(Reply(status=307, headers={"location": f"{other.url}/chat/completions"}))

        with pytest.raises(Permanent):
            await make().start_run().complete(ASK)

        assert other.requests == []


async def test_credentials_in_a_prompt_do_not_leave(server: ScriptedModel, make: Any) -> None:
    server.answers("ok")
    text = "log: Authorization: Bearer abcdefghijklmnop1234\nand postgres://app:hunter22@db/shop"

    await make().start_run().complete([{"role": "user", "content": text}])

    assert "hunter22" not in server.requests[0].text
    assert "abcdefghijklmnop1234" not in server.requests[0].text
    assert "postgres://app:" in server.requests[0].text


async def test_neither_prompts_nor_answers_nor_keys_are_logged(server: ScriptedModel, make: Any) -> None:
    server.fails(500).answers("TheAnswerText")
    with structlog.testing.capture_logs() as lines:
        await make().start_run().complete([{"role": "user", "content": "ThePromptText"}])

    assert {line["event"] for line in lines} >= {"model_called", "model_retried"}
    assert not any(word in str(lines) for word in ("ThePromptText", "TheAnswerText", KEY))


async def test_embeddings_keep_the_order_of_their_texts(server: ScriptedModel, make: Any) -> None:
    texts = [f"text {number}" for number in range(600)]
    run = make(calls_per_run_max=3).start_run()

    vectors = await run.embed(texts)

    assert vectors == [pytest.approx(embedding(text)) for text in texts]
    assert [len(asked.body["input"]) for asked in server.requests] == [256, 256, 88]


@pytest.mark.parametrize(
    "vectors",
    [
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
    ],
)
async def test_vectors_that_do_not_fit_the_texts_are_refused(server: ScriptedModel, make: Any, vectors: list[Any]) -> None:
    server.says(Reply(raw=json.dumps({"object": "list", "model": "m", "data": vectors}).encode()))

    with pytest.raises(Permanent, match="embedding endpoint"):
        await make().start_run().embed(["a", "b"])


def test_a_strict_schema_closes_every_object_and_keeps_properties_of_any_name() -> None:
    class Part(BaseModel):
        title: str = Field(default="x", max_length=5)
        format: list[Colour] = Field(min_length=1)

    schema = strict_schema(Part.model_json_schema())

    assert schema["required"] == ["title", "format"]
    assert schema["properties"]["title"] == {"type": "string"}
    assert schema["properties"]["format"] == {"items": {"$ref": "#/$defs/Colour"}, "type": "array"}
    assert schema["$defs"]["Colour"]["additionalProperties"] is False


def test_a_role_that_could_never_answer_in_time_is_refused() -> None:
    with pytest.raises(ValueError, match="call_seconds_max"):
        ModelRole(name="r", base_url="http://127.0.0.1:1/v1", model="m", attempt_seconds_max=60, call_seconds_max=5)
    with pytest.raises(ValueError, match="base_url"):
        ModelRole(name="r", base_url="file:///etc/passwd", model="m")


async def test_the_scripted_server_streams_what_it_would_have_said(server: ScriptedModel) -> None:
    import openai

    server.answers("a longer answer in several pieces").calls_tool("grep", {"p": 1})
    client = openai.AsyncOpenAI(base_url=server.url, api_key="x", max_retries=0)

    async def streamed() -> tuple[str, str, Any]:
        text, tool, usage = "", "", None
        options: Any = {"include_usage": True}
        async for chunk in await client.chat.completions.create(model="m", messages=ASK, stream=True, stream_options=options):  # type: ignore[arg-type]
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    tool += str(call.function.arguments if call.function else "")
        return text, tool, usage

    text, _, usage = await streamed()
    _, tool, _ = await streamed()
    await client.close()

    assert text == "a longer answer in several pieces"
    assert usage.prompt_tokens == 100
    assert json.loads(tool) == {"p": 1}
