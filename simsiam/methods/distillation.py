"""Distillation into a student: SimSiam's loss against a frozen, supervised teacher in place of the other view.

Source: hanseungwook/SimSiam, branch main, whose teachers are those of RepDistiller (CRD); no accuracy is published.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.export.read import load_encoder
from simsiam.losses.cosine import negative_cosine
from simsiam.methods.base import Method, Output, stack_views
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder
from simsiam.models.heads import mlp, predictor, projector

_OF_CRD = "of the teachers of the CRD release, resnet56, resnet110 and ResNet50 load"


def frozen_teacher(source: str, name: str = "") -> nn.Module:
    """An encoder that no gradient reaches, in evaluation mode.

    Args:
        source: run folder of `simsiam teacher`, checkpoint of the CRD release (its resnet56, resnet110 and ResNet50) or
            any other encoder file; `random` takes random weights.
        name: of the encoder, where the file does not say it.

    Raises UserError where there is none.
    """
    if source == "random":
        if not name:
            raise UserError("method.teacher random needs the encoder's name; add --method.teacher-encoder resnet56")
        return build_encoder(name).requires_grad_(False).eval()
    if not Path(source).exists():
        raise UserError(
            f"There is no teacher {source!r}; train one by `simsiam teacher`, or give --method.teacher a run folder, "
            "an encoder file or a checkpoint of the CRD release"
        )
    try:
        return load_encoder(source, name=name or None).requires_grad_(False).eval()
    except UserError as error:
        # In that sentence --encoder is the encoder of the file; here it would be the student.
        reason = str(error).replace("--encoder", "--method.teacher-encoder")
        raise UserError(f"method.teacher: {reason}; {_OF_CRD}") from None


class Distilled(Method):
    """A student, which is `encoder`, and a teacher that stays in evaluation mode.

    The teacher's weights are in the checkpoint with the rest: a run goes on with those it began with, whatever is in
    the file by then.

    Args:
        encoder: the student, by name or as a module with `feature_dim`.
        teacher: run folder, encoder file or checkpoint of the teacher, or `random`. A resume reads it too, and then
            takes the weights of its own checkpoint; where the file is gone, `random` with the encoder's name will do.
        teacher_encoder: its name, where the file does not say it.
        dim, projector_layers, projector_hidden, predictor_hidden, output_affine: as in SimSiam, but that the source has
            the last; `projector_hidden` 0 is the width of what the projector takes in.
    """

    def __init__(
        self,
        encoder: str | nn.Module,
        *,
        teacher: str,
        teacher_encoder: str = "",
        dim: int = 2048,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        predictor_hidden: int = 512,
        output_affine: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        self.teacher = frozen_teacher(teacher, teacher_encoder)
        self._add_heads(dim, projector_layers, projector_hidden, predictor_hidden, output_affine)
        for name, network in self.named_children():
            if name != "teacher":  # its statistics are fixed
                per_view_batchnorm(network, 2)

    def _add_heads(self, dim: int, layers: int, hidden: int, predictor_hidden: int, output_affine: bool) -> None:
        """Sets `projector`, `predictor` and what else there is to train."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Distilled":
        """Training mode of all but the teacher, whose batch-norm statistics cannot move."""
        super().train(mode)
        self.teacher.eval()
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        apart = {id(p) for network in (self.teacher, self.predictor) for p in network.parameters()}
        return {
            "encoder": [p for p in self.parameters() if id(p) not in apart],
            "predictor": list(self.predictor.parameters()),
        }

    def _output(self, p: Tensor, t: Tensor, z: Tensor) -> Output:
        """Predictions p (2 N, D) of two views meet their targets t; z (2 N, dim) are the student's projections."""
        # The mean over both views' losses is the mean over rows.
        l2 = F.mse_loss(p.detach().float(), t.float())
        return Output(negative_cosine(p, t), z.detach().view(2, -1, z.shape[1]), {"l2": l2})


class SimSiamKD(Distilled):
    """L = D(h(g(e(f_s(x1)))), g(f_t(x1))) / 2 + D(h(g(e(f_s(x2)))), g(f_t(x2))) / 2, the targets without gradient.

    f_s is the student, f_t the teacher, e one linear layer to the teacher's width, g a projector that both share and h
    a predictor. Views are not crossed. Beside the loss: `l2`, the mean of the two mean squared errors.
    """

    def _add_heads(self, dim: int, layers: int, hidden: int, predictor_hidden: int, output_affine: bool) -> None:
        width = self.teacher.feature_dim
        self.embed = nn.Linear(self.encoder.feature_dim, width)
        self.projector = projector(width, hidden or width, dim, layers, output_affine)
        self.predictor = predictor(dim, predictor_hidden)

    def forward(self, *views: Tensor) -> Output:
        x = stack_views(views)
        z = self.projector(self.embed(self.encoder(x)))
        p = self.predictor(z)
        # After the student's pass: autocast keeps the 16-bit copy of a weight that it makes first, gradient and all.
        with torch.no_grad():
            t = self.projector(self.teacher(x))
        return self._output(p, t, z)


class SimSiamKDAnchor(Distilled):
    """L = D(h(g(f_s(x1))), f_t(x3)) / 2 + D(h(g(f_s(x2))), f_t(x3)) / 2: the teacher sees an anchor, by itself.

    The anchor x3 is the third view, in the recipes a crop and a flip alone (`branches`). The predictor h ends at the
    teacher's width. `l2` is as in SimSiamKD.
    """

    num_views = 3

    def _add_heads(self, dim: int, layers: int, hidden: int, predictor_hidden: int, output_affine: bool) -> None:
        width = self.encoder.feature_dim
        self.projector = projector(width, hidden or width, dim, layers, output_affine)
        self.predictor = mlp(dim, predictor_hidden, self.teacher.feature_dim)

    def forward(self, *views: Tensor) -> Output:
        x = stack_views(views)
        seen = len(x) // 3 * 2
        z = self.projector(self.encoder(x[:seen]))
        with torch.no_grad():
            t = self.teacher(x[seen:])
        return self._output(self.predictor(z), t.repeat(2, 1), z)
