"""The sample product's guilty commit is undone and proven, amid the innocent ones around it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from loopwright_common.contracts.changes import Change, ProofLevel
from loopwright_common.contracts.signals import RequestContext

SHOP = Path(__file__).resolve().parents[3] / "examples" / "shop"


@pytest.mark.skipif(not (SHOP / "history.py").exists(), reason="the sample product is not in this checkout")
async def test_the_samples_regression_is_reverted_with_proof(stage, tmp_path):
    target = tmp_path / "laid-down"
    command = [sys.executable, str(SHOP / "history.py"), str(target)]
    said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=60)
    commits = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
    guilty = next(commit["commit"] for commit in commits if commit["subject"].startswith("Derive the cash rounding"))
    stage.source = target
    await stage.begin_with(target)
    request = stage.request(guilty)
    signal = request.report.examples[0].model_copy(
        update={"request": RequestContext(method="POST", url="http://127.0.0.1:1/checkout", query_string="items=mug:1&currency=JPY")}
    )
    request = request.model_copy(update={"report": request.report.model_copy(update={"examples": (signal,)})})
    await stage.start()
    await stage.ask(request)
    change = await stage.heard(Change)
    assert change.proof is ProofLevel.REPRODUCED, (change.proof_reason, change.runs)
    assert change.files == ("shop/pricing.py",)
