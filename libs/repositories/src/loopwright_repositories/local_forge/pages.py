"""Plain pages for people who follow a link to the forge. Everything shown is escaped; nothing on them can run."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse

from loopwright_repositories.forges.port import ForgeCheckRun, ForgeComment, ForgePullRequest, ForgeRepository

DIFF_CHARACTERS_MAX = 400_000
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #cf222e; --done: #8250df; }
body { font: 15px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 5rem; }
h1 { font-size: 1.5rem; margin: .2rem 0 .6rem; line-height: 1.25; } h2 { font-size: 1rem; margin: 2.2rem 0 .6rem; }
.soft, time { opacity: .7; } a { color: inherit; } code, pre { font: 13px/1.5 ui-monospace, monospace; }
.state { display: inline-block; padding: .1rem .65rem; border-radius: 1rem; color: #fff; font-size: .85rem; background: var(--good); }
.state.merged { background: var(--done); } .state.closed { background: var(--bad); } .state.draft { background: #6e7781; }
.box { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; } .box > * { padding: .7rem 1rem; margin: 0; }
.box > * + * { border-top: 1px solid var(--line); } .text { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; }
.success { color: var(--good); } .failure, .timed_out { color: var(--bad); }
.diff { overflow-x: auto; padding: 0; } .diff span { display: block; padding: 0 1rem; min-width: max-content; white-space: pre; }
.diff .add { background: #2da44e2e; } .diff .del { background: #cf222e26; } .diff .hunk { background: var(--soft); opacity: .75; }
.diff .file { background: var(--soft); font-weight: 600; }
"""


def _page(title: str, body: str) -> HTMLResponse:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return HTMLResponse(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>', headers=_HEADERS)


def repositories_page(repositories: list[ForgeRepository]) -> HTMLResponse:
    """What the forge holds."""
    rows = "".join(
        f'<p><a href="/repos/{escape(item.name)}">{escape(item.name)}</a> <code>{escape(item.clone_url)}</code></p>'
        for item in repositories
    )
    return _page("Repositories", f'<h1>Repositories</h1><div class="box">{rows or "<p>None yet.</p>"}</div>')


def repository_page(repository: ForgeRepository, pulls: list[ForgePullRequest]) -> HTMLResponse:
    """A repository and its pull requests."""
    rows = "".join(
        f'<p>{_state(pull)} <a href="/repos/{escape(pull.repository)}/pulls/{pull.number}">#{pull.number} {escape(pull.title)}</a></p>'
        for pull in pulls
    )
    source = f'<p class="soft">follows {escape(repository.source)}</p>' if repository.source else ""
    return _page(
        repository.name,
        f'<h1>{escape(repository.name)}</h1><p><code>git clone {escape(repository.clone_url)}</code></p>{source}'
        f'<h2>Pull requests</h2><div class="box">{rows or "<p>None yet.</p>"}</div>',
    )  # fmt: skip


def pull_page(
    pull: ForgePullRequest, diff: str, checks: list[ForgeCheckRun], comments: list[ForgeComment], commits: list[dict[str, str]]
) -> HTMLResponse:
    """One pull request: what it says, what it changes, what was checked, what was said."""
    checked = "".join(
        f'<p><strong class="{escape(check.conclusion or "")}">{escape(check.conclusion or check.status)}</strong> {escape(check.name)}'
        f'<br><span class="soft text">{escape(check.summary)}</span></p>'
        for check in checks
    )
    said = "".join(
        f'<div><strong>{escape(comment.author)}</strong> <time>{comment.created_at:%Y-%m-%d %H:%M} UTC</time>'
        f'<div class="text">{escape(comment.body)}</div></div>'
        for comment in comments
    )  # fmt: skip
    listed = "".join(
        f'<p><code>{escape(commit["sha"][:12])}</code> {escape(commit["subject"])} <span class="soft">{escape(commit["author"])}</span></p>'
        for commit in commits
    )
    outcome = ""
    if pull.state == "merged" and pull.merged_at is not None:
        outcome = f" Merged by {escape(pull.merged_by)} at {pull.merged_at:%Y-%m-%d %H:%M} UTC as {escape((pull.merge_commit or '')[:12])}."
    elif pull.state == "closed":
        outcome = f" Closed by {escape(pull.closed_by)}."
    elif pull.mergeable is False:
        outcome = f" Does not merge: {escape(pull.mergeable_reason)}."
    name = escape(pull.repository)
    return _page(
        f"#{pull.number} {pull.title}",
        f'<p class="soft"><a href="/repos/{name}">{name}</a> pull request #{pull.number}</p><h1>{escape(pull.title)}</h1>'
        f"<p>{_state(pull)} <code>{escape(pull.head)}</code> into <code>{escape(pull.base)}</code>.{outcome}</p>"
        f'<div class="box"><pre class="text">{escape(pull.body) or "No description."}</pre></div>'
        f'<h2>Checks</h2><div class="box">{checked or "<p>None reported.</p>"}</div>'
        f'<h2>Commits</h2><div class="box">{listed}</div>'
        f'<h2>Changes</h2><div class="box"><pre class="diff">{_diff(diff)}</pre></div>'
        f'<h2>Comments</h2><div class="box">{said or "<p>None yet.</p>"}</div>',
    )


def _state(pull: ForgePullRequest) -> str:
    shown = "draft" if pull.draft and pull.state == "open" else pull.state
    return f'<span class="state {shown}">{shown}</span>'


def _diff(diff: str) -> str:
    shown = []
    for line in diff[:DIFF_CHARACTERS_MAX].split("\n"):
        kind = ""
        if line.startswith(("diff --git", "index ", "--- ", "+++ ")):
            kind = "file" if line.startswith("diff --git") else "hunk"
        elif line.startswith("@@"):
            kind = "hunk"
        elif line.startswith("+"):
            kind = "add"
        elif line.startswith("-"):
            kind = "del"
        shown.append(f'<span class="{kind}">{escape(line) or " "}</span>')
    if len(diff) > DIFF_CHARACTERS_MAX:
        shown.append(
            f'<span class="hunk">Cut at {DIFF_CHARACTERS_MAX} of {len(diff)} characters: fetch the branch to see all of it.</span>'
        )
    return "".join(shown)
