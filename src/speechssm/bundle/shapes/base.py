"""What every shape shares: frozen, strict, no unknown keys."""

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """A part's hyper-parameters as data. Axis letters are those of :mod:`speechssm.axes`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
