"""What the files of an evaluation say beside their scores: which grids there are, whether labels fit their names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 12
SIDES = {"mask": "prediction", "label": "reference", "rival": "the other prediction"}


class Audit:
    """Looks at one case after another, and keeps counts alone."""

    def __init__(self, labels: Mapping[int, str] | None) -> None:
        self.labels = labels
        self.num_cases = 0
        self.grids: dict[str, Counter[str]] = {"shape": Counter(), "spacing": Counter(), "orientation": Counter()}
        self.in_mask: Counter[int] = Counter()
        self.in_label: Counter[int] = Counter()
        self.disjoint: list[str] = []
        self.overlap: dict[str, dict[str, int]] = {}
        self.unnamed: dict[str, set[int]] = {}

    def add(self, case: str, facts: Mapping[str, Any]) -> None:
        """Count a case: what `scoring.score_case` found out about it."""
        self.num_cases += 1
        self.grids["shape"]["x".join(map(str, facts["shape"]))] += 1
        spacing = " x ".join(f"{edge:.4g}" for edge in facts["spacing"])
        self.grids["spacing"]["unknown" if facts["unit"] == "px" else f"{spacing} {facts['unit']}"] += 1
        self.grids["orientation"][facts["orientation"] or "a picture has none"] += 1
        self.in_mask.update(facts["mask_ids"])
        self.in_label.update(facts["label_ids"])
        if facts["mask_ids"] and facts["label_ids"] and not set(facts["mask_ids"]) & set(facts["label_ids"]):
            self.disjoint.append(case)
        for role in facts["overlap"]:
            if facts["overlap"][role]:
                self.overlap.setdefault(role, {})[case] = facts["overlap"][role]
            self.unnamed.setdefault(role, set()).update(facts["unnamed"][role])

    def found(self) -> dict[str, Any]:
        """`grids` (what -> value -> cases), `labels` (one entry an id) and `findings`, sentences for people."""
        ids = sorted({*self.in_mask, *self.in_label, *(self.labels or {})})
        entries = [
            {"id": i, "name": self._name(i), "cases_label": self.in_label[i], "cases_mask": self.in_mask[i]}
            for i in ids
        ]
        grids = {what: dict(counter.most_common(SHOWN)) for what, counter in self.grids.items()}
        return {"cases": self.num_cases, "grids": grids, "labels": entries, "findings": self._findings(entries)}

    def _name(self, i: int) -> str:
        return str(i) if self.labels is None else self.labels.get(i, "")

    def _findings(self, entries: Sequence[Mapping[str, Any]]) -> list[str]:
        found = []
        unnamed = [str(e["id"]) for e in entries if not e["name"]]
        if unnamed:
            found.append(f"ids without a name in the class list, not scored: {_some(unnamed)}")
        for one, other, said in (
            ("cases_label", "cases_mask", "in the reference and never predicted"),
            ("cases_mask", "cases_label", "predicted and never in the reference"),
        ):
            lone = [f"{e['name']} ({e[one]})" for e in entries if e["name"] and e[one] and not e[other]]
            if lone:
                found.append(f"{said} (in so many cases): {_some(lone)}")
        if self.disjoint:
            fix = "are both sides numbered alike? 255 is often 1, and a labels.json beside the files translates by name"
            found.append(f"no id in common between prediction and reference in {_some(self.disjoint)}; {fix}")
        for role, of_case in self.overlap.items():
            most = sorted(of_case, key=lambda case: -of_case[case])
            told = _some([f"{case} ({of_case[case]})" for case in most])
            found.append(f"{SIDES[role]}: masks overlap in {len(most)} cases (voxels); the larger id has them: {told}")
        for role, ids in self.unnamed.items():
            if ids:
                found.append(
                    f"{SIDES[role]}: labels.json has no name for {_some([*map(str, sorted(ids))])}: not scored"
                )
        for what in ("spacing", "orientation"):
            if len(self.grids[what]) > 1:
                kinds = [f"{value} ({num})" for value, num in self.grids[what].most_common()]
                found.append(f"{len(kinds)} kinds of {what} (in so many cases): {_some(kinds)}")
        return found


def _some(words: Sequence[str], most: int = 8) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
