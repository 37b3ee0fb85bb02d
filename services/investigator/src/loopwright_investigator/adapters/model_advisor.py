"""The model behind an OpenAI-compatible endpoint, where one is configured."""

from __future__ import annotations

from loopwright_common.settings import BadSetting

from loopwright_investigator.ports import Advisor
from loopwright_investigator.settings import InvestigatorSettings


def open_advisor(settings: InvestigatorSettings) -> Advisor | None:
    """The advisor, or None without a base URL. Raises BadSetting while this version has no client for one."""
    if not settings.model_base_url:
        return None
    raise BadSetting("LOOPWRIGHT_INVESTIGATOR_MODEL_BASE_URL is set, but this version has no model client yet; unset it")
