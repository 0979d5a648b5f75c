"""ST-Net: direct regression."""

from __future__ import annotations

from torch import Tensor

from cmrcnet.evaluation.methods.baseline_inputs import View
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.regression import MSERegressor, RegressionPredictor, fit_regression


class STNet:
    """Features, a linear output layer over genes, MSE, trained by gradient and stopped early.

    Source: He et al., "Integrating spatial gene expression and breast tumour morphology via deep learning", Nature
    Biomedical Engineering 2020, doi 10.1038/s41551-020-0578-x.

    Differs from the original: the encoder is the run's frozen one, seen through PCA-256, where ST-Net trains a
    DenseNet-121 too; the optimiser is AdamW; the epoch is chosen on a validation unit; genes are chosen and completed
    as
    in `regression`.
    """

    name = "st-net"
    about = (
        "after ST-Net (He et al. 2020): linear output layer on frozen features, MSE, early stopping "
        "on a validation unit"
    )

    def fit(self, training: TrainingData) -> RegressionPredictor:
        """Train the output layer."""
        return fit_regression(training, LinearLayer)


class LinearLayer(MSERegressor):
    """Nothing but the output layer: the hidden layer is the features themselves.

    Parameters
    ----------
    dim : int
        Length of a spot's features.
    level : tensor, shape (genes,)
    """

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__(dim, level)

    def hidden(self, view: View, rows: Tensor) -> Tensor:
        """The features."""
        return view.features[rows]
