"""The names that buckets, keys and timers may have, and how a timer's name becomes a subject."""

from __future__ import annotations

import base64
import re
from datetime import datetime, timedelta

from loopwright_common.bus import ConsumerSpec, Timer
from loopwright_common.contracts.subjects import STREAMS, Subject
from loopwright_common.errors import Refused

BUCKET = re.compile(r"[A-Za-z0-9_-]{1,64}")
# What KeyValue promises; the server's own limit for a subject is longer.
KEY = re.compile(r"[A-Za-z0-9_=-]+(?:\.[A-Za-z0-9_=-]+)*")
KEY_CHARACTERS_MAX = 512
PLAIN_TOKEN = re.compile(r"[A-Za-z0-9-]{1,128}")
TIMER_KEY_BYTES_MAX = 512
TIMER_AHEAD_MAX = next(stream.max_age for stream in STREAMS if stream.scheduled) - timedelta(days=1)


def check_bucket(bucket: str) -> None:
    """Raises ValueError when a bucket cannot have this name."""
    if not BUCKET.fullmatch(bucket):
        raise ValueError(f"{bucket!r} is not a bucket name: letters, digits, _ and -, at most 64")


def check_key(key: str) -> None:
    """Raises ValueError when a key cannot have this name."""
    if len(key) > KEY_CHARACTERS_MAX or not KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is not a key: letters, digits and _ = - with dots between, at most {KEY_CHARACTERS_MAX}")


def subject_token(text: str) -> str:
    """``text`` as one subject token: itself where it can be, else ``_`` and its base64url, which no plain token begins with."""
    if PLAIN_TOKEN.fullmatch(text):
        return text
    encoded = text.encode()
    if len(encoded) > TIMER_KEY_BYTES_MAX:
        raise ValueError(f"{text[:80]!r}... has {len(encoded)} bytes; a timer's name may have {TIMER_KEY_BYTES_MAX}")
    return "_" + base64.urlsafe_b64encode(encoded).decode().rstrip("=")


def timer_subject(service: str, purpose: str, key: str) -> str:
    """Where a due timer is published."""
    return f"timers.{subject_token(service)}.{subject_token(purpose)}.{subject_token(key)}"


def schedule_subject(service: str, purpose: str, key: str) -> str:
    """Where a timer waits."""
    return "schedules." + timer_subject(service, purpose, key).removeprefix("timers.")


def check_due(timer: Timer, now: datetime) -> None:
    """Raises Refused for a timer so far ahead that it would age out of its stream before it is due."""
    if timer.due_at - now > TIMER_AHEAD_MAX:
        raise Refused(f"the timer {timer.purpose} {timer.key} is due in {timer.due_at - now}; the bus keeps timers for {TIMER_AHEAD_MAX}")


def timer_spec(service: str) -> ConsumerSpec:
    """The consumer that handles a service's due timers."""
    token = subject_token(service)
    subject = Subject(f"timers.{token}.{{purpose}}.{{key}}", Timer, (service,), "TIMERS")
    return ConsumerSpec(name=f"timers-{token}", service=service, subjects=(subject,), retry_first=timedelta(seconds=1))
