"""Stacks: what never changes the fingerprint of an exception, what always does, and traces that come as text."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loopwright_cluster.grouping.fingerprints import alternatives, fingerprint, stack_of
from loopwright_cluster.grouping.frames import collapse, cycle, file_name, function_name, is_foreign, place
from loopwright_cluster.grouping.rules import NO_RULES
from loopwright_cluster.grouping.traces import causes, frame_of, parse, titled
from loopwright_common.contracts.signals import Signal, StackFrame

law = settings(deadline=None)  # the machine that runs the tests may be busy
MOMENT = "2026-11-26T10:00:00Z"
names = st.from_regex(r"[a-z]{3,10}_[a-z]{3,10}", fullmatch=True)
files = st.from_regex(r"[a-z]{3,8}/[a-z]{3,8}\.py", fullmatch=True)
stacks = st.lists(st.tuples(files, names), min_size=2, max_size=8, unique=True)


def exception(frames, **fields):
    made = [frame if isinstance(frame, dict) else {"file": frame[0], "function": frame[1]} for frame in frames]
    given_fields = {
        "id": "s1", "project": "shop", "source": "sentry", "kind": "exception", "title": "ValueError: x", "exception_type": "ValueError",
        "exception_value": "x", "service": "web", "occurred_at": MOMENT, "received_at": MOMENT, "frames": made, **fields,
    }  # fmt: skip
    return Signal.model_validate(given_fields)


def key(*args, **fields):
    return fingerprint(exception(*args, **fields)).key


@law
@given(stacks, st.lists(st.integers(1, 9_999), min_size=8, max_size=8), st.text(max_size=30))
def test_line_numbers_and_messages_never_change_the_key(frames, lines, said):
    moved = [{"file": file, "function": name, "line": line, "column": line % 90} for (file, name), line in zip(frames, lines, strict=False)]
    assert key(moved, exception_value=said, title=f"ValueError: {said}") == key(frames)


LAMBDAS = (
    "lambda${name}${n}",
    "{name}$lambda${n}",
    "main.{name}.func{n}",
    "main.{name}.func{n}.1",
    "$anonfun${name}${n}",
    "<{name}>b__{n}_0",
    "app::{name}::{{closure#{n}}}",
    "{name}_4f2a9b{n:02d}",
    "block ({n} levels) in {name}",
    "closure #{n} in {name}",
    "{name}.constprop.{n}",
    "<{name}>d__{n}.MoveNext",
)


@law
@given(stacks, st.sampled_from(LAMBDAS), st.integers(0, 99), st.integers(0, 99), st.integers(0, 7))
def test_the_numbers_that_a_compiler_gives_never_change_the_key(frames, form, one, other, at):
    at %= len(frames)
    file, name = frames[at]
    variants = [[*frames[:at], (file, form.format(name=name, n=number)), *frames[at + 1 :]] for number in (one, other)]
    assert key(variants[0]) == key(variants[1])


@law
@given(stacks, st.integers(0, 7), st.integers(2, 30))
def test_the_depth_of_a_recursion_never_changes_the_key(frames, at, depth):
    at %= len(frames)
    assert key([*frames[:at], *[frames[at]] * depth, *frames[at + 1 :]]) == key(frames)


@law
@given(stacks, st.integers(1, 6), st.integers(2, 12))
def test_the_depth_of_a_mutual_recursion_never_changes_the_key(frames, at, rounds):
    at = min(at, len(frames) - 1)
    circle = frames[at - 1 : at + 1]
    assert key([*frames[: at - 1], *circle * rounds, *frames[at + 1 :]]) == key([*frames[: at - 1], *circle * 2, *frames[at + 1 :]])


@law
@given(stacks, st.integers(0, 8), st.integers(1, 4))
def test_frames_of_libraries_and_of_reflection_never_change_the_key(frames, at, number):
    at = min(at, len(frames))
    between = [
        {"file": "site-packages/flask/app.py", "function": f"call_{number}"},
        {"module": f"jdk.internal.reflect.GeneratedMethodAccessor{number}", "function": "invoke"},
        {"file": "/usr/lib/node_modules/express/router.js", "function": "next", "in_app": False},
    ]
    assert key([*frames[:at], *between[:number], *frames[at:]]) == key(frames)


@law
@given(stacks, st.integers(0, 7), names)
def test_another_function_of_the_products_own_always_changes_the_key(frames, at, name):
    at %= len(frames)
    changed = [*frames[:at], (frames[at][0], name), *frames[at + 1 :]]
    assume(collapse([f"{file}:{function}" for file, function in changed]) != collapse([f"{file}:{function}" for file, function in frames]))
    assert key(changed) != key(frames)


def test_an_error_that_is_only_called_error_is_told_by_its_package():
    frames = [("cart.rs", "shop::cart::load")]
    names = ("std::io::Error", "reqwest::Error", "*url.Error", "sqlite3.Error", "java.lang.Error")
    assert len({key(frames, exception_type=name) for name in names}) == len(names)
    assert key(frames, exception_type="java.lang.Error") == key(frames, exception_type="Error")
    assert key(frames, exception_type="com.acme.PaymentError") == key(frames, exception_type="PaymentError")


@law
@given(stacks)
def test_another_type_always_changes_the_key(frames):
    assert key(frames) != key(frames, exception_type="KeyError")


@law
@given(stacks, st.sampled_from(["/srv/", "/app/", "/home/deploy/", "/opt/", "/var/task/", ""]))
def test_where_the_tree_lies_never_changes_the_key(frames, root):
    assert key([(f"{root}src/{file}", name) for file, name in frames]) == key([(f"src/{file}", name) for file, name in frames])


@law
@given(stacks, st.integers(8, 60), st.integers(0, 1))
def test_a_runaway_recursion_is_known_by_its_circle_wherever_the_stack_was_full(frames, rounds, more):
    assume(len(frames) > 2)
    entry, circle = frames[:-2], frames[-2:]
    shallow = [*entry, *circle * 8]
    deep = [*(entry if rounds < 40 else []), *circle * rounds, *circle[:more]]
    assert key(shallow, exception_type="RecursionError") == key(deep[-100:], exception_type="RecursionError")


def test_a_wrapper_does_not_hide_the_cause():
    frames = [("shop/app.py", "dispatch"), ("shop/pricing.py", "convert")]
    wrapped = exception(frames, exception_type="ServiceError", labels={"exception.chain": "ServiceError <- ValueError"})
    assert fingerprint(wrapped).key == key(frames)
    assert (
        key(frames)
        != fingerprint(exception(frames, exception_type="ServiceError", labels={"exception.chain": "ServiceError <- KeyError"})).key
    )


def test_a_cause_told_in_the_body_counts():
    frames = [("shop/app.py", "dispatch"), ("shop/pricing.py", "convert")]
    wrapped = exception(frames, exception_type="ServiceError", body="could not pay\nCaused by: shop.errors.ValueError: x")
    assert fingerprint(wrapped).key == key(frames)


def test_an_exception_is_found_again_without_the_frame_of_the_layer_that_wrapped_it():
    frames = [("shop/app.py", "dispatch"), ("shop/checkout.py", "pay"), ("shop/pricing.py", "convert")]
    guarded = exception([frames[0], ("shop/retry.py", "guarded"), *frames[1:]], labels={"exception.chain": "ValueError <- ValueError"})
    found = fingerprint(guarded)
    assert found.key != key(frames)
    assert key(frames) in {other.key for other in alternatives(guarded, found) if other.record}
    assert not any("layer that wrapped" in other.reason for other in alternatives(exception(frames), fingerprint(exception(frames))))


def test_a_cause_is_found_again_by_its_own_stack_whoever_waited_for_it_in_another_thread():
    cause = """java.lang.IllegalStateException: no
	at com.acme.Price.of(Price.java:3)
	at com.acme.Worker.work(Worker.java:9)"""
    waited = f"""java.util.concurrent.ExecutionException: {cause.partition(chr(10))[0]}
	at com.acme.Checkout.await(Checkout.java:3)
	at com.acme.Checkout.pay(Checkout.java:9)
	at com.acme.Web.serve(Web.java:9)
Caused by: {cause}"""
    bare, wrapped = (exception([], exception_type="", exception_value="", title="x", body=text) for text in (cause, waited))
    found = fingerprint(wrapped)
    assert fingerprint(bare).key in {other.key for other in alternatives(wrapped, found) if other.record}


def test_a_cause_gets_back_the_outer_frames_that_java_leaves_out():
    found = parse(JAVA)
    assert [place(frame) for frame in found.whole_cause] == [
        "java.lang.Thread:run",
        "com.acme.shop.App:main<lambda>",
        "com.acme.shop.Price:of",
    ]
    assert [place(frame) for frame in found.cause] == ["com.acme.shop.Price:of"]


def test_an_exception_is_found_again_without_the_outermost_frames_of_a_layer():
    frames = [("shop/checkout.py", "pay"), ("shop/pricing.py", "convert")]
    wrapped = exception(
        [("shop/gateway.py", "serve"), ("shop/gateway.py", "guard"), *frames], labels={"exception.chain": "ValueError <- ValueError"}
    )
    assert key(frames) in {other.key for other in alternatives(wrapped, fingerprint(wrapped)) if other.record and other.itself}
    assert key(frames[1:]) not in {other.key for other in alternatives(wrapped, fingerprint(wrapped))}


def test_all_frames_are_another_key_for_clients_that_do_not_know_their_own():
    frames = [{"file": "a.py", "function": name, "in_app": name != "two"} for name in ("one", "two", "three")]
    known, unknown = exception(frames), exception([{**frame, "in_app": False} for frame in frames])
    (system,) = [other.key for other in alternatives(known, fingerprint(known)) if "all frames" in other.reason]
    assert fingerprint(unknown).key == system
    assert fingerprint(unknown).variant == "system"


def test_the_message_counts_only_where_no_frame_tells_a_place():
    def bundle(said, name="t", digest="3f2a1b9c"):
        frame = {"file": f"https://cdn.example/js/main.{digest}.js", "function": name, "line": 1, "column": 4_022}
        return key([frame, {**frame, "function": "n"}], exception_value=said)

    assert bundle("cart is 7") == bundle("cart is 8", "e", "99ab12cd")
    assert bundle("cart is 7") != bundle("price is 7")
    assert key([], exception_value="timeout after 3s") == key([], exception_value="timeout after 9s") != key([], exception_value="refused")


@pytest.mark.parametrize(
    "said",
    [
        (
            "Cannot read properties of undefined (reading 'total')",
            "Cannot read property 'total' of undefined",
            'can\'t access property "total", e is undefined',
            "undefined is not an object (evaluating 't.total')",
        ),
        ("e.total is not a function", "t.a.total is not a function. (In 't.a.total()', 't.a.total' is undefined)"),
        ("total is not defined", "Can't find variable: total"),
    ],
)
def test_what_browsers_say_of_one_mistake_in_a_bundle_is_one_message(said):
    frame = {"file": "https://cdn.example/static/js/main.3f2a1b9c.js", "function": "t", "line": 1, "column": 4_022}
    assert len({key([frame], exception_type="TypeError", exception_value=text) for text in said}) == 1
    assert key([frame], exception_value=said[0]) != key([frame], exception_value=said[0].replace("total", "price"))


def test_in_a_bundle_the_message_counts_where_the_function_that_raised_has_no_name():
    frame = {"file": "https://cdn.example/static/js/main.3f2a1b9c.js", "line": 1, "column": 4_022}

    def raised(said, *names, file="main"):
        return key([{**frame, "file": frame["file"].replace("main", file), "function": name} for name in names], exception_value=said)

    assert raised("cart is gone", "onClick", "t") != raised("price is gone", "onClick", "t")
    assert (
        raised("cart is gone", "onClick", "t") == raised("cart is gone", "onClick", "?") == raised("cart is gone", "onClick", "<anonymous>")
    )
    assert raised("cart is gone", "onClick", "total") == raised("price is gone", "onClick", "total")
    assert is_foreign("", frame["file"].replace("main", "vendor"))
    assert file_name("https://cdn.example/v20261126/assets/index.js") == file_name("https://cdn.example/v20261127/assets/index.js")


def test_types_of_native_code_are_read_from_a_title():
    assert titled("std::out_of_range: no") == "std::out_of_range"
    assert titled("SIGSEGV: at 0x0") == "SIGSEGV"
    assert titled("note:: this") == titled("Shop: closed") == ""


def test_a_translated_message_without_frames_is_known_by_its_code():
    assert key([], exception_value="[Errno 2] No such file: 'a'") == key([], exception_value="[Errno 2] Datei nicht gefunden: 'b'")
    assert key([], exception_value="[Errno 2] No such file: 'a'") != key([], exception_value="[Errno 13] Permission denied: 'a'")


def test_go_tells_its_runtime_errors_apart_by_their_words():
    frames = [("cart.go", "main.total")]
    one, two = (
        key(frames, exception_type="runtime error", exception_value=f"runtime error: index out of range [{n}] with length 3")
        for n in (5, 9)
    )
    assert one == two != key(frames, exception_type="runtime error", exception_value="runtime error: integer divide by zero")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("handle_404", "handle_500"),
        ("_private", "private"),
        ("step_3", "step_4"),
        ("compute_area12", "compute_area7"),
        ("sha256", "sha512"),
        ("Cart.total", "Order.total"),
        ("(*Cart).Total", "(*Order).Total"),
        ("__init__", "__call__"),
        ("lambda$pay$1", "lambda$load$1"),
        ("std::vector<int>::push", "std::vector<int>::pop"),
    ],
)
def test_sibling_functions_stay_apart(one, other):
    assert function_name(one) != function_name(other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Object.<anonymous>", "<module>"),
        ("<listcomp>", ""),
        ("access$000", ""),
        ("?", "<anonymous>"),
        ("HTMLButtonElement.onclick", "onclick"),
        ("Shop.Cart.<>c__DisplayClass3_0.<Total>b__0", "Shop.Cart.Total<lambda>"),
        ("async foo", "foo"),
        ("new Foo", "Foo"),
        ("foo$1", "foo"),
        ("Foo.bar [as baz]", "Foo.bar"),
        ("__45-[Cart pay]_block_invoke_2", "-[Cart pay]<lambda>"),
        ("Cart.prototype.total", "Cart.total"),
        ("foo(int, char const*)", "foo"),
        ("Order#total", "total"),
        ("onClick/<", "onClick<lambda>"),
        ("apply$mcV$sp", "apply"),
        ("-[NSRunLoop(NSRunLoop) runMode:]", "-[NSRunLoop(NSRunLoop) runMode:]"),
        ("_dispatch_lane_invoke$VARIANT$mp", "_dispatch_lane_invoke"),
        ("<redacted>", "<anonymous>"),
        ("com.foo.Bar$1", "com.foo.Bar"),
        ("_app_views_home_html_erb__123456_7890", "_app_views_home_html_erb"),
    ],
)
def test_names_are_brought_to_one_form(name, expected):
    assert function_name(name) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("https://cdn.x/static/js/main.3f2a1b9c.chunk.js?v=3", "static/js/main.*.chunk.js"),
        ("https://cdn.x/static/js/23.8f2ac1.chunk.js", "static/js/*.*.chunk.js"),
        ("assets/index-BsX7k2Qd.js", "assets/index.*.js"),
        ("webpack-internal:///./src/App.tsx?a1b2", "src/App.tsx"),
        ("/usr/lib/python3.11/site-packages/flask/app.py", "flask/app.py"),
        ("C:\\build\\src\\Cart.cs", "src/Cart.cs"),
        ("/home/ci/app/shop/pricing.py", "shop/pricing.py"),
    ],
)
def test_files_keep_what_two_builds_share(path, expected):
    assert file_name(path) == expected


@pytest.mark.parametrize(
    "paths",
    [
        ("/app/app/models/order.rb", "/srv/shop/releases/20260101/app/models/order.rb", "/var/www/shop/app/models/order.rb"),
        ("/var/www/html/app/Services/Cart.php", "/app/app/Services/Cart.php", "/home/forge/shop.com/app/Services/Cart.php"),
        ("/app/src/cart.rs", "./src/cart.rs", "/home/ci/shop/src/cart.rs", "/builds/acme/shop/src/cart.rs", "D:\\a\\1\\s\\src\\cart.rs"),
        ("/code/app/routers/cart.py", "/app/app/routers/cart.py", "/Users/ann/work/shop/app/routers/cart.py"),
        ("/app/shop/models.py", "/home/deploy/shop/shop/models.py"),
        ("/app/packages/cart/src/index.ts", "/home/runner/work/shop/shop/packages/cart/src/index.ts"),
    ],
)
def test_the_folder_in_which_a_checkout_lies_is_not_in_a_files_name(paths):
    assert len({file_name(path) for path in paths}) == 1


@pytest.mark.parametrize(
    ("module", "function", "expected"),
    [
        ("com.acme.PayUseCase$execute$2", "invokeSuspend", "com.acme.PayUseCase:execute"),
        ("com.acme.PayUseCase$execute$2$1", "invokeSuspend", "com.acme.PayUseCase:execute"),
        ("kotlin.coroutines.jvm.internal.BaseContinuationImpl", "resumeWith", ""),
        ("Acme.Cart.<PayAsync>d__3", "MoveNext", "Acme.Cart:PayAsync"),
        ("Acme.Cart`1+<PayAsync>d__3`1", "MoveNext", "Acme.Cart:PayAsync"),
    ],
)
def test_a_function_that_has_waited_goes_on_under_its_own_name(module, function, expected):
    assert place(StackFrame(module=module, function=function)) == expected


def test_browsers_that_name_a_function_in_their_own_ways_tell_of_one_place():
    for chrome, firefox, safari in (
        ("Cart.total", "total", "total"),
        ("<anonymous>", "pay/<", ""),
        ("Object.onPress [as onClick]", "onPress", "onPress"),
    ):
        assert len({place(StackFrame(file="src/Cart.tsx", function=name)) for name in (chrome, firefox, safari)}) == 1
    assert place(StackFrame(file="src/cart.py", function="Cart.total")) == "src/cart.py:Cart.total"
    assert file_name("app:///src/shop/Cart.tsx") == file_name("webpack-internal:///(ssr)/./src/shop/Cart.tsx") == "src/shop/Cart.tsx"


def test_what_firefox_and_safari_say_before_a_name_is_not_in_it():
    text = """TypeError: x is undefined
total@./src/cart.js:3:1
setTimeout handler*pay@https://shop.io/src/pay.js:9:2
global code@https://shop.io/src/main.js:1:1"""
    assert [place(frame) for frame in parse(text).frames] == ["src/main.js:<anonymous>", "src/pay.js:pay", "src/cart.js:total"]


def test_a_file_with_two_names_is_no_bundle():
    names = ("app.controller.js", "app.service.js", "index.handler.js", "main.routes.js")
    assert [file_name(f"dist/{name}") for name in names] == [f"dist/{name}" for name in names]
    assert place(StackFrame(file="dist/app.service.js", function="f")) == "dist/app.service.js:f"


def test_packages_of_one_tree_keep_their_files_apart():
    assert file_name("/home/ann/shop/packages/cart/src/index.ts") != file_name("/home/ann/shop/packages/order/src/index.ts")
    assert file_name("/app/cart/src/main.rs") != file_name("/app/order/src/main.rs")


@pytest.mark.parametrize(
    "module", ["java.util.List", "org.springframework.web.Foo", "System.Linq.Enumerable", "kotlin.collections", "net/http"]
)
def test_runtimes_and_frameworks_are_foreign_whatever_the_sender_says(module):
    assert is_foreign(module, "")
    assert not is_foreign(f"com.acme.{module}", "")


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("django.core.handlers.base", "django/core/handlers/base.py"),
        ("", "starlette/routing.py"),
        ("threading", "threading.py"),
        ("org.postgresql.jdbc.PgStatement", "PgStatement.java"),
        ("MediatR.Mediator", ""),
        ("UIKitCore", ""),
        ("libdispatch.dylib", ""),
        ("libc.so.6", ""),
        ("/usr/lib/x86_64-linux-gnu/libstdc++.so.6", ""),
        ("", "/var/www/html/vendor/laravel/framework/src/Illuminate/Routing/Router.php"),
        ("", "/srv/shop/vendor/github.com/lib/pq/conn.go"),
        ("github.com/gin-gonic/gin", "github.com/gin-gonic/gin@v1.9.1/context.go"),
        ("", "package:flutter/src/widgets/framework.dart"),
        ("", "internal/process/task_queues.js"),
        ("", "<anonymous>"),
    ],
)
def test_packages_of_each_ecosystem_are_foreign_to_senders_that_do_not_know_their_own(module, file):
    assert is_foreign(module, file)


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("shop.redis", "shop/redis.py"),
        ("", "shop/vendor/models.py"),
        ("com.acme.shop.requests", ""),
        ("", "internal/order/order.go"),
        ("", "native/cart.cpp"),
        ("", "app/Http/Controllers/Vendor/Order/Show.php"),
        ("django_shop.views", "django_shop/views.py"),
        ("", "/srv/lib/cart.rb"),
        ("requests.views", "requests/views.py"),
        ("Foundation.Orders.Cart", ""),
    ],
)
def test_what_only_looks_like_a_package_is_the_products_own(module, file):
    assert not is_foreign(module, file)


PYTHON = """Order failed
Traceback (most recent call last):
  File "/srv/shop/pricing.py", line 12, in convert
    return a / b
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/shop/app.py", line 3, in dispatch
  File "/srv/shop/checkout.py", line 30, in pay
    convert(
    ^^^^^^^^
shop.errors.CheckoutError: cannot"""
JAVA = """Exception in thread "main" java.lang.RuntimeException: a: b
	at com.acme.shop.App.lambda$main$0(App.java:9)
	at java.base/java.lang.Thread.run(Thread.java:829)
	Suppressed: java.io.IOException: closed
		at com.acme.Other.close(Other.java:1)
Caused by: java.lang.IllegalStateException: no
	at com.acme.shop.Price.of(Price.java:3)
	... 2 more

"worker-2" #14 prio=5
	at com.acme.Idle.park(Idle.java:2)"""
NODE = """TypeError: Cannot read properties of undefined (reading 'x')
    at Cart.total (webpack-internal:///./src/Cart.tsx:12:3)
    at async onClick (/app/src/page.js:4:1)
    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)"""
GECKO = "total@https://x.io/src/a.js:12:3\nonClick/<@https://x.io/src/b.js:1:3\n"
GO = """panic: runtime error: index out of range [5] with length 3

goroutine 1 [running]:
panic({0x1,0x2})
	/usr/local/go/src/runtime/panic.go:884 +0x212
main.(*Cart).Total(0xc000, 0x1)
	/srv/shop/cart.go:12 +0x1d
main.main.func1()
	/srv/shop/main.go:40
created by main.main
	/srv/x.go:12

goroutine 5 [select]:
main.other()
	/srv/o.go:1"""
RUBY = """app/order.rb:12:in `total': divided by 0 (ZeroDivisionError)
	from app/order.rb:30:in `block in checkout'
	from bin/run:3:in `<main>'"""
NET = """System.InvalidOperationException: Der Vorgang ist ungültig. ---> System.NullReferenceException: nichts
   bei Shop.Cart.<>c__DisplayClass4_0.<Total>b__0(Int32 x) in C:\\src\\Cart.cs:Zeile 12
   --- Ende der internen Ausnahmestapelüberwachung ---
   bei Shop.App.Main(String[] args) in C:\\src\\App.cs:Zeile 4"""


@pytest.mark.parametrize(
    ("text", "types", "places"),
    [
        (PYTHON, ("CheckoutError", "ZeroDivisionError"), ["shop/app.py:dispatch", "shop/checkout.py:pay", "shop/pricing.py:convert"]),
        (
            JAVA,
            ("RuntimeException", "IllegalStateException"),
            ["java.lang.Thread:run", "com.acme.shop.App:main<lambda>", "com.acme.shop.Price:of"],
        ),
        (
            NODE,
            ("TypeError",),
            ["node:internal/process/task_queues:process.processTicksAndRejections", "src/page.js:onClick", "src/Cart.tsx:total"],
        ),
        (GECKO, (), ["src/b.js:<anonymous>", "src/a.js:total"]),
        (GO, ("panic",), ["shop/main.go:main.main<lambda>", "shop/cart.go:main.(*Cart).Total"]),
        (RUBY, ("ZeroDivisionError",), ["bin/run:<module>", "app/order.rb:checkout", "app/order.rb:total"]),
        (NET, ("InvalidOperationException", "NullReferenceException"), ["Shop.App:Main", "Shop.Cart:Total<lambda>"]),
    ],
    ids=["python", "java", "node", "gecko", "go", "ruby", "dotnet"],
)
def test_a_trace_that_comes_as_text_is_read(text, types, places):
    found = parse(text)
    assert found.types == types
    assert [place(frame) for frame in found.frames] == places


def test_a_panic_is_the_same_whoever_recovered_it_and_as_nets_http_server_tells_it():
    said = GO.partition("\n")[0].removeprefix("panic: ")
    served = GO.replace("panic: ", "2026/11/26 10:00:00 http: panic serving 10.0.0.1:3030: ", 1)
    told = [parse(text).messages for text in (GO, GO.replace(said, f"{said} [recovered]", 1), served)]
    assert told == [(said,)] * 3


RUBY_WRAPPED = """app/order.rb:33:in `rescue in pay': cannot pay (Shop::ServiceError)

      Cart.total
          ^^^^^^
	from app/order.rb:30:in `pay'
	from bin/run:3:in `<main>'
app/order.rb:12:in `total': divided by 0 (ZeroDivisionError)
	from app/order.rb:31:in `pay'
	from bin/run:3:in `<main>'"""
RUBY_ON_A_TERMINAL = """Traceback (most recent call last):
	2: from bin/run:3:in `<main>'
	1: from app/order.rb:31:in `pay'
app/order.rb:12:in `total': divided by 0 (ZeroDivisionError)"""
RAILS = """F, [2026-11-26T10:00:00 #1] FATAL -- : [6f1c] ZeroDivisionError (divided by 0):
F, [2026-11-26T10:00:00 #1] FATAL -- : [6f1c]
app/order.rb:12:in `total'
app/order.rb:31:in `pay'
bin/run:3:in `<main>'"""


PHP = """[2026-11-26 10:00:00] production.ERROR: PHP Fatal error:  Uncaught TypeError: null given in /app/app/Services/Cart.php:33
Stack trace:
#0 /app/app/Http/Controllers/CartController.php(20): App\\Services\\Cart->total(Object(App\\Models\\User), 'a b')
#1 /app/vendor/laravel/framework/src/Illuminate/Routing/Router.php(12): App\\Http\\Controllers\\CartController->show()
#2 {main}

Next App\\Exceptions\\Failed: cannot show in /app/app/Http/Controllers/CartController.php:22
Stack trace:
#0 /app/vendor/laravel/framework/src/Illuminate/Routing/Router.php(12): App\\Http\\Controllers\\CartController->show()
#1 {main}"""
RUST = """thread 'main' panicked at src/cart.rs:12:5:
called `Result::unwrap()` on an `Err` value: ParseIntError { kind: InvalidDigit }
stack backtrace:
   0: rust_begin_unwind
             at /rustc/07dca489ac2d933c78d3c5158e3f43beefeb02ce/library/std/src/panicking.rs:645:5
   1: core::result::unwrap_failed
   2: shop::cart::total::{{closure}}
             at ./src/cart.rs:12:5
   3: shop::main
             at ./src/main.rs:3:5
   4: core::ops::function::FnOnce::call_once"""
ELIXIR = """** (KeyError) key :total not found in: %{}
    (shop 0.1.0) lib/shop/cart.ex:12: Shop.Cart.total/2
    (elixir 1.15.7) lib/enum.ex:1693: Enum."-map/2-lists^map/1-1-"/2
    (shop 0.1.0) lib/shop_web/cart_controller.ex:8: ShopWeb.CartController.show/2"""
DART = """Unhandled exception:
RangeError (index): Invalid value: Not in inclusive range 0..2: 5
#0      List.[] (dart:core-patch/growable_array.dart:264:36)
#1      Cart.total.<anonymous closure> (package:shop/cart.dart:12:5)
<asynchronous suspension>
#2      main (package:shop/main.dart:3:3)"""
GDB = """Thread 3 "shop" received signal SIGSEGV, Segmentation fault.
#0  shop::(anonymous namespace)::total (cart=0x0, n=3) at /build/shop/src/cart.cpp:12
#1  0x00005570fa5ff381 in std::function<void (int)>::operator()(int) const (this=0x7ffe) at /usr/include/c++/12/bits/std_function.h:590
#2  0x00005570fa5ff3a0 in shop::Cart::pay (this=0x7ffe0010) at /build/shop/src/pay.cpp:40
#3  0x00007f0000029d90 in __libc_start_main () from /lib/x86_64-linux-gnu/libc.so.6

Thread 2 (LWP 12):
#0  0x00007f0000091117 in shop::Pool::wait (this=0x1) at /build/shop/src/pool.cpp:3"""
ASAN = """==12==ERROR: AddressSanitizer: heap-use-after-free on address 0x602000000010
    #0 0x55d5 in shop::(anonymous namespace)::total(shop::Cart const&, int) /src/src/cart.cpp:12:5
    #1 0x55d6 in shop::Cart::pay() /src/src/pay.cpp:40
    #2 0x7f00 in __libc_start_main (/lib/x86_64-linux-gnu/libc.so.6+0x29d90)"""
APPLE = """Exception Type:  EXC_BAD_ACCESS (SIGSEGV)
Thread 0:
0   libsystem_kernel.dylib        	0x00000001b2f1c0e4 mach_msg_trap + 8
Thread 4 Crashed:
0   Shop                          	0x0000000104a2c0e4 -[CartController total:] + 164
1   Shop                          	0x0000000104a2c1e8 closure #1 in CartView.pay() + 88 (CartView.swift:40)
2   libdispatch.dylib             	0x00000001b2e1d298 _dispatch_call_block_and_release + 24"""


@pytest.mark.parametrize(
    ("text", "types", "own"),
    [
        (
            PHP,
            ("App\\Exceptions\\Failed", "TypeError"),
            [
                "Http/Controllers/CartController.php:App\\Http\\Controllers\\CartController::show",
                "app/Services/Cart.php:App\\Services\\Cart::total",
            ],
        ),
        (RUST, ("unwrap on Err ParseIntError",), ["src/main.rs:shop::main", "src/cart.rs:shop::cart::total<lambda>"]),
        (ELIXIR, ("KeyError",), ["lib/shop_web/cart_controller.ex:ShopWeb.CartController.show/2", "lib/shop/cart.ex:Shop.Cart.total/2"]),
        (DART, ("RangeError",), ["package:shop/main.dart:main", "package:shop/cart.dart:Cart.total.<anonymous closure>"]),
        (GDB, ("SIGSEGV",), ["src/pay.cpp:shop::Cart::pay", "src/cart.cpp:shop::total"]),
        (ASAN, ("heap-use-after-free",), ["src/pay.cpp:shop::Cart::pay", "src/cart.cpp:shop::total"]),
        (APPLE, ("EXC_BAD_ACCESS",), ["Shop:CartView.pay<lambda>", "Shop:-[CartController total:]"]),
    ],
    ids=["php", "rust", "elixir", "dart", "gdb", "asan", "apple"],
)
def test_traces_of_further_languages_are_read_with_the_products_own_frames(text, types, own):
    found = parse(text)
    assert found.types == types
    assert [item for item in NO_RULES.own_places(found.frames) if item] == own


def test_php_is_the_same_when_laravel_logs_it():
    logged = """[2026-11-26 10:00:00] local.ERROR: cannot show {"exception":"[object] (App\\\\Exceptions\\\\Failed(code: 0): cannot show at /a/b.php:22)
[stacktrace]
#0 /app/vendor/laravel/framework/src/Illuminate/Routing/Router.php(12): App\\Http\\Controllers\\CartController->show()
#1 {main}

[previous exception] [object] (TypeError(code: 0): null given at /app/app/Services/Cart.php:33)
[stacktrace]
#0 /app/app/Http/Controllers/CartController.php(20): App\\Services\\Cart->total(NULL)
#1 /app/vendor/laravel/framework/src/Illuminate/Routing/Router.php(12): App\\Http\\Controllers\\CartController->show()
#2 {main}
"}"""  # noqa: E501  as it is logged
    assert parse(logged).types[-1] == parse(PHP).types[-1]
    assert place(parse(logged).frames[-1]) == place(parse(PHP).frames[-1])


@pytest.mark.parametrize(
    ("text", "types"),
    [(RUBY_WRAPPED, ("ServiceError", "ZeroDivisionError")), (RUBY_ON_A_TERMINAL, ("ZeroDivisionError",)), (RAILS, ("ZeroDivisionError",))],
)
def test_ruby_is_read_with_its_causes_from_a_terminal_and_from_rails_log(text, types):
    found = parse(text)
    assert found.types == types
    assert collapse([place(frame) for frame in found.frames]) == ("bin/run:<module>", "app/order.rb:pay", "app/order.rb:total")


@pytest.mark.parametrize(
    "at",
    ["at {} in {}:line 7", "在 {} 位置 {}:行号 7", "場所 {} 場所 {}:行 7", "위치: {} 파일 {}:줄 7", "v {} v {}:řádek 7"],
)
def test_dotnet_is_read_in_any_language(at):
    where = at.format("Shop.Cart.Total(Int32 x)", "C:\\src\\Cart.cs")
    found = parse(f"System.FormatException: no\n   {where}")
    assert [place(frame) for frame in found.frames] == ["Shop.Cart:Total"]
    assert found.frames[0].line == 7
    assert parse(f"Unbehandelte Ausnahme: System.FormatException: no\n   {where}").types == ("FormatException",)


def test_dotnet_callers_from_before_a_wait_are_on_the_stack_and_an_aggregates_second_telling_is_not():
    found = parse(
        """System.AggregateException: One or more errors occurred.
 ---> System.FormatException: no
   at Shop.Cart.<TotalAsync>d__3.MoveNext()
--- End of stack trace from previous location ---
   at Shop.Checkout.Pay() in /src/Checkout.cs:line 3
   --- End of inner exception stack trace ---
   at Shop.App.Main()
 ---> (Inner Exception #0) System.FormatException: no
   at Shop.Cart.<TotalAsync>d__3.MoveNext()<---"""
    )
    assert found.types == ("AggregateException", "FormatException")
    assert [place(frame) for frame in found.frames] == ["Shop.App:Main", "Shop.Checkout:Pay", "Shop.Cart:TotalAsync"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("com.acme.Order.total", "com.acme.Order:total"),
        ("at com.acme.Order.total(Order.java:12)", "com.acme.Order:total"),
        ('File "/srv/app/shop/p.py", line 3, in convert', "shop/p.py:convert"),
        ("shop/p.py:12 in convert", "shop/p.py:convert"),
        ("convert (shop/p.py:12)", "shop/p.py:convert"),
        ("shop/p.py:convert:12", "shop/p.py:convert"),
        ("shop/p.py:12:convert", "shop/p.py:convert"),
        ("at total (https://x.io/a.js:1:22)", "a.js:total"),
        ("total@https://x.io/a.js:1:2", "a.js:total"),
        ("http://localhost:3000/src/a.js?t=1:12:3", "src/a.js:<anonymous>"),
        ("webpack://shop/./src/a.ts:12 in total", "src/a.ts:total"),
        ("C:\\build\\src\\Cart.cs:12 in Total", "src/Cart.cs:Total"),
        ("node:events:254 in emit", "node:events:emit"),
        ("app/order.rb:block in total", "app/order.rb:total"),
        ("src/cart.rs:shop::cart::total", "src/cart.rs:shop::cart::total"),
        ("shop::cart::total::h0123456789abcdef at /app/src/cart.rs:12", "src/cart.rs:shop::cart::total"),
        ("#3 0x00005570 in shop::Cart::pay(int, char const*) at /build/shop/src/pay.cpp:40", "src/pay.cpp:shop::Cart::pay"),
        ("lib/shop/cart.ex:12: Shop.Cart.total/2", "lib/shop/cart.ex:Shop.Cart.total/2"),
        ("#0 /app/app/Cart.php(33): App\\Cart->total()", "app/Cart.php:App\\Cart::total"),
        ("-[Cart total:] (Cart.m:3)", "Cart.m:-[Cart total:]"),
        ("__libc_start_main from libc.so.6", "libc.so.6:__libc_start_main"),
        ("UIKitCore -[UIApplication _run]", "UIKitCore:-[UIApplication _run]"),
        ("CoreFoundation __exceptionPreprocess", "CoreFoundation:__exceptionPreprocess"),
        ("libdispatch.dylib _dispatch_main", "libdispatch.dylib:_dispatch_main"),
        ("com.acme.Cart$$EnhancerBySpringCGLIB$$1a2b:total", ""),
        ("a.js:10:5", "a.js:<anonymous>"),
        ("github.com/a/b.(*C).D.func1", "github.com/a/b:(*C).D<lambda>"),
        ("app/o.rb:12:in `total'", "app/o.rb:total"),
        ("Shop.Cart.Total(Int32 x) in C:\\src\\Cart.cs:line 3", "Shop.Cart:Total"),
        ("core::ptr::drop::h0123456789abcdef", ":core::ptr::drop"),
        ("convert", ":convert"),
    ],
)
def test_a_single_frame_is_read_in_any_notation(line, expected):
    assert place(frame_of(line)) == expected


@pytest.mark.parametrize(
    ("title", "type_"),
    [
        ("shop.errors.PaymentFailed: no card", "shop.errors.PaymentFailed"), ("KeyError", "KeyError"),
        ("Uncaught TypeError: x", "TypeError"),
        ("Exception in thread \"main\" java.lang.Error: x", "java.lang.Error"), ("panic: boom", "panic"),
        ("cannot pay: no card", ""), ("Foo bar: x", ""), ("Fehler: x", ""), ("CartGone: x", "CartGone"),
    ],
)  # fmt: skip
def test_the_type_is_read_from_a_title(title, type_):
    assert titled(title) == type_


def test_an_exception_of_a_sender_that_writes_lines_is_the_same_at_another_line():
    def told(line, title="java.lang.IllegalStateException: order 17", **more):
        frames = [
            "java.lang.Thread.run(Thread.java:829)",
            "com.acme.App.lambda$main$0(App.java:9)",
            f"com.acme.Order.total(Order.java:{line})",
        ]
        return exception([{"function": frame} for frame in frames], exception_type="", exception_value=title, title=title, **more)

    first = fingerprint(told(12))
    assert first.parts[2:] == ("IllegalStateException", "com.acme.App:main<lambda>", "com.acme.Order:total")
    assert first.key == fingerprint(told(99, "java.lang.IllegalStateException: order 4")).key
    wrapped = told(12, "com.acme.Failed: sorry", body="com.acme.Failed: sorry\nCaused by: java.lang.IllegalStateException: order 17")
    assert first.key == fingerprint(wrapped).key != fingerprint(told(12, "java.lang.ArithmeticException: / by zero")).key


def test_what_happened_while_another_error_was_handled_is_a_problem_of_its_own():
    found = parse(
        PYTHON.replace(
            "The above exception was the direct cause of the following exception",
            "During handling of the above exception, another exception occurred",
        )
    )
    assert found.types == ("CheckoutError",)


def test_a_log_line_with_a_trace_is_the_exception_it_tells_of(make_signal):
    one = make_signal(title="Order 17 failed", body=PYTHON)
    other = make_signal(title="Order 4 could not be paid", body=PYTHON.replace("line 12", "line 99"))
    assert fingerprint(one).rule == "exception"
    assert fingerprint(one).key == fingerprint(other).key


def test_text_without_a_trace_has_none(make_signal):
    assert parse("at noon, in the file, we met\nCaused by: hunger") is None
    assert stack_of(make_signal(title="x", body="two\nlines")).frames == ()
    assert causes("Caused by: java.io.IOException: closed\n  caused by: Foo") == ("IOException", "Foo")


@law
@given(
    st.text(
        alphabet=st.sampled_from("at Traceback(most recent call last):\n\t/.:<>$@{}[]'\"`0aZ_ File line in panic goroutine from"),
        max_size=600,
    )
)
def test_any_text_is_read_without_failing(text):
    parse(text)
    function_name(text)
    file_name(text)
    place(StackFrame(function=text[:512], file=text[:512], module=text[:512]))


HINTS = (
    "Traceback (most recent call last):\n  File \"a\"\n", "goroutine 1 [running]:\n", ":1:in `x\n", "\n  at x\n", "(A.java:1)\n  at x\n",
    "\n#0 {main}\n", "' panicked at \n", "\n  a.ex:1: a\n", "\n#0  a\n",
)  # fmt: skip


@pytest.mark.timeout(60)  # backtracking that grows with the square takes minutes
@pytest.mark.parametrize(
    "piece",
    [
        "a.",
        "at a(",
        "\tat a.",
        "(",
        "<",
        "$lambda$1",
        "::",
        "/a",
        "_1",
        "closure #1 in ",
        "lambda$",
        "$anonfun$",
        "func1.",
        "`1",
        "Caused by: a",
        'File "a',
        "a@",
        "#0 a (a=",
        "#0 0x1 in a ",
        "0 a 0x1111111 ",
        " in a.php:1",
    ],
)
def test_hostile_repetition_is_read_in_bounded_time(piece):
    text = piece * (16_384 // len(piece))
    for hint in HINTS:
        parse(hint + text)
        parse(hint + text.replace("a", "a\n"))
    function_name(text)
    file_name(text)
    causes(text)


def test_a_circle_is_what_goes_round_most():
    assert cycle(["in", "in", *["a", "b"] * 10, "a"]) == ("a", "b")
    assert cycle(["a", "b"]) == ()
