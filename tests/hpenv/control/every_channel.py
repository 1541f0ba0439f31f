"""The channels, and the plants that they are tried on."""

from hpenv.control.channels import channels_of
from hpenv.lm import architecture
from hpenv.optim.optimizers import OPTIMIZERS
from tests.tiny_plants import PRESETS

CHANNELS = channels_of("pretraining")
ids = "{0[0]}-{0[1]}".format


def applicable(pairs, optimizer, preset):
    """Those of the pairs (name, scope) that move a tensor.

    A tensor moves if its rule uses the channel. For a scope finer than the run it must be one of a
    layer.
    """
    rules = OPTIMIZERS[optimizer]
    own = {
        n: rules[architecture.parameter_kind(n)].optimizer
        for n in architecture.parameter_shapes(PRESETS[preset])
    }

    def moves(name, scope):
        users = CHANNELS[name].optimizers or own.values()
        return any(
            own[n] in users and (n.startswith("layer.") or scope not in ("layer", "tensor"))
            for n in own
        )

    return tuple(pair for pair in pairs if moves(*pair))
