"""Trainings that are cut short."""

from __future__ import annotations

from functools import partial

import pytest


def refine_briefly(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Blocks are refined in so many steps: the few samples of a test make it a hundred otherwise."""
    from onnxdecomp.training.refinement import refine

    patch.setattr(refine, "How", partial(refine.How, steps=steps))
