"""From what a frame calls a file to the file of the repository."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_investigator.paths import FileIndex, read_frame_path

PYTHON = FileIndex(
    ["src/shop/__init__.py", "src/shop/cart.py", "src/shop/api/views.py", "src/shop/api/__init__.py", "tests/test_cart.py", "setup.py"]
)
MONOREPO = FileIndex(
    [
        "services/a/app/main.py",
        "services/b/app/main.py",
        "services/a/lib/util.py",
        "web/src/cart/index.ts",
        "web/src/cart.test.ts",
        "cmd/main.go",
        "internal/cart/cart.go",
        "src/main/java/com/acme/Cart.java",
        "app/Http/Controllers/CartController.php",
        "lib/shop/cart.rb",
    ]
)


def found(index, file, **where):
    return [match.path for match in index.by_path(read_frame_path(file), **where)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/app/src/shop/cart.py", "src/shop/cart.py"),
        ("/usr/src/app/shop/cart.py", "src/shop/cart.py"),
        ("shop/cart.py", "src/shop/cart.py"),
        ("./src/shop/../shop/cart.py", "src/shop/cart.py"),
        ("cart.py", "src/shop/cart.py"),
        ("/usr/lib/python3.11/site-packages/shop/cart.py", "src/shop/cart.py"),
        (r"D:\build\agent\shop\cart.py", "src/shop/cart.py"),
        ("file:///app/src/shop/cart.py:12:3", "src/shop/cart.py"),
        ("https://cdn.example/build/src/shop/cart.py?v=3#x", "src/shop/cart.py"),
        ("webpack://shop/./src/shop/cart.py", "src/shop/cart.py"),
        ("app:///src/shop/cart.py", "src/shop/cart.py"),
        ("/app/cart.py", "src/shop/cart.py"),
    ],
)
def test_path_as_deployed_leads_to_the_file(file, expected):
    assert found(PYTHON, file) == [expected]


@pytest.mark.parametrize(
    "file",
    [
        "/usr/lib/python3.11/site-packages/requests/api/views.py",
        "/usr/lib/python3.11/json/cart.py",
        "<frozen importlib._bootstrap>",
        "node:internal/process/task_queues",
        "",
        "/",
        "..",
        "/app/nothing.py",
        "\x00",
    ],
)
def test_path_of_others_leads_nowhere(file):
    assert found(PYTHON, file) == []


def test_package_inside_ours_is_not_an_installed_one_of_the_same_name():
    index = FileIndex(["shop/__init__.py", "shop/requests/models.py"])
    assert found(index, "/venv/lib/python3.11/site-packages/requests/models.py") == []


def test_service_folder_decides_between_equal_tails():
    assert found(MONOREPO, "/srv/app/main.py", service_path="services/b") == ["services/b/app/main.py"]
    assert set(found(MONOREPO, "/srv/app/main.py")) == {"services/a/app/main.py", "services/b/app/main.py"}


def test_deployed_prefix_is_replaced_by_the_service_folder():
    assert found(MONOREPO, "/opt/x/app/main.py", service_path="services/a", deployed_path="/opt/x") == ["services/a/app/main.py"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("shop.cart", "src/shop/cart.py"),
        ("shop.cart.total", "src/shop/cart.py"),
        ("shop.api", "src/shop/api/__init__.py"),
        ("shop.api.views.Checkout.post", "src/shop/api/views.py"),
    ],
)
def test_python_module_leads_to_its_file(module, expected):
    assert [match.path for match in PYTHON.by_module(module)] == [expected]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("com.acme.Cart$Line", "src/main/java/com/acme/Cart.java"),
        ("App\\Http\\Controllers\\CartController", "app/Http/Controllers/CartController.php"),
        ("src/cart", "web/src/cart/index.ts"),
    ],
)
def test_module_names_of_other_languages_lead_to_their_files(module, expected):
    assert expected in [match.path for match in MONOREPO.by_module(module)]


def test_minified_and_platform_files_are_known_as_such():
    assert read_frame_path("https://x/static/js/main.3fa2b9c1.js").minified
    assert read_frame_path("/app/vendor.min.js").minified
    assert not read_frame_path("src/cart.ts").minified
    assert read_frame_path("/usr/lib/python3.11/json/decoder.py").platform
    assert read_frame_path("/x/node_modules/express/lib/router.js").platform
    assert not read_frame_path("/app/src/shop/cart.py").platform


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_without_failing_and_stays_inside(text):
    path = read_frame_path(text)
    assert ".." not in path.parts
    for match in PYTHON.by_path(path):
        assert match.path in PYTHON.files
    for match in PYTHON.by_module(text):
        assert match.path in PYTHON.files
