"""Pair F1 of grouped stack traces: a seeded generator of variants of one problem and of near-misses, through the product's own path.

`python -m bench.stacks [--seed N] [--problems N] [--tier1]`. For each language programs are made up (modules, functions, who calls whom),
and in them problems: an exception raised somewhere. Of each problem come variants as production has them: an edit above moved the lines,
the compiler counted its lambdas anew, the recursion went deeper, another thread was printed too, a layer wrapped the exception, the bundle
got other hashes and names, the runtime speaks another language, a library was updated, the tree lies elsewhere. Beside it are near-misses:
problems that share the raising function, the message, the type or the place, and are not the same. Half of the programs send structured
frames, half send the trace as text.

Pair F1 counts pairs of signals: those that were put together, and those that belong together.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.app import Service, open_embedding
from loopwright_cluster.grouping.fingerprints import alternatives, fingerprint
from loopwright_cluster.grouping.logs import Templates
from loopwright_cluster.ports import Embedding
from loopwright_cluster.settings import ClusterSettings
from loopwright_common.bus import ConsumerSpec, Outgoing, Received
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.reports import GroupUpdated
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import GROUPS_UPDATED, SIGNALS
from loopwright_common.testing.memory_bus import MemoryBus

MOMENT = datetime(2026, 11, 26, 10, tzinfo=UTC)
VARIANTS = 8  # of each problem
LANGUAGES = ("python", "java", "javascript", "go", "ruby", "dotnet")

NOUNS = tuple(
    """order cart price invoice stock account session ticket parcel route voucher basket tariff ledger shipment refund catalog review
    profile tenant quota token mailbox contract policy claim device sensor batch report widget payment address discount warehouse
    supplier menu seat fare""".split()  # noqa: SIM905
)
VERBS = tuple(
    """load save parse apply compute merge render resolve convert update check send fetch build commit validate decode split sort
    publish sync reserve release assign rank filter expand flush rotate sign""".split()  # noqa: SIM905
)
LAYERS = ("api", "core", "domain", "service", "jobs", "web", "store", "model", "worker", "billing", "shipping", "search")
NATURAL = {
    "en": "{a} must not be empty ({n})", "de": "{a} darf nicht leer sein ({n})", "fr": "{a} ne doit pas être vide ({n})",
    "es": "{a} no debe estar vacío ({n})", "ru": "{a} не должно быть пустым ({n})", "ja": "{a} は空にできません ({n})",
}  # fmt: skip
TYPES = {
    "python": ("ValueError", "KeyError", "TypeError", "ZeroDivisionError", "AttributeError", "TimeoutError"),
    "java": ("IllegalStateException", "NullPointerException", "IllegalArgumentException", "NumberFormatException", "ArithmeticException"),
    "javascript": ("TypeError", "RangeError", "ReferenceError", "SyntaxError", "Error"),
    "go": ("index out of range [{n}] with length 3", "invalid memory address or nil pointer dereference", "integer divide by zero"),
    "ruby": ("ArgumentError", "NoMethodError", "KeyError", "ZeroDivisionError", "TypeError"),
    "dotnet": ("InvalidOperationException", "NullReferenceException", "ArgumentException", "FormatException", "DivideByZeroException"),
}
RUNAWAY = {"python": "RecursionError", "java": "StackOverflowError", "ruby": "SystemStackError"}
WRAPPERS = {
    "python": ("CheckoutFailed", "ServiceError", "JobFailed"), "java": ("ServiceException", "RuntimeException", "ExecutionException"),
    "javascript": ("RequestError", "WrappedError"), "dotnet": ("ServiceException", "AggregateException", "TargetInvocationException"),
}  # fmt: skip
LIBRARY = {
    "python": [("flask/app.py", "full_dispatch_request"), ("flask/app.py", "dispatch_request"), ("celery/app/trace.py", "trace_task")],
    "java": [
        ("java.lang.Thread", "run"), ("org.springframework.web.servlet.DispatcherServlet", "doDispatch"),
        ("org.apache.catalina.core.ApplicationFilterChain", "doFilter"), ("java.util.ArrayList", "forEach"),
    ],
    "javascript": [("express/lib/router/layer.js", "Layer.handle"), ("react-dom/cjs/react-dom.js", "invokeGuardedCallback")],
    "go": [
        ("/usr/local/go/src/net/http/server.go", "net/http.HandlerFunc.ServeHTTP"), ("/usr/local/go/src/runtime/proc.go", "runtime.main"),
    ],
    "ruby": [("rack-3.0.8/lib/rack/runtime.rb", "call"), ("activerecord-7.1.2/lib/active_record/relation.rb", "each")],
    "dotnet": [
        ("Microsoft.AspNetCore.Mvc.Infrastructure.ControllerActionInvoker", "InvokeAsync"),
        ("System.Linq.Enumerable", "ToList"), ("System.Threading.Tasks.Task", "Execute"),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One function on the stack. ``own``: of the product; ``lambda_``: an unnamed function within it; ``recursive``: it calls itself."""

    module: str
    name: str
    own: bool = True
    lambda_: bool = False
    recursive: bool = False


@dataclass(frozen=True)
class Problem:
    """What goes wrong: the calls from the entry to where it is raised."""

    label: str
    language: str
    service: str
    type: str
    thing: str  # that the message speaks of
    calls: tuple[Call, ...]
    minified: bool = False
    as_text: bool = False
    runaway: bool = False  # its last two functions call one another until the stack is full


@dataclass
class Look:
    """How one occurrence of a problem looks."""

    rng: random.Random
    root: str = "/srv/app"
    depth: int = 1
    language: str = "en"
    wrapper: str = ""
    others: bool = False
    library_extra: int = 0
    guard: bool = False  # the layer that wraps has a function of its own
    chain_unsaid: bool = False  # the client sends no chain
    all_in_app: bool = False  # the client does not know what is the product's own
    counters: int = 0
    digest: str = "3f2a1b9c"
    said: list[str] = field(default_factory=list)


class World:
    """Makes up programs and the problems in them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._labels = 0
        self.told: set[tuple[str, str, str]] = set()  # what bundles without names have said

    def function(self) -> str:
        return f"{self.rng.choice(VERBS)}_{self.rng.choice(NOUNS)}"

    def call(self, module: str, **kinds: bool) -> Call:
        return Call(module, self.function(), **kinds)

    def problem(self, language: str) -> Problem:
        """A problem with its calls: three to seven of the product's own, some of a library between them."""
        rng = self.rng
        modules = [f"{rng.choice(LAYERS)}.{noun}" for noun in rng.sample(NOUNS, 4)]
        calls: list[Call] = [Call(*rng.choice(LIBRARY[language]), own=False)]
        for _ in range(rng.randint(3, 7)):
            calls.append(self.call(rng.choice(modules), lambda_=rng.random() < 0.25, recursive=rng.random() < 0.15))
            if rng.random() < 0.2:
                calls.append(Call(*rng.choice(LIBRARY[language]), own=False))
        if not any(call.recursive for call in calls) and rng.random() < 0.3:
            at = rng.choice([number for number, call in enumerate(calls) if call.own])
            calls[at] = replace(calls[at], recursive=True, lambda_=False)
        return self._new(language, calls, rng.choice(NOUNS))

    def _new(self, language: str, calls: Sequence[Call], thing: str) -> Problem:
        rng = self.rng
        if language in RUNAWAY and calls[-1].own and calls[-2].own and rng.random() < 0.15:
            return Problem(
                self.label(), language, rng.choice(("shop", "crm", "billing")), RUNAWAY[language], "depth",
                tuple(replace(call, lambda_=False) for call in calls), as_text=rng.random() < 0.5, runaway=True,
            )  # fmt: skip
        return Problem(
            self.label(), language, rng.choice(("shop", "crm", "billing")), rng.choice(TYPES[language]), thing, tuple(calls),
            minified=language == "javascript" and rng.random() < 0.4, as_text=rng.random() < 0.5,
        )  # fmt: skip

    def label(self) -> str:
        self._labels += 1
        return f"p{self._labels}"

    def near_misses(self, one: Problem) -> list[Problem]:
        """Other problems that share something with this one."""
        rng = self.rng
        if one.runaway:  # the same entry, another circle
            calls = self.problem(one.language).calls[-2:]
            return [replace(one, label=self.label(), calls=(*one.calls[:-2], *(replace(call, lambda_=False) for call in calls)))]
        own = [number for number, call in enumerate(one.calls) if call.own]
        last = own[-1]
        found = []
        # The same raising function, called from elsewhere with something else: another cause.
        head = self.problem(one.language).calls[: max(2, last)]
        found.append(replace(one, label=self.label(), calls=(*head, *one.calls[last:]), thing=rng.choice(NOUNS)))
        # The same place raises something else.
        others = [type_ for type_ in TYPES[one.language] if type_ != one.type]
        found.append(replace(one, label=self.label(), type=rng.choice(others), thing=rng.choice(NOUNS)))
        # The same type and words in another place.
        place = self.problem(one.language)
        while place.runaway:
            place = self.problem(one.language)
        found.append(replace(place, label=self.label(), type=one.type, service=one.service, thing=one.thing, as_text=one.as_text))
        # A sibling of the raising function.
        sibling = replace(one.calls[last], name=self.function())
        nameless = sibling.lambda_ and one.language in ("python", "javascript")  # two of those are one to everybody who reads the trace
        if sibling.name != one.calls[last].name and not nameless:
            calls = (*one.calls[:last], sibling, *one.calls[last + 1 :])
            thing = one.thing if not one.minified else rng.choice([noun for noun in NOUNS if noun != one.thing])
            found.append(replace(one, label=self.label(), calls=calls, thing=thing))
        if one.minified:
            # Without names only the words differ, so two such problems have to differ there to be two for anybody.
            self.told.add((one.service, one.type, one.thing))
            found = [item for item in found if (item.service, item.type, item.thing) not in self.told]
            self.told.update((item.service, item.type, item.thing) for item in found)
        return found

    def look(self, problem: Problem) -> Look:
        """An occurrence: every kind of change by its own chance."""
        rng = self.rng
        look = Look(rng, counters=rng.randint(0, 40), digest=f"{rng.getrandbits(32):08x}")
        chance: Callable[[float], bool] = lambda share: rng.random() < share  # noqa: E731
        if chance(0.3):
            look.root = rng.choice(("/srv/app", "/app", "/home/deploy/app", "/opt/app", "/var/task/app"))
        if chance(0.5):
            look.depth = rng.randint(2, 9)
        if chance(0.3) and not problem.minified:
            look.language = rng.choice(list(NATURAL))
        if chance(0.3) and problem.language in WRAPPERS and not problem.minified:
            look.wrapper = rng.choice(WRAPPERS[problem.language])
        if problem.runaway:
            look.depth, look.wrapper, look.language = rng.randint(60, 400), "", "en"
        look.guard = chance(0.25)
        look.chain_unsaid = chance(0.1)
        look.all_in_app = chance(0.1)
        look.others = chance(0.3)
        if chance(0.3):
            look.library_extra = rng.randint(1, 3)
        return look


@dataclass(frozen=True)
class Frame:
    """A rendered frame: what each transport writes of it."""

    call: Call
    file: str
    module: str
    function: str
    line: int
    column: int = 0


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def pascal(name: str) -> str:
    return "".join(part.title() for part in name.replace(".", "_").split("_"))


def rendered(problem: Problem, look: Look) -> list[Frame]:
    """The frames, outermost first, as this occurrence has them."""
    rng, frames = look.rng, []
    for number, call in enumerate(problem.calls):
        if problem.runaway and number >= len(problem.calls) - 2:
            continue
        frames.extend(frame(problem, look, call) for _ in range(min(look.depth, 9) if call.recursive else 1))
        if problem.language == "python" and call.own and call.name[0] in "fl" and look.counters % 2:
            # Up to Python 3.11 a comprehension has a frame of its own.
            made = frame(problem, look, call)
            frames.append(replace(made, function="<listcomp>"))
        if number == 0:
            frames.extend(frame(problem, look, Call(*rng.choice(LIBRARY[problem.language]), own=False)) for _ in range(look.library_extra))
        if problem.language == "java" and call.own and rng.random() < 0.15:
            # The JVM writes its own accessor after fifteen reflective calls.
            name = rng.choice(
                (f"jdk.internal.reflect.GeneratedMethodAccessor{rng.randint(1, 999)}", "jdk.internal.reflect.DirectMethodHandleAccessor")
            )
            frames.append(frame(problem, look, Call(name, "invoke", own=False)))
    if problem.runaway:
        one, other = problem.calls[-2:]
        circle = [frame(problem, look, call) for call in (one, other)]
        frames.extend(circle[number % 2] for number in range(look.depth))
    return frames


def frame(problem: Problem, look: Look, call: Call) -> Frame:
    return RENDER[problem.language](problem, look, call, look.rng.randint(1, 900))


def _python(problem: Problem, look: Look, call: Call, line: int) -> Frame:
    if not call.own:
        version = look.rng.choice(("3.11", "3.12"))
        return Frame(call, f"/usr/lib/python{version}/site-packages/{call.module}", "", call.name, line)
    name = look.rng.choice((f"{call.name}.<locals>.<lambda>",)) if call.lambda_ else call.name
    return Frame(
        call, f"{look.root}/{call.module.replace('.', '/')}.py", "", name if not problem.as_text or not call.lambda_ else "<lambda>", line
    )


def _java(problem: Problem, look: Look, call: Call, line: int) -> Frame:
    if not call.own:
        return Frame(call, call.module.rpartition(".")[2] + ".java", call.module, call.name, line)
    layer, noun = call.module.split(".")
    name = f"lambda${camel(call.name)}${look.counters + line % 3}" if call.lambda_ else camel(call.name)
    class_ = f"com.acme.{layer}.{noun.title()}Service"
    return Frame(call, f"{noun.title()}Service.java", class_, name, line)


def _javascript(problem: Problem, look: Look, call: Call, line: int) -> Frame:
    if not call.own:
        return Frame(call, f"{look.root}/node_modules/{call.module}", "", call.name, line, look.rng.randint(1, 80))
    if problem.minified:
        short = look.rng.choice("abcdefgimnrstu") + look.rng.choice(("", "", "e", "n"))
        return Frame(call, f"https://cdn.acme.example/static/js/main.{look.digest}.js", "", short, 1, look.rng.randint(400, 90_000))
    name = look.rng.choice(("<anonymous>", "")) if call.lambda_ else camel(call.name)
    if look.rng.random() < 0.2 and not call.lambda_:
        name = f"{name}${look.rng.randint(1, 4)}"
    scheme = look.rng.choice((f"{look.root}/src", "webpack:///./src", "webpack-internal:///./src"))
    return Frame(call, f"{scheme}/{call.module.replace('.', '/')}.ts", "", name, line, look.rng.randint(1, 80))


def _go(problem: Problem, look: Look, call: Call, line: int) -> Frame:
    if not call.own:
        return Frame(call, call.module, call.name.rpartition(".")[0], call.name, line)
    layer, noun = call.module.split(".")
    name = f"github.com/acme/shop/{layer}.(*{noun.title()}).{pascal(call.name)}"
    if call.lambda_:
        name += f".func{look.counters % 9 + 1}" + (f".{line % 3 + 1}" if line % 2 else "")
    return Frame(call, f"{look.root}/{layer}/{noun}.go", "", name, line)


def _ruby(problem: Problem, look: Look, call: Call, line: int) -> Frame:
    if not call.own:
        return Frame(call, f"/usr/local/bundle/gems/{call.module}", "", call.name, line)
    name = (
        f"block ({look.rng.randint(2, 3)} levels) in {call.name}"
        if call.lambda_ and line % 2
        else f"block in {call.name}"
        if call.lambda_
        else call.name
    )
    return Frame(call, f"{look.root}/app/{call.module.replace('.', '/')}.rb", "", name, line)


def _dotnet(problem: Problem, look: Look, call: Call, line: int) -> Frame:
    if not call.own:
        return Frame(call, "", call.module, call.name, line)
    layer, noun = call.module.split(".")
    class_ = f"Acme.{layer.title()}.{noun.title()}Service"
    name = pascal(call.name)
    if call.lambda_:
        class_, name = f"{class_}.<>c__DisplayClass{look.counters}_0", f"<{name}>b__{line % 4}"
    return Frame(call, f"C:\\build\\{look.rng.randint(100, 999)}\\src\\{noun.title()}Service.cs", class_, name, line)


RENDER: dict[str, Callable[[Problem, Look, Call, int], Frame]] = {
    "python": _python, "java": _java, "javascript": _javascript, "go": _go, "ruby": _ruby, "dotnet": _dotnet,
}  # fmt: skip


def message(problem: Problem, look: Look) -> str:
    value = look.rng.randint(1, 99_999)
    if problem.language == "go":
        return problem.type.format(n=value)
    return NATURAL[look.language].format(a=problem.thing, n=value)


def wrapped_at(problem: Problem, frames: Sequence[Frame]) -> int:
    """Where a layer caught the exception and raised its own: after the first of the product's functions."""
    return next(number for number, item in enumerate(frames) if item.call.own) + 1


def structured(problem: Problem, look: Look, number: int) -> dict[str, Any]:
    """As an SDK sends it, after the ingest: one stack, the chain of types beside it."""
    frames = rendered(problem, look)
    type_ = "runtime error" if problem.language == "go" else problem.type
    said = message(problem, look)
    labels = {}
    if look.wrapper:
        if not look.chain_unsaid:
            labels["exception.chain"] = f"{look.wrapper} <- {type_}"
        if look.guard:
            at = wrapped_at(problem, frames)
            frames.insert(at, frame(problem, look, Call(frames[at - 1].call.module, "guarded_call")))
        type_, said = look.wrapper, f"could not finish: {said}"
    sent = [
        {
            "file": item.file,
            "module": item.module,
            "function": item.function,
            "line": item.line,
            "column": item.column or None,
            "in_app": item.call.own,
        }
        for item in frames
    ]
    if problem.language == "go":
        said = f"runtime error: {said}"
    return {
        "kind": "exception", "title": f"{type_}: {said}"[:512], "exception_type": type_, "exception_value": said, "frames": sent[-100:],
        "labels": labels, "body": said,
    }  # fmt: skip


def textual(problem: Problem, look: Look, number: int) -> dict[str, Any]:
    """As a log line with its continuation: the trace as the runtime prints it."""
    frames = rendered(problem, look)
    if look.wrapper and look.guard:
        at = wrapped_at(problem, frames)
        frames.insert(at, frame(problem, look, Call(frames[at - 1].call.module, "guarded_call")))
    frames = frames[-150:]
    body = PRINT[problem.language](problem, look, frames, message(problem, look))
    return {"kind": "log", "title": body.split("\n", 1)[0][:512], "body": body[:16_384]}


def _print_python(problem: Problem, look: Look, frames: Sequence[Frame], said: str) -> str:
    def stack(items: Sequence[Frame]) -> str:
        return "".join(f'  File "{item.file}", line {item.line}, in {item.function}\n    {item.call.name}(...)\n' for item in items)

    start = "Traceback (most recent call last):\n"
    if not look.wrapper:
        return f"{start}{stack(frames)}{problem.type}: {said}"
    at = wrapped_at(problem, frames)
    cause = f"{start}{stack(frames[at - 1 :])}{problem.type}: {said}\n"
    between = "\nThe above exception was the direct cause of the following exception:\n\n"
    return f"{cause}{between}{start}{stack(frames[:at])}shop.errors.{look.wrapper}: could not finish"


def _print_java(problem: Problem, look: Look, frames: Sequence[Frame], said: str) -> str:
    def stack(items: Sequence[Frame]) -> str:
        return "".join(f"\tat {item.module}.{item.function}({item.file}:{item.line})\n" for item in reversed(items))

    head = f"java.lang.{problem.type}: {said}\n"
    if look.wrapper:
        at = wrapped_at(problem, frames)
        cause = f"Caused by: {head}{stack(frames[at - 1 :])}\t... {at - 1} more\n"
        text = f"com.acme.{look.wrapper}: could not finish\n{stack(frames[:at])}{cause}"
    else:
        text = head + stack(frames)
    if look.others:
        text += f'\n"worker-{look.counters}" #{look.counters} prio=5\n   java.lang.Thread.State: WAITING\n'
        text += f"\tat com.acme.jobs.Idle.park(Idle.java:{look.counters})\n"
    return text


def _print_javascript(problem: Problem, look: Look, frames: Sequence[Frame], said: str) -> str:
    lines = []
    for item in reversed(frames):
        place = f"{item.file}:{item.line}:{item.column}"
        lines.append(f"    at {item.function} ({place})" if item.function else f"    at {place}")
    head = f"{problem.type}: {said}"
    if look.wrapper:
        return f"{look.wrapper}: could not finish\n" + "\n".join(lines[-2:]) + f"\nCaused by: {head}\n" + "\n".join(lines)
    return f"{head}\n" + "\n".join(lines)


def _print_go(problem: Problem, look: Look, frames: Sequence[Frame], said: str) -> str:
    text = f"panic: runtime error: {said}\n\ngoroutine {look.counters + 1} [running]:\n"
    for item in reversed(frames):
        text += f"{item.function}(0x{look.rng.getrandbits(40):x}, 0x{look.counters:x})\n"
        text += f"\t{item.file}:{item.line} +0x{look.rng.getrandbits(10):x}\n"
    text += f"created by main.main in goroutine 1\n\t{look.root}/main.go:{look.counters + 3} +0x1f\n"
    if look.others:
        text += f"\ngoroutine {look.counters + 9} [select]:\nmain.idle(0x1)\n\t{look.root}/idle.go:{look.counters + 1} +0x2a\n"
    return text


def _print_ruby(problem: Problem, look: Look, frames: Sequence[Frame], said: str) -> str:
    quote = look.rng.choice("`'")
    first, *rest = list(reversed(frames))
    text = f"{first.file}:{first.line}:in {quote}{first.function}': {said} ({problem.type})\n"
    return text + "".join(f"\tfrom {item.file}:{item.line}:in {quote}{item.function}'\n" for item in rest)


def _print_dotnet(problem: Problem, look: Look, frames: Sequence[Frame], said: str) -> str:
    at, where, line_word = {"de": ("bei", "in", "Zeile "), "fr": ("à", "dans", "ligne "), "es": ("en", "en", "línea ")}.get(
        look.language, ("at", "in", "line ")
    )

    def stack(items: Sequence[Frame]) -> str:
        lines = []
        for item in reversed(items):
            place = f" {where} {item.file}:{line_word}{item.line}" if item.file else ""
            lines.append(f"   {at} {item.module}.{item.function}(String value){place}\n")
        return "".join(lines)

    head = f"System.{problem.type}: {said}"
    if look.wrapper:
        cut = wrapped_at(problem, frames)
        end = "--- End of inner exception stack trace ---"
        return f"Acme.{look.wrapper}: could not finish\n ---> {head}\n{stack(frames[cut - 1 :])}   {end}\n{stack(frames[:cut])}"
    return f"{head}\n{stack(frames)}"


PRINT: dict[str, Callable[[Problem, Look, Sequence[Frame], str], str]] = {
    "python": _print_python, "java": _print_java, "javascript": _print_javascript,
    "go": _print_go, "ruby": _print_ruby, "dotnet": _print_dotnet,
}  # fmt: skip


def generate(seed: int, problems: int) -> list[tuple[Problem, Signal]]:
    """Signals with the problem each is of, in a random order."""
    world = World(seed)
    chosen: list[Problem] = []
    for number in range(problems):
        one = world.problem(LANGUAGES[number % len(LANGUAGES)])
        while one.minified and (one.service, one.type, one.thing) in world.told:
            one = world.problem(one.language)
        chosen += [one, *world.near_misses(one)]
    made = []
    for problem in chosen:
        for number in range(VARIANTS):
            look = world.look(problem)
            fields = (textual if problem.as_text else structured)(problem, look, number)
            made.append((problem, fields))
    world.rng.shuffle(made)
    return [
        (
            problem,
            Signal.model_validate(
                {
                    "id": f"s{number}", "project": "bench", "source": "sentry", "service": problem.service, **fields,
                    "occurred_at": MOMENT + timedelta(seconds=number), "received_at": MOMENT + timedelta(seconds=number),
                }
            ),
        )
        for number, (problem, fields) in enumerate(made)
    ]  # fmt: skip


def pair_scores(gold: Sequence[str], found: Sequence[str]) -> tuple[float, float, float]:
    """(precision, recall, F1) over pairs of items."""

    def pairs(counts: Counter[Any]) -> int:
        return sum(count * (count - 1) // 2 for count in counts.values())

    both, together, belong = pairs(Counter(zip(gold, found, strict=True))), pairs(Counter(found)), pairs(Counter(gold))
    precision, recall = both / together if together else 1.0, both / belong if belong else 1.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def tier_one(signals: Sequence[Signal]) -> list[str]:
    """Fingerprints alone: by its key, else by one of the other keys it may be known under."""
    templates = Templates()
    known: dict[str, str] = {}  # fingerprint -> report
    beside: dict[str, str] = {}  # other key -> report
    found = []
    for signal in signals:
        mine = fingerprint(signal, templates=templates)
        report = known.get(mine.key)
        if report is None:
            others = alternatives(signal, mine)
            reached = [beside.get(mine.key)]
            for other in others:
                reached += [None if other.itself else beside.get(other.key), known.get(other.key)]
            report = known[mine.key] = next((report for report in reached if report is not None), mine.key)
            for other in others:
                if other.record:
                    beside.setdefault(other.key, report)
        found.append(report)
    return found


async def product(signals: Sequence[Signal], embedding: Embedding) -> list[str]:
    """Through the service as it runs: bus, fingerprints, vectors, matcher. The reports, in the order of the signals."""
    bus = MemoryBus("cluster")
    done = asyncio.Event()
    reports: dict[str, str] = {}

    async def hear(batch: Sequence[Received[GroupUpdated]]) -> None:
        for message in batch:
            reports.update({fact.signal.id: fact.report_id for fact in message.payload.apart()})
        if len(reports) == len(signals):
            done.set()

    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as folder:
        service = Service(bus, embedding, QdrantEdgeIndex(Path(folder), embedding.dimensions), SystemClock(), batch_max=200)
        await service.start()
        await bus.consume_batches(ConsumerSpec("bench", "gateway", (GROUPS_UPDATED,), ordered=True, batch_max=200), hear)
        for start in range(0, len(signals), 500):
            await bus.publish_batch(
                [Outgoing(SIGNALS, signal, signal.id, {"project": "bench", "source": "sentry"}) for signal in signals[start : start + 500]]
            )
        async with asyncio.timeout(900):
            await done.wait()
        await service.stop(timedelta(seconds=5))
    return [reports[signal.id] for signal in signals]


def worst(made: Sequence[tuple[Problem, Signal]], found: Sequence[str]) -> Iterator[str]:
    """By language and transport, for who looks for what is missing."""
    by: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (problem, _), key in zip(made, found, strict=True):
        by[f"{problem.language}{' minified' if problem.minified else ''}{' as text' if problem.as_text else ''}"].append(
            (problem.label, key)
        )
    for name, pairs in sorted(by.items()):
        precision, recall, f1 = pair_scores([gold for gold, _ in pairs], [key for _, key in pairs])
        yield f"  {name:<28} signals {len(pairs):5d}  precision {precision:.4f}  recall {recall:.4f}  F1 {f1:.4f}"


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--tier1", action="store_true", help="fingerprints only, without the vectors and the matcher")
    options = parser.parse_args(list(arguments))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    made = generate(options.seed, options.problems)
    signals = [signal for _, signal in made]
    gold = [problem.label for problem, _ in made]
    found = tier_one(signals)
    precision, recall, f1 = pair_scores(gold, found)
    print(f"seed {options.seed}: {len(set(gold))} problems, {len(made)} signals")
    print(f"tier 1 (fingerprints)       pair precision {precision:.4f}  recall {recall:.4f}  F1 {f1:.4f}")
    print("\n".join(worst(made, found)))
    if not options.tier1:
        embedding = open_embedding(ClusterSettings(_env_file=None))
        reports = asyncio.run(product(signals, embedding))
        precision, recall, f1 = pair_scores(gold, reports)
        print(f"the product ({embedding.name})".ljust(28) + f"pair precision {precision:.4f}  recall {recall:.4f}  F1 {f1:.4f}")
        print("\n".join(worst(made, reports)))
    for name, kind in (("structured frames", "exception"), ("a trace as text", "log")):
        ratio = time_ratio([item for item in signals if item.kind.value == kind])
        print(f"a fingerprint of {name} takes {ratio:.1f} of reading its signal from JSON")


def time_ratio(signals: Sequence[Signal]) -> float:
    """Seconds for the fingerprints, caches warm as in a running service, to seconds for reading the same signals; the best of three."""
    texts = [signal.model_dump_json().encode() for signal in signals]

    def best(work: Callable[[Any], Any], items: Sequence[Any]) -> float:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            for item in items:
                work(item)
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return best(fingerprint, signals) / best(Signal.model_validate_json, texts)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
