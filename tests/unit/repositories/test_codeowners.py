from __future__ import annotations

from loopwright_repositories.codeowners import parse_codeowners

OWNERS = parse_codeowners(
    """
# comment
*           @all
*.js        @js-owner   # inline comment
docs/*      docs@example.com
/build/     @build
apps/       @octocat
/apps/github
my\\ dir/   @space
!secret.txt @nobody
a[bc].txt   @range
[Section]
**/logs     @logs
"""
)


def test_the_last_rule_that_matches_decides():
    assert OWNERS.of("README.md") == ("@all",)
    assert OWNERS.of("src/app.js") == ("@js-owner",)
    assert OWNERS.of("apps/app.js") == ("@octocat",)


def test_a_star_owns_only_the_files_directly_in_the_folder():
    assert OWNERS.of("docs/start.md") == ("docs@example.com",)
    assert OWNERS.of("docs/build/start.md") == ("@all",)


def test_folders_own_all_below_and_a_leading_slash_anchors():
    assert OWNERS.of("build/logs-of/x") == ("@build",)
    assert OWNERS.of("sub/build/x") == ("@all",)
    assert OWNERS.of("deep/apps/x/y") == ("@octocat",)
    assert OWNERS.of("a/logs/x") == ("@logs",)
    assert OWNERS.of("my dir/x") == ("@space",)


def test_a_pattern_without_owners_leaves_the_path_unowned():
    assert OWNERS.of("apps/github") == ()
    assert OWNERS.rule("apps/github") is not None


def test_lines_that_cannot_be_followed_are_told():
    assert [line.split(":")[0] for line in OWNERS.skipped] == ["line 10", "line 11", "line 12"]


def test_no_file_means_no_owner():
    assert parse_codeowners("").of("anything") == ()
