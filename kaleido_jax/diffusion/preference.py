"""Preference tuning of flow models by pairs of samples (Flow-DPO, arXiv:2501.13918; AnyID, section 3.6)."""

import jax

from kaleido_jax.typing import Array, Float


def flow_dpo_loss(
    chosen: Float[Array, "b"],
    rejected: Float[Array, "b"],
    reference_chosen: Float[Array, "b"],
    reference_rejected: Float[Array, "b"],
    beta: float,
) -> Float[Array, "b"]:
    """-log sigmoid(-beta (s+ - s-)), where s is the model's error of a sample less the reference model's.

    It falls as the chosen sample's velocity is predicted better, beyond the reference model, than the rejected one's.
    AnyID prints the logarithm without its sign, as something to be maximised.

    Args:
      chosen, rejected: mean squared errors of the velocity at the same time and noise. reference_*: of the model before
        tuning.
    """
    advantage = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -jax.nn.log_sigmoid(-beta * advantage)
