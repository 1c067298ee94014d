"""The package transformers, which comes with the extra `hf`: quiet, and without a way to a hub."""

import os
from types import ModuleType

from gpt.errors import UserError


def import_transformers() -> ModuleType:
    """Raises UserError where it is not installed."""
    # read as it is imported; a folder's files may name others to fetch
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(
            "the package transformers is not installed",
            mend="run `pip install -e '.[hf]'` in the project's folder",
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
