"""Who looks at pictures for us: models that are asked in words, by templates that lie beside the code.

`ModelDescriber` is a describer and a comparer (`methods.differential`) and the writer of ContextAnyone's two prompts.
The model that it asks is one of a folder (`transformers_model.TransformersModel`) or one behind an endpoint
(`endpoints.Endpoint`); whatever has their `ask` will do. The procedural world's own truth is in `data.groups`.
"""

import os
from pathlib import Path

from kaleido_jax.describers.model import Model, ModelDescriber, template
from kaleido_jax.errors import UsageError, printable

__all__ = ["Model", "ModelDescriber", "create", "template"]

KEY = "KALEIDO_DESCRIBER_KEY"  # of the environment: the endpoint's key, if it wants one


def create(where: str, model: str = "", *, cache: Path | None = None) -> ModelDescriber:
    """The describer at an address.

    Args:
      where: an endpoint, "http://localhost:8000/v1", or the folder of a transformers model.
      model: the name of the endpoint's model.
      cache: folder for answers of endpoints.

    Raises:
      UsageError: there is neither, or an endpoint without a model's name. InputError: the folder holds no such model.
    """
    if where.startswith(("http://", "https://")):
        from kaleido_jax.endpoints import Endpoint

        if not model:
            raise UsageError(f"The describer {printable(where)} is an endpoint; name its model with --describer-model.")
        return ModelDescriber(Endpoint(url=where, model=model, key=os.environ.get(KEY, ""), cache=cache))
    if not Path(where).is_dir():
        raise UsageError(
            f"The describer {printable(where)!r} is neither the folder of a model nor an address that begins with http."
        )
    from kaleido_jax.describers.transformers_model import TransformersModel

    return ModelDescriber(TransformersModel.load(where))
