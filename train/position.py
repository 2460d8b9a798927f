"""Where a run stands: all that a resume needs beside the tensors, as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from train.phases import Keep, Progress


@dataclass
class Position:
    """stage, phase: being trained, from 0; step: finished in this epoch; progress: of the phase;
    loss_sum, loss_count: of this epoch so far, and copies trained, seconds since it began, those of
    its steps alone and joules (of this process; in a checkpoint of all), wherever it was stopped in
    between; lines: of metrics.jsonl; phases: finished ones of this stage, with their results."""

    stage: int = 0
    phase: int = 0
    step: int = 0
    progress: Progress = field(default_factory=Progress)
    loss_sum: float = 0.0
    loss_count: float = 0.0
    copies: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    energy_j: float = 0.0
    lines: int = 0
    phases: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Position":
        return cls(**{**state, "progress": Progress.from_json(state["progress"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def epoch(self) -> int:
        """The epoch being trained, from 0, counted through the stage."""
        return sum(phase["epochs"] for phase in self.phases) + self.progress.epoch

    @property
    def train_loss(self) -> float:
        """Mean training loss of this epoch so far."""
        return self.loss_sum / max(self.loss_count, 1.0)

    def end_epoch(
        self, val_loss: float, accuracy: float | None = None, keep: Keep = "best loss"
    ) -> None:
        """One more epoch is done."""
        self.progress = self.progress.after_epoch(val_loss, accuracy, keep)
        self.step, self.loss_sum, self.loss_count = 0, 0.0, 0.0
        self.copies, self.seconds, self.step_seconds, self.energy_j = 0, 0.0, 0.0, 0.0

    def end_phase(self, result: dict[str, Any]) -> None:
        """The phase is done; the next one begins."""
        self.phases.append(result)
        self.phase, self.step, self.progress = self.phase + 1, 0, Progress()

    def end_stage(self) -> None:
        """The stage is done; the next one begins."""
        self.stage, self.phase, self.phases = self.stage + 1, 0, []
