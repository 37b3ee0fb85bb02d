"""What can be told of code without parsing it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_investigator.code import (
    defined_names,
    definition,
    enclosing_function,
    kind_of,
    names_in,
    only_formatting,
    plain_function,
    same_code,
    strip_comment,
)


def lines_of(text):
    return text.split("\n")


PYTHON = lines_of("""class Cart:
    def total(
        self,
        rates,
    ):
        def inner(x):
            return x

        # about to add
        return sum(inner(x) for x in self.lines)

    async def close(self):
        pass


LIMIT = 3
""")


def test_function_around_a_line_is_found_by_indent():
    assert enclosing_function(PYTHON, 10, "a.py", "Cart.total") == (2, 10)
    assert enclosing_function(PYTHON, 7, "a.py", "inner") == (6, 7)
    assert enclosing_function(PYTHON, 7, "a.py", "total") == (2, 10)
    assert enclosing_function(PYTHON, 13, "a.py") == (12, 13)
    assert enclosing_function(PYTHON, 16, "a.py") is None
    assert enclosing_function(PYTHON, 0, "a.py") is None
    assert enclosing_function(PYTHON, 999, "a.py") is None


def test_function_around_a_line_is_found_by_braces():
    go = lines_of("package x\n\nfunc (c *Cart) Total() int {\n\tif c == nil {\n\t\treturn 0\n\t}\n\treturn 1\n}\n\nvar y = 2\n")
    assert enclosing_function(go, 7, "x.go", "(*Cart).Total") == (3, 8)
    assert enclosing_function(go, 10, "x.go") is None
    js = lines_of(
        'export const total = async (cart) => {\n  const s = "}";\n  return s;\n};\n\nclass A {\n  run(x) {\n    return x;\n  }\n}\n'
    )
    assert enclosing_function(js, 3, "x.js", "total") == (1, 4)
    assert enclosing_function(js, 8, "x.js", "A.run") == (7, 9)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("def total(cart):", "total"),
        ("    async def close(self) -> None:", "close"),
        ("func (c *Cart) Total(ctx context.Context) error {", "Total"),
        ("pub(crate) async fn total<T>(x: T) -> u32 {", "total"),
        ("export default async function load(id) {", "load"),
        ("const save = async (x) => {", "save"),
        ("    public static int total(List<Line> lines) throws Oops {", "total"),
        ("  def self.total(cart)", "total"),
        ("if (x) {", ""),
        ("    return total(cart)", ""),
        ("    } else if (total(x)) {", ""),
        ("total(cart);", ""),
    ],
)
def test_line_that_begins_a_function_is_known(line, name):
    assert definition(line) == name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Cart.total", "total"),
        ("github.com/acme/shop/cart.(*Cart).Total", "Total"),
        ("Cart::total", "total"),
        ("<module>", ""),
        ("<anonymous>", ""),
        ("com.acme.Cart.total", "total"),
        ("Object.checkout [as handle]", "checkout"),
        ("shop::cart::total::h0123456789abcdef", "total"),
        ("", ""),
        ("async total", "total"),
        ("checkout.<locals>.inner", "inner"),
    ],
)
def test_frame_function_is_reduced_to_its_name(name, plain):
    assert plain_function(name) == plain


def test_formatting_is_told_from_a_change():
    assert only_formatting(["x = f(a,b)"], ["x = f(", "    a,", "    b,", ")"], "a.py")
    assert only_formatting(["x = 'a'  # old"], ['x = "a"'], "a.py")
    assert not only_formatting(["x = a"], ["x = b"], "a.py")
    assert not only_formatting(["text"], ["text "], "data.bin")
    assert same_code(["def f():", "    return 1"], ["def f():", "  return 1  # one"], "a.py")
    assert same_code(["function f() {", "  return 1", "}"], ["function f() { return 1; }".replace(";", "")], "a.js")


def test_moving_a_line_into_a_block_is_not_formatting():
    before = ["def f(x):", "    if x:", "        a()", "    b()"]
    after = ["def f(x):", "    if x:", "        a()", "        b()"]
    assert only_formatting(["    b()"], ["        b()"], "a.py")
    assert not same_code(before, after, "a.py")


def test_sign_of_a_comment_inside_a_text_is_not_a_comment():
    assert strip_comment('x = "a #b"  # c', "a.py") == 'x="a#b"'
    assert strip_comment("y = 'http://x'", "a.js") == "y='http://x'"
    assert strip_comment("# all", "a.py") == ""
    assert strip_comment(" * all", "a.js") == ""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("src/shop/cart.py", "code"),
        ("tests/test_cart.py", "test"),
        ("src/cart.test.ts", "test"),
        ("cart_test.go", "test"),
        ("README.md", "docs"),
        (".github/workflows/ci.yml", "automation"),
        ("requirements.txt", "dependencies"),
        ("web/package-lock.json", "dependencies"),
        ("shop/migrations/0002_x.py", "migration"),
        ("db/migrate/20260101_add.rb", "migration"),
        ("src/migrate.py", "code"),
        ("docs/conf.py", "code"),
    ],
)
def test_kind_of_file_says_what_a_change_can_do(path, kind):
    assert kind_of(path) == kind


def test_names_leave_out_the_words_of_the_language():
    assert names_in("return self.rates[line['currency']] if None else KeyError") == ["rates", "currency", "KeyError"]


def test_definitions_are_those_other_files_can_use():
    lines = ["def total(cart):", "class Cart:", "LIMIT = 3", "    local = 2", "export const rate = 1", "type Line struct {", "x == 3"]
    assert {"total", "Cart", "LIMIT"} <= defined_names(lines, "a.py")
    assert "local" not in defined_names(lines, "a.py")
    assert {"rate", "Line"} <= defined_names(lines, "a.ts")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=600))
def test_any_line_is_read_without_failing(text):
    definition(text)
    plain_function(text)
    names_in(text)
    strip_comment(text, "a.py")
    enclosing_function(text.split("\n"), 1, "a.js")


@pytest.mark.parametrize(
    "text", ["(" * 5_000, "a " * 5_000, "int " * 2_000 + "(", "x." * 5_000, "async " * 3_000, "<a, " * 2_000, "'" * 5_000, "a:b? " * 3_000]
)
def test_hostile_lines_take_no_time(text):
    began = time.perf_counter()
    definition(text)
    plain_function(text)
    names_in(text)
    strip_comment(text, "a.js")
    enclosing_function([text] * 50, 50, "a.js")
    assert time.perf_counter() - began < 2.0
