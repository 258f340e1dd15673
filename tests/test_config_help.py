"""--help_config has every field of the config, and docs/config.md is up to date."""

import re
from pathlib import Path

import pytest

from ddm_jax.config_help import config_help
from ddm_jax.errors import UserError
from tests import commands
from tests.test_config import FIELDS

PAGE = Path(__file__).parents[1] / "docs" / "config.md"


def test_page_is_what_the_command_writes():
    remedy = "run python -m ddm_jax.main --help_config=markdown > docs/config.md"
    assert PAGE.read_text(encoding="utf-8") == config_help("markdown") + "\n", remedy


def test_every_field_is_there_with_its_default_and_meaning():
    found = dict(re.findall(r"^  --config\.([\w.]+)=(.*)\n {6}\w", config_help(), re.MULTILINE))
    assert found.keys() == {*FIELDS, "plugins"}
    assert found["optim.lr"] == "0.0003"
    assert found["model.norm_bias"] == "true"
    assert found["objective.steps"] == found["train.init_from"] == ""


def test_options_name_their_rows_and_values():
    assert "applies to bd3lm (4) [a whole number, at least 1]" in config_help(
        "objective.block_size"
    )
    assert "[a number from 0 to 0.99]" in config_help("model.dropout")
    assert "sedd_uniform" in config_help("objective.name")


def test_a_section_or_a_field_can_be_chosen():
    assert set(re.findall(r"--config\.(\w+)", config_help("config.optim"))) == {"optim"}
    assert re.findall(r"--config\.([\w.]+)=", config_help("optim.lr")) == ["optim.lr"]
    with pytest.raises(UserError, match=r"--help_config=optim\.l is unknown: give one of .*optim"):
        config_help("optim.l")


def test_command_answers_whatever_else_is_given():
    ended = commands.run("main", "--config=nonesuch", "--help_config=layout", code=0)
    assert ended.stdout == config_help("layout") + "\n"
    assert ended.stderr == ""
