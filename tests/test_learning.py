"""The losses and advantages of language, on a task whose solution anyone can see."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cartpole


@pytest.mark.parametrize("train", [cartpole.train_ppo, cartpole.train_rloo])
def test_the_pole_stays_up(train):
    assert cartpole.mean_length(train()) >= 475
