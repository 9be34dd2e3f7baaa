"""Whole runs: from images to a folder that holds everything about the run, and back from such a folder."""

from deepclust_ext.runs.folder import Run, load, open_run
from deepclust_ext.runs.source import Source
from deepclust_ext.runs.train import Options, train

__all__ = ["Options", "Run", "Source", "load", "open_run", "train"]
