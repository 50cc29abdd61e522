"""Clocks, power, temperature and throttling of the GPU. A thread asks NVML for them during the whole report."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from aristos.topology import nvml

PERIOD = 0.5  # seconds
IDLE = 1  # nvmlClocksEventReasonGpuIdle, which is no throttling
REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat",
    0x40: "heat, in hardware",
    0x80: "power brake",
    0x100: "display clocks",
}


@dataclass
class Samples:
    """What was seen from `start` to `stop`. rows: those of nvml.samples, each with its second and its part."""

    uuid: str
    library: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    part: str = ""
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Samples:
        """Start a thread that asks the driver. The report does not wait for it: the driver may hang."""
        if self.library is not None:
            threading.Thread(target=self._run, daemon=True, name="samples").start()
        return self

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        began = time.monotonic()
        for found in nvml.samples(self.library, self.uuid):
            self.rows.append(found | {"seconds": time.monotonic() - began, "part": self.part})
            if self._ended.wait(PERIOD):
                return

    def of_part(self, part: str) -> list[dict[str, Any]]:
        """The samples of a part."""
        return [row for row in list(self.rows) if row["part"] == part]

    def line(self, part: str) -> list[str]:
        """A part's row of the page: SM clock from least to most, highest power and temperature, throttling."""
        rows = self.of_part(part)

        def spread(name: str) -> str:
            values = [row[name] for row in rows if name in row]
            return f"{min(values)} to {max(values)}" if values else "-"

        def most(name: str, form: str) -> str:
            values = [row[name] for row in rows if name in row]
            return format(max(values), form) if values else "-"

        masks = [int(row["throttled"]) for row in rows if "throttled" in row]
        said = [
            f"{reason} ({sum(bool(mask & bit) for mask in masks)} of {len(masks)})"
            for bit, reason in REASONS.items()
            if any(mask & bit for mask in masks)
        ]
        return [
            part,
            spread("sm_clock_mhz"),
            most("power_w", ".0f"),
            most("celsius", "d"),
            ", ".join(said) if said else "none" if masks else "-",
            str(len(rows)),
        ]


HEAD = ["part", "SM clock, MHz", "most power, W", "most heat, C", "throttled by", "samples"]
