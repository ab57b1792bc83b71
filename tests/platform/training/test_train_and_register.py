"""What a registration would be refused for is known before a training starts; no service is needed."""

import pytest

from mimic3d.config.recipes import get_recipe
from mimic3d_platform.cli.job_specs import TrainingOptions, training_job
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError
from mimic3d_platform.training import train_and_register

REFUSED = {
    "a name with a dot": ("cars.v2", None, "it has '.'"),
    "a reserved alias": ("cars", "latest", "reserves latest"),
    "an alias that looks like a version": ("cars", "v1", "reserves latest and v1"),
    "an alias of nothing": (None, "champion", "give --register NAME too"),
}


@pytest.mark.parametrize(("model", "alias", "words"), REFUSED.values(), ids=REFUSED)
def test_a_training_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, model: str | None, alias: str | None, words: str
) -> None:
    monkeypatch.setattr(train_and_register, "train", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(UserError) as caught:
        train_and_register.train_and_register(
            get_recipe("cars-demo"), "run", Console(), model=model, alias=alias
        )
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("model", "alias", "words"), REFUSED.values(), ids=REFUSED)
def test_a_training_is_refused_before_it_is_submitted(
    model: str | None, alias: str | None, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        training_job(TrainingOptions("cars-demo", "s3://mimic3d/x", name="run", register=model, alias=alias))
    assert words in str(caught.value)
