"""Doors to other libraries' models; importing this imports none of them."""

from ulmfit_fast.compat import fastai

__all__ = ["fastai"]
