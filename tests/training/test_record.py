"""A work directory belongs to one run, even one begun before a config field existed."""

import dataclasses
import json

import pytest

from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.errors import UserError
from ddm_jax.runs.record import check_workdir
from ddm_jax.settle import settle


def written(folder, config):
    data = {"tokenizer": {"fingerprint": "t"}, "source_fingerprint": "s"}
    record = {"config": dataclasses.asdict(config), "data": data}
    del record["config"]["model"]["kind"], record["config"]["data"]["eos"]
    (folder / "config.json").write_text(json.dumps(record))


def test_a_record_without_newer_fields_has_their_defaults(tmp_path):
    config = settle(resolve(get_config()))
    written(tmp_path, config)
    assert check_workdir(tmp_path, config)
    for section, field, value in (("model", "kind", "prefix"), ("optim", "lr", 0.5)):
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        with pytest.raises(UserError, match=rf"config.{section}.{field}=.*use another --workdir"):
            check_workdir(tmp_path, dataclasses.replace(config, **{section: changed}))
