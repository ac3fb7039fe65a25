"""performance of workers.yaml: how the workers' speed is measured."""

from typing import Annotated

from pydantic import Field

from koubou_common.settings.base import SettingsModel

_WINDOW_MOST_H = 8_760  # as long as attempts are kept
_UPDATE_MOST_S = 86_400.0


class Performance(SettingsModel):
    """What is measured of the workers, and when it counts."""

    update_s: Annotated[float, Field(ge=1, le=_UPDATE_MOST_S)] = Field(
        300.0, description="Seconds between two updates of the performance factors, while tasks run."
    )
    window_h: int = Field(
        24, ge=1, le=_WINDOW_MOST_H, description="Hours to look back: older runs count no more for the factors."
    )
    min_samples: int = Field(
        5,
        ge=1,
        le=10_000,
        description="Successful runs before what was measured of a worker counts, for its factor and its limits.",
    )
