"""A run that was asked to stop."""

from pathlib import Path


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop has saved its state.

    Args:
        where: Where in the run it stopped.
        checkpoint: The file with the state.

    Attributes:
        status: Exit status for the program, as after SIGINT.
    """

    status = 130

    def __init__(self, where: str, checkpoint: Path) -> None:
        super().__init__(f"stopped {where}; {checkpoint} holds the run, and resume continues it")
