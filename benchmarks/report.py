"""A line for each figure: what was measured, the budget, the baseline of the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. `better` says which side of the budget is the good one."""

    name: str
    value: float
    unit: str
    budget: float | None = None
    better: Literal["more", "less"] = "more"
    baseline: float | None = None
    baseline_name: str = ""

    @property
    def holds(self) -> bool | None:
        if self.budget is None:
            return None
        return self.value >= self.budget if self.better == "more" else self.value <= self.budget

    def line(self) -> str:
        text = f"{self.name:<44} {_number(self.value):>10} {self.unit:<9}"
        if self.budget is not None:
            sign = ">=" if self.better == "more" else "<="
            text += f" budget {sign} {_number(self.budget):>8} {'holds' if self.holds else 'MISSED'}"
        if self.baseline:
            text += f"   {self.value / self.baseline:.2f} x {self.baseline_name} ({_number(self.baseline)})"
        return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
