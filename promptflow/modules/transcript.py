"""What a prediction's model wrote, as text: outputs with the labels that stood before them."""

from __future__ import annotations

from promptflow.fields import to_text
from promptflow.flow import Prediction
from promptflow.signatures import label_of, plain_label


def written(prediction: Prediction) -> str:
    """Return the fields that predictors on the way filled, a line each; all where none is known."""
    labels = {
        name: label_of(info)
        for predictor, _, _ in prediction._trace
        if hasattr(predictor, "signature")
        for name, info in predictor.signature.output_fields.items()
    }
    return "\n".join(
        f"{labels.get(name) or plain_label(name)} {to_text(value)}"
        for name, value in prediction.items()
        if name in labels or not labels
    )
