"""Cross-entropy of two softmaxes, the similarity of SimSiam's ablation."""

import torch.nn.functional as F
from torch import Tensor


def softmax_cross_entropy(predictions: Tensor, targets: Tensor) -> Tensor:
    """D(p, z) = -mean_n softmax(z_n) . log softmax(p_n), over channels, in float32 (SimSiam, section 4.5).

    Args:
        predictions, targets: (N, D), as they are: no length is taken out, no temperature. A stop-gradient on z is the
            caller's `z.detach()`.

    Returns:
        scalar, at least the mean entropy of softmax(z).
    """
    return -(targets.float().softmax(1) * F.log_softmax(predictions.float(), 1)).sum(1).mean()
