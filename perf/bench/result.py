"""What a benchmark hands over: figures, tables and plots as data, and the report they add up to.

Everything the pages show is in the JSON, and nothing else is: the pages are drawn from it and can be drawn
again. A figure that was not measured is null with the reason, never a pass.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT: Literal["speechssm-bench"] = "speechssm-bench"
VERSION: Literal[1] = 1

Cell = str | int | float | bool | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Strict):
    """One number. ``limit`` is what it is held against: at most, or at least, that much."""

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    bound: Literal["at most", "at least"] | None = None
    reason: str | None = None
    """Why the value is null; never beside a value."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.value is None) != bool(self.reason):
            raise ValueError(f"figure {self.name}: a null has a reason, and only a null has one")
        if (self.limit is None) != (self.bound is None):
            raise ValueError(f"figure {self.name}: a limit says whether it is an upper or a lower one")
        return self

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None without a limit. A null never keeps one."""
        if self.limit is None:
            return None
        if self.value is None:
            return False
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit


class Table(_Strict):
    """Rows of cells under ``columns``; a null cell is explained in the row's last column or in ``note``."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: a row of {len(row)} cells under {len(self.columns)} columns"
                )
        return self


class Series(_Strict):
    """Points of one line, or heights of one set of bars; ``low`` and ``high`` are its spread."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    style: Literal["measured", "computed"] = "measured"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(len(v) != len(self.x) for v in (self.y, self.low, self.high) if v is not None):
            raise ValueError(f"series {self.name}: as many heights as places are needed")
        return self


class Plot(_Strict):
    """One diagram."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["lines", "bars", "stacked"] = "lines"
    log_x: bool = False
    log_y: bool = False


class Section(_Strict):
    """The outcome of one benchmark."""

    name: str
    title: str
    about: str
    """What was done, in the reader's words: conditions, cache policy, what is counted."""
    seconds: float
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)
    """Anything else worth keeping, for other programs."""

    def figure(self, name: str) -> Figure:
        """The figure of that name. Raises KeyError."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)


class Report(_Strict):
    """One run of ``speechssm bench``."""

    format: Literal["speechssm-bench"] = FORMAT
    version: Literal[1] = VERSION
    command: str
    quick: bool
    started: str
    seconds: float
    environment: dict[str, Any]
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section:
        """The section of that name. Raises KeyError."""
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(name)


def measured(
    name: str, value: float, unit: str, *, most: float | None = None, least: float | None = None
) -> Figure:
    """A figure, held against an upper or a lower limit if one is given. NaN and infinity become null."""
    if not math.isfinite(value):
        return missing(name, unit, "the measurement gave no finite number", most=most, least=least)
    limit = most if most is not None else least
    bound: Literal["at most", "at least"] | None = (
        "at most" if most is not None else "at least" if least is not None else None
    )
    return Figure(name=name, value=value, unit=unit, limit=limit, bound=bound)


def missing(
    name: str, unit: str, reason: str, *, most: float | None = None, least: float | None = None
) -> Figure:
    """A figure that could not be measured, and why."""
    limit = most if most is not None else least
    bound: Literal["at most", "at least"] | None = (
        "at most" if most is not None else "at least" if least is not None else None
    )
    return Figure(name=name, value=None, unit=unit, reason=reason, limit=limit, bound=bound)
