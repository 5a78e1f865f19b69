"""Techniques as modules: each is an ordinary DSPy module whose work is a flow."""

from promptflow.modules.predict import Predict

__all__ = ["Predict"]
