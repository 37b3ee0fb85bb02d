"""Runs an investigation again from its bundle, over the commits it saw: to see why it said what it said, or what a newer version says."""

from __future__ import annotations

import gzip

from loopwright_common.contracts.investigations import Investigation

from loopwright_investigator.domain import Bundle, Case, Evidence
from loopwright_investigator.investigation import find_place, investigate
from loopwright_investigator.ports import Repositories


def read_bundle(stored: bytes) -> Bundle:
    """A bundle as it was kept. Raises pydantic.ValidationError, gzip.BadGzipFile."""
    return Bundle.model_validate_json(gzip.decompress(stored))


async def replay(bundle: Bundle, repositories: Repositories) -> Investigation:
    """The deterministic result now; cost and times are not part of it, and neither are a model's words."""
    case = Case(bundle.ready, bundle.config, bundle.rates, bundle.now, bundle.rates_missing, bundle.rates_start)
    place = find_place(case)
    history = await repositories.open(place.repository, bundle.main) if place.repository is not None and bundle.main else None
    result, _ = await investigate(case, bundle.investigation_id, place, history, Evidence(), bundle.unreadable)
    return result
