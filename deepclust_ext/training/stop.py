"""A run that was asked to stop."""

from pathlib import Path


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop has saved its state.

    Args:
        where: In the run.
        checkpoint: That holds it.

    Attributes:
        status: With which a program ends, as after SIGINT.
    """

    status = 130

    def __init__(self, where: str, checkpoint: Path) -> None:
        super().__init__(f"stopped {where}; {checkpoint} holds the run, and resume continues it")
