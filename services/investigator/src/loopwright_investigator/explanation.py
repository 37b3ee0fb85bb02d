"""The object a model is asked for. Only words: nothing in it decides anything. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    # What else a model adds (a verdict, say) is not read.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Sentence(_Part):
    text: str = Field(max_length=600)
    cites: list[str] = Field(max_length=20)


class SaidClaim(_Part):
    statement: str = Field(max_length=600)
    cites: list[str] = Field(max_length=20)


class SaidHypothesis(_Part):
    statement: str = Field(max_length=600)
    kept: bool
    reason: str = Field(max_length=600)
    cites: list[str] = Field(max_length=20)


class Explanation(_Part):
    """A title, sentences, claims and hypotheses, each with the ids of the observations it rests on."""

    title: str = Field(max_length=400)
    title_cites: list[str] = Field(max_length=20)
    summary: list[Sentence] = Field(max_length=12)
    claims: list[SaidClaim] = Field(max_length=30)
    hypotheses: list[SaidHypothesis] = Field(max_length=20)
