"""What the tests of settings and of Config have in common: building a Config, and refusals."""

import pytest
from recbole.config import Config

from recbole_llmd.errors import SettingsError

MODELS = ("LLMRec", "LLMD4Rec")


def config_of(model, files=None, dataset="toy", **settings):
    return Config(model=model, dataset=dataset, config_file_list=files, config_dict=settings)


def refusal(model, error=SettingsError, **settings):
    with pytest.raises(error) as caught:
        config_of(model, **settings)
    return str(caught.value)
