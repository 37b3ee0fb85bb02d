"""How often the guilty commit is first, and how often an innocent one is accused, on seeded histories; printed, with floors."""

from __future__ import annotations

from collections import Counter

from loopwright_common.contracts.investigations import InvestigationVerdict

SEEDS = range(8)
KINDS = ("wrote line", "changed line", "removed guard", "changed caller", "changed producer")


async def test_guilty_commit_is_first_among_innocent_ones(new_incident):
    first, three, total, acted, wrong = Counter(), Counter(), Counter(), Counter(), []
    for kind in KINDS:
        for seed in SEEDS:
            incident = new_incident(seed, kind)
            result, found = await incident.scene.investigate()
            ranked = [suspect.commit for suspect in result.suspects]
            total[kind] += 1
            first[kind] += ranked[:1] == [incident.guilty]
            three[kind] += incident.guilty in ranked[:3]
            acted[kind] += result.verdict is InvestigationVerdict.ACTIONABLE
            if result.verdict is InvestigationVerdict.ACTIONABLE and ranked[0] != incident.guilty:
                wrong.append((kind, seed))
            if result.verdict is not InvestigationVerdict.ACTIONABLE:
                print('  ', kind, seed, result.reason[:500])
            if ranked[:1] != [incident.guilty]:
                print("missed", kind, seed, incident.guilty, result.reason, [(s.commit[:7], s.title, s.score, s.reasons) for s in result.suspects[:3]])
    for kind in KINDS:
        print(f"{kind:18} first {first[kind]}/{total[kind]}  first three {three[kind]}/{total[kind]}  actionable {acted[kind]}/{total[kind]}")
    everything = sum(total.values())
    print(f"{'all':18} first {sum(first.values())}/{everything}  first three {sum(three.values())}/{everything}  actionable {sum(acted.values())}/{everything}; wrongly accused: {wrong}")
    assert False
