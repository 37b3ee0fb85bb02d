"""The model behind an OpenAI-compatible endpoint, where one is configured."""

from __future__ import annotations

import asyncio

from loopwright_common.bus import Bus
from loopwright_common.clock import Clock
from loopwright_common.errors import LoopwrightError, Refused, Retryable
from loopwright_common.model import ModelClient, ModelRole
from loopwright_common.spending import BucketSpending

from loopwright_investigator.domain import line
from loopwright_investigator.explanation import Explanation
from loopwright_investigator.ports import Asked
from loopwright_investigator.settings import InvestigatorSettings

SPENDING_BUCKET = "investigator-spending"
ROLE = "investigator"
# One answer and one repair of it; more would be an argument with the model, at our cost.
CALLS_MAX = 2
# A call is counted at its most before it is made, a token per byte: four times what English text needs.
INPUT_TOKENS_MAX = 400_000


class ModelAdvisor:
    """Asks once, with one repair, within the role's limits and ``seconds_max`` in all."""

    def __init__(self, client: ModelClient, seconds_max: float) -> None:
        self._client = client
        self._seconds_max = seconds_max

    @property
    def name(self) -> str:
        return self._client.role.model

    async def advise(self, system: str, user: str) -> Asked:
        run = self._client.start_run()
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            async with asyncio.timeout(self._seconds_max):
                said = await run.structured(Explanation, messages)
        except TimeoutError:
            return Asked("slow", run.cost, detail=f"no answer within {self._seconds_max:g} s")
        except Refused as error:
            return Asked("refused", run.cost, detail=line(str(error), 400))
        except Retryable as error:
            return Asked("unavailable", run.cost, detail=line(str(error), 400))
        except LoopwrightError as error:
            return Asked("wrong", run.cost, detail=line(str(error), 400))
        return Asked("kept", run.cost, said)

    async def close(self) -> None:
        await self._client.close()


def role(settings: InvestigatorSettings) -> ModelRole:
    """The model role that the settings describe."""
    return ModelRole(
        name=ROLE,
        base_url=settings.model_base_url,
        api_key=settings.model_api_key,
        model=settings.model_name,
        calls_per_run_max=CALLS_MAX * 4,  # retries are calls too
        input_tokens_per_run_max=INPUT_TOKENS_MAX,
        output_tokens_per_run_max=settings.model_output_tokens_max * CALLS_MAX * 4,
        output_tokens_per_call_max=settings.model_output_tokens_max,
        usd_per_run_max=settings.model_usd_per_investigation_max,
        usd_per_day_max=settings.model_usd_per_day_max,
        usd_per_million_input=settings.model_usd_per_million_input,
        usd_per_million_output=settings.model_usd_per_million_output,
        attempt_seconds_max=settings.model_seconds_max,
        call_seconds_max=settings.model_seconds_max,
    )


async def open_advisor(settings: InvestigatorSettings, bus: Bus, clock: Clock) -> ModelAdvisor | None:
    """The advisor, or None without a base URL. What is spent in a day is counted on the bus, over replicas and restarts."""
    if not settings.model_base_url:
        return None
    spending = BucketSpending(await bus.key_value(SPENDING_BUCKET), clock)
    return ModelAdvisor(ModelClient(role(settings), spending=spending, clock=clock), settings.model_seconds_max)
