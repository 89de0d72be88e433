"""Can this model be trained here? If not: why, and what to write instead."""

from __future__ import annotations

from torch import nn

from lanterne.errors import ModelError

_RUNNING = nn.modules.batchnorm._NormBase
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_RANDOM = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def check_modules(net: nn.Module) -> None:
    """Refuse what lanterne cannot train faithfully.

    Args:
        net: the user's model.

    Raises:
        ModelError: for a model that is not a Sequential, buffers that training changes, ambient randomness, weights
            that a layer keeps to itself, parameters that two places share, that are frozen or of unknown size.

    Examples:
        >>> check_modules(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))
    """
    if not isinstance(net, nn.Sequential):
        raise ModelError(
            f"The model is a {type(net).__name__}, whose order of blocks lanterne cannot see. "
            "Write it as an nn.Sequential of its blocks (a residual block may be one child)."
        )
    if type(net).forward is not nn.Sequential.forward:
        raise ModelError(
            f"The model is a {type(net).__name__} with a forward of its own, in which lanterne cannot see the order of "
            "blocks. Write it as a plain nn.Sequential, and what is no chain as one child with its own forward."
        )
    for name, module in net.named_modules():
        where = f"Layer {name!r} ({type(module).__name__})"
        if isinstance(module, _RUNNING) and any(True for _ in module.buffers()):
            raise ModelError(
                f"{where} keeps running statistics, which are not parameters: averaging would mix them silently. "
                "Use nn.GroupNorm, or this layer with track_running_stats=False: then statistics of training samples "
                "are computed whenever the model is judged."
            )
        if isinstance(module, nn.RNNBase):
            raise ModelError(
                f"{where} keeps a list of its weights besides its parameters, which no client's weights could reach. "
                "Use a recurrent cell (nn.LSTMCell, nn.GRUCell) in a loop of your own."
            )
        chance = "dropout" if isinstance(module, nn.MultiheadAttention) else "p"
        drops = isinstance(module, (*_DROPOUTS, nn.MultiheadAttention)) and float(getattr(module, chance)) > 0.0
        if drops or isinstance(module, _RANDOM):
            raise ModelError(
                f"{where} draws from the global random generator, so that no run could be repeated. "
                + (f"Set its {chance} to 0 or leave it out." if drops else "Leave it out.")
            )
    buffers = [name for name, _ in net.named_buffers()]
    if buffers:
        raise ModelError(
            f"The model keeps buffers ({', '.join(buffers[:3])}), which no aggregation rule knows. "
            "Use layers whose state is all in their parameters."
        )
    for name, parameter in net.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"The size of {name!r} is not known before the model has run once. Give the layer its size, or run it."
            )
    names = {id(p): n for n, p in net.named_parameters()}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if names[id(parameter)] != name:
            raise ModelError(
                f"{name!r} and {names[id(parameter)]!r} are one parameter in two places, "
                "which a cut or a deadline would tear apart. Give each its own."
            )
        if not parameter.requires_grad:
            raise ModelError(
                f"{name!r} is frozen (requires_grad=False); lanterne trains every parameter. "
                "Leave it out or unfreeze it."
            )
