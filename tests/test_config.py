"""Does a configuration say what its flags and files say, and does a mistake in it name its key?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.columns import Bound, ColumnOptions
from pipeline.config import Optimization, TrainConfig, load_config, parse_setting
from pipeline.errors import ConfigError

YAML = """
passthrough: [label, "key, with comma"]
columns:
  image: {kind: vector, shape: [28, 28]}
  "dots.in.name": {kind: categorical, max_categories: 10}
network: {latent_dim: 4, hidden: [32], likelihood: gaussian, decoder_scale: 0.5}
training: {epochs: 3, learning_rate: 1.0e-4}
seed: 7
"""


def load(text: str = "", passthrough: tuple[str, ...] = (), **settings: Any) -> TrainConfig:
    return load_config(text, "c.yaml", {k.replace("__", "."): v for k, v in settings.items()}, passthrough)


def test_is_an_empty_file_the_defaults() -> None:
    for text in ("", "# nothing\n", "---\n", "{}"):
        assert load(text) == TrainConfig()


def test_is_every_key_of_a_file_taken() -> None:
    config = load(YAML)
    assert config.passthrough == ("label", "key, with comma")
    assert config.columns == {
        "image": ColumnOptions(kind="vector", shape=(28, 28)),
        "dots.in.name": ColumnOptions(kind="categorical", max_categories=10),
    }
    assert (config.network.latent_dim, config.network.hidden) == (4, (32,))
    assert (config.network.likelihood, config.network.decoder_scale) == ("gaussian", 0.5)
    assert config.training == Optimization(epochs=3, learning_rate=1e-4)
    assert config.seed == 7


def test_does_the_configuration_survive_json() -> None:
    config = load(YAML)
    text = json.dumps(config.to_json(), allow_nan=False)
    assert load(text) == config


@pytest.mark.parametrize("text", ["0.01r", "0", "0.5", "3", "none", "1e-3"])
def test_is_a_bound_taken_from_the_file_and_from_a_flag(text: str) -> None:
    bound = Bound.parse(text)
    assert load(f"error: {text}").error == load("", error=text).error == load("error: 7", error=bound).error == bound
    config = load(f"error: {text}")
    assert load(json.dumps(config.to_json(), allow_nan=False)) == config


def test_does_every_column_keep_its_own_bound() -> None:
    config = load("{columns: {t: {error: 0.5}, u: {error: 0r}, v: {kind: vector}}, defaults: {error: 0.1r}}")
    assert config.error == Bound(0.01, relative=True)
    assert config.columns["t"].error == Bound(0.5)
    assert config.columns["u"].error == Bound(0)
    assert config.columns["v"].error is None
    assert config.defaults.error == Bound(0.1, relative=True)
    assert load(json.dumps(config.to_json(), allow_nan=False)) == config


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("columns: {t: {error: none}}", r"columns\.t\.error = 'none', but error = '0\.01r'"),
        ("defaults: {error: none}", r"defaults\.error = 'none'"),
        ("{error: none, columns: {t: {error: 0}}}", r"columns\.t\.error = '0', but error = 'none'"),
        ("{error: none, defaults: {error: 0.5r}}", r"defaults\.error = '0\.5r'"),
    ],
)
def test_is_none_for_a_part_of_the_dataset_refused(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}.*whole dataset"):
        load(text)


def test_may_none_be_said_twice() -> None:
    assert load("{error: none, columns: {t: {error: none}}}").error == Bound(None)


def test_do_settings_override_the_file_and_add_to_it() -> None:
    config = load(YAML, network__latent_dim=9, training__beta=0.5, columns__new__kind="numeric", seed=1)
    assert (config.network.latent_dim, config.network.hidden) == (9, (32,))
    assert (config.training.epochs, config.training.beta) == (3, 0.5)
    assert config.columns["new"] == ColumnOptions(kind="numeric")
    assert set(config.columns) == {"image", "dots.in.name", "new"}
    assert config.seed == 1


def test_may_a_group_be_left_empty_in_the_file_and_set_by_a_flag() -> None:
    assert load("training:\n", training__epochs=2).training.epochs == 2


def test_do_flags_add_to_the_columns_passed_through() -> None:
    assert load(YAML, ("a,b", "c")).passthrough == ("label", "key, with comma", "a,b", "c")
    assert load("", ("a,b",)).passthrough == ("a,b",)
    assert load("passthrough:\n", ("x", "x")).passthrough == ("x", "x")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("training.learning_rate = 0.5", "training.learning_rate", 0.5),
        ("network.hidden=[32, 16]", "network.hidden", [32, 16]),
        ("network.hidden=[]", "network.hidden", []),
        ("columns.a b.kind=passthrough", "columns.a b.kind", "passthrough"),
        ("a=b=c", "a", "b=c"),
        ("training.epochs=", "training.epochs", None),
        ("training.rounding=false", "training.rounding", False),
    ],
)
def test_is_a_setting_split_at_its_first_sign(text: str, key: str, value: object) -> None:
    assert parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["", "seed", "=3", " =3", "a=[1", "a={"])
def test_is_a_malformed_setting_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        ("epochs: 3", "'epochs'", "passthrough, columns, .*network, training, error, effort, seed"),
        ("training: {epoch: 3}", "'training.epoch'", "epochs, batch_size, learning_rate"),
        ("network: {latent: 3}", "'network.latent'", "latent_dim, hidden, likelihood"),
        ("columns: {a.b: {kinds: x}}", "'columns.a.b.kinds'", "kind, shape, max_categories, scaling, error"),
    ],
)
def test_does_an_unknown_key_name_itself_and_the_known_ones(text: str, key: str, known: str) -> None:
    with pytest.raises(ConfigError, match=rf"c\.yaml: there is no key {key}; keys at that place: .*{known}"):
        load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: many}", r"c\.yaml: training\.epochs = 'many'"),
        ("training: {epochs: 1.5}", r"training\.epochs = 1\.5"),
        ("training: {rounding: 7}", r"training\.rounding = 7"),
        ("training: {learning_rate: [1]}", r"training\.learning_rate = \[1\]"),
        ("training: 5", "training = 5"),
        ("network: {hidden: 32}", r"network\.hidden = 32"),
        ("network: {hidden: [a]}", r"network\.hidden\.0 = 'a'"),
        ("network: {likelihood: poisson}", r"network\.likelihood = 'poisson': .*'gaussian'"),
        ("columns: [a]", r"columns = \['a'\]"),
        ("columns: {a: numeric}", r"columns\.a = 'numeric'"),
        ("columns: {a: {scaling: wild}}", r"columns\.a\.scaling = 'wild'"),
        ("columns: {a: {shape: 28}}", r"columns\.a\.shape = 28"),
        ("columns: {1: {kind: numeric}}", r"columns\.1"),
        ("passthrough: label", "passthrough = 'label'"),
        ("passthrough: [1]", r"passthrough\.0 = 1"),
        ("error: much", r"c\.yaml: error: 'much' is no error bound: expected 0 \(exact\)"),
        ("error: true", "error: True is no error bound"),
        ("error: [1]", r"error: \[1\] is no error bound"),
        ("error:", "error: None is no error bound"),
        ("columns: {a: {error: -1}}", r"c\.yaml: columns\.a\.error: -1 is no error bound"),
        ("defaults: {error: .nan}", r"defaults\.error: nan is no error bound"),
        ("seed: x", "seed = 'x'"),
        ("1: 2", "strings"),
        ("- a", "must hold keys and values"),
        ("just words", "must hold keys and values"),
        ("a: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("\0", "not valid YAML"),
    ],
)
def test_does_a_wrong_type_name_key_and_value(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: 0}", r"training\.epochs = 0: expected at least 1"),
        ("training: {batch_size: -1}", r"training\.batch_size = -1"),
        ("training: {learning_rate: 0}", r"training\.learning_rate = 0"),
        ("training: {learning_rate: .nan}", r"training\.learning_rate = nan"),
        ("training: {learning_rate: .inf}", r"training\.learning_rate = inf: expected a finite number"),
        ("training: {beta: -0.1}", r"training\.beta = -0\.1: expected 0 or more"),
        ("training: {kl_warm_up: 1.0}", r"training\.kl_warm_up = 1\.0: expected between 0 and 1"),
        ("training: {validation_fraction: -0.5}", r"training\.validation_fraction = -0\.5"),
        ("training: {mc_samples: 0}", r"training\.mc_samples = 0"),
        ("network: {latent_dim: 0}", r"c\.yaml: network: latent_dim is 0, must be at least 1"),
        ("network: {hidden: [0]}", r"c\.yaml: network: hidden"),
        ("network: {decoder_scale: 0}", r"c\.yaml: network: decoder_scale"),
        ("network: {decoder_scale: .inf}", r"network\.decoder_scale = inf"),
        ("seed: -1", "seed = -1: expected 0 or more"),
        ("seed: 9223372036854775808", "seed = 9223372036854775808"),
    ],
)
def test_is_a_value_out_of_range_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_is_a_setting_below_a_value_refused() -> None:
    with pytest.raises(ConfigError, match=r"--set seed\.x: 'seed' is a value"):
        load("seed: 1", seed__x=3)


def test_is_a_passthrough_that_is_no_list_refused_with_flags() -> None:
    with pytest.raises(ConfigError, match="passthrough = 'label': expected a list"):
        load("passthrough: label", ("x",))
