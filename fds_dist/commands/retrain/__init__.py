"""Training from scratch on the whole training set, by a learned schedule stretched to another number of epochs."""

from __future__ import annotations
