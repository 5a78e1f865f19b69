"""Prompt programs and grounded question answering on local models.

The public names stand in ``__init__.pyi``. Each is imported when it is first used: importing
promptflow loads neither dspy nor torch nor llama.cpp.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
